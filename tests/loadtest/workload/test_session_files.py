"""The readers of recorded sessions, each on a small file, and what they refuse."""

import json
from itertools import islice
from pathlib import Path

import pytest

from loadtest.workload.sessions.book import SessionBook
from loadtest.workload.sessions.recorded import RecordedSession
from testing.processes import ROOT


def book_of(tmp_path: Path, text: str | bytes, name: str = "file") -> SessionBook:
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return SessionBook(path)


def sessions(book: SessionBook) -> list[RecordedSession]:
    return [session for _, session in islice(iter(book.next_in_file, None), book.facts.sessions)]


def lengths(session: RecordedSession) -> list[tuple[int, int]]:
    return [(turn.prompt_tokens, turn.output_tokens) for turn in session.turns]


def lines(*values: object) -> str:
    return "".join(json.dumps(value) + "\n" for value in values)


OWN = {
    "session": "a",
    "start_s": 3,
    "turns": [
        {"prompt_tokens": 120, "output_tokens": 80, "shared": [7, 8]},
        {"prompt_tokens": 20, "output_tokens": 10, "pause_s": 3.5, "at_s": 9},
        {"text": "How many words are in this?", "answer": "Six.", "at_s": 10, "step": 1},
        {"prompt_tokens": 500, "output_tokens": 5, "anew": True, "shared": [7]},
    ],
}


def test_our_own_format(tmp_path: Path) -> None:
    book = book_of(tmp_path, lines(OWN, {"turns": [{"prompt_tokens": 1, "output_tokens": 2}]}))
    first, second = sessions(book)
    assert (book.facts.format, book.facts.sessions, book.facts.turns) == ("seatcount", 2, 5)
    assert (book.facts.has_text, book.facts.states_starts, book.facts.states_times) == (True, False, False)
    assert (first.name, first.start_s, second.name, second.start_s) == ("a", 3, "2", None)
    assert [turn.pause_s for turn in first.turns] == [0, 3.5, 1, 0]
    assert [turn.at_s for turn in first.turns] == [0, 9, 10, None]
    assert [turn.step for turn in first.turns] == [0, 0, 1, 0]
    assert [turn.shared for turn in first.turns] == [(7, 8), (), (), (7,)]
    assert first.turns[2].messages == [{"role": "user", "content": "How many words are in this?"}]
    assert (first.turns[2].answer, first.turns[2].states_prompt, first.turns[2].states_output) == (
        "Six.",
        False,
        False,
    )
    assert [tokens for _, tokens in first.contexts()][:2] == [200, 230]
    assert list(first.contexts())[-1] == (500, 505)  # without the history


def test_the_example_of_the_documentation_is_read_and_every_key_described(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "workloads.md").read_text().partition("## Recorded sessions")[2]
    example = page.partition("```json\n")[2].partition("```")[0].replace("\n", " ")
    (session,) = sessions(book_of(tmp_path, example))
    assert [turn.step for turn in session.turns] == [0, 0, 1, 0]
    assert session.turns[3].answer == "Bien sûr."
    tables = page.partition("| key of a session |")[2].partition("Where the text is given")[0]
    documented = [line.split("|")[1] for line in tables.splitlines() if line.startswith("| `")]
    keys = {key.strip(" `") for cell in documented for key in cell.split(",")}
    with pytest.raises(ValueError, match="unknown key") as found:
        book_of(tmp_path, lines({"turns": [{"zzz": 1}]}))
    assert keys == set(str(found.value).partition("known are ")[2].rstrip(").").split(", "))


def test_sessions_begin_in_the_order_of_their_starts(tmp_path: Path) -> None:
    book = book_of(
        tmp_path,
        lines(*({"session": name, "start_s": at, "turns": OWN["turns"][:1]} for name, at in SOME_STARTS)),
    )
    assert [session.name for session in sessions(book)] == ["x", "y", "z"]
    assert [(due, session.name) for due, session in book.in_order_of_start()] == [
        (0, "y"),
        (2, "z"),
        (5, "x"),
    ]
    assert book.starts_within_s() == 5
    assert book.round == 0
    assert book.next_in_file()[1].name == "x"  # again
    assert book.round == 1


SOME_STARTS = [("x", 15), ("y", 10), ("z", 12)]


def test_sharegpt_as_an_array_and_as_lines(tmp_path: Path) -> None:
    said = [
        {"from": "gpt", "value": "left over"},
        {"from": "system", "value": "Be brief."},
        {"from": "human", "value": "x" * 400},
        {"from": "gpt", "value": "y" * 80},
        {"from": "human", "value": "why"},
        {"from": "gpt", "value": "because"},
        {"from": "human", "value": "thanks"},
    ]
    both = [{"id": "one", "conversations": said}, {"id": "two", "conversations": said[:1]}]
    for text in (json.dumps(both), json.dumps(both, indent=2), lines(*both)):
        book = book_of(tmp_path, text)
        (found,) = sessions(book)
        assert book.facts.format == "ShareGPT"
        assert found.name == "one"
        first, second = found.turns
        assert first.messages is not None
        assert [message["role"] for message in first.messages] == ["system", "user"]
        assert (first.prompt_tokens, first.output_tokens) == (pytest.approx(114, abs=3), 20)
        assert second.answer == "because"
        assert (first.states_prompt, first.states_output) == (False, False)
        assert len(book.facts.notes) == 3  # two answers without a question, a last question, an empty one
        assert "answers without a question before them (2)" in " ".join(book.facts.notes)


def test_an_array_larger_than_what_is_read_at_once(tmp_path: Path) -> None:
    said = [{"from": "human", "value": "ä€" * 150_000}, {"from": "gpt", "value": '[{]}\\"'}]
    book = book_of(tmp_path, json.dumps([{"conversations": said}] * 9, ensure_ascii=False, indent=1))
    found = sessions(book)
    assert len(found) == 9
    assert [session.turns[0].messages[0]["content"] for session in found] == [said[0]["value"]] * 9  # type: ignore[index]
    assert found[8].turns[0].answer == said[1]["value"]


def test_each_line_of_mooncake_is_a_session_with_shared_blocks(tmp_path: Path) -> None:
    row = {"timestamp": 1500, "input_length": 1100, "output_length": 9, "hash_ids": [0, 5, 6]}
    book = book_of(tmp_path, lines(row, {**row, "timestamp": 4000}))
    first, second = sessions(book)
    assert (book.facts.format, first.start_s, second.start_s) == ("Mooncake", 1.5, 4)
    assert (first.turns[0].shared, first.block_tokens, lengths(first)) == ((0, 5, 6), 512, [(1100, 9)])


@pytest.mark.parametrize("zone", ["", "+00:00"])
def test_azure_of_2023_and_2024(tmp_path: Path, zone: str) -> None:
    book = book_of(
        tmp_path,
        "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
        f"2024-05-10 23:59:59.500000{zone},374,44\r\n2024-05-11 00:00:01.2500000{zone},0,0\r\n",
    )
    assert book.facts.format == "Azure"
    assert [lengths(each) for each in sessions(book)] == [[(374, 44)], [(1, 1)]]
    assert [due for due, _ in book.in_order_of_start()] == [0, 1.75]


BURSTGPT = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type\n"


def test_burstgpt_joins_the_requests_of_a_session(tmp_path: Path) -> None:
    book = book_of(
        tmp_path,
        BURSTGPT + "5,s1,2,ChatGPT,100,50,150,Conversation log\n"
        "6,,1,GPT-4,70,0,70,API log\n"
        "7,,1,GPT-4,80,9,89,API log\n"
        "10,s1,2,ChatGPT,200,10,210,Conversation log\n"
        "11,s2,2,ChatGPT,30,10,40,Conversation log\n"
        "20,s1,1,ChatGPT,60,10,70,Conversation log\n",
    )
    first, api, other = sessions(book)
    assert (first.name, api.name, other.name) == ("s1", "line 4", "s2")
    assert lengths(first) == [(100, 50), (50, 10), (60, 10)]  # the last one is sent without its history
    assert [turn.anew for turn in first.turns] == [False, False, True]
    assert [turn.step for turn in first.turns] == [0, 0, 0]
    assert [(turn.pause_s, turn.at_s) for turn in first.turns] == [(0, 0), (3, 5), (8, 15)]
    assert book.facts.notes == [
        "Left out of file: requests that failed when they were recorded, with 0 response tokens (1)."
    ]


def test_burstgpt_without_sessions(tmp_path: Path) -> None:
    header = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
    book = book_of(tmp_path, header + "1,ChatGPT,5,6,11,Conversation log\n2,ChatGPT,7,8,15,API log\n")
    assert [lengths(each) for each in sessions(book)] == [[(5, 6)], [(7, 8)]]


def test_an_openai_batch(tmp_path: Path) -> None:
    messages = [
        {"role": "system", "content": "s"},
        {"role": "user", "content": [{"type": "text", "text": "t"}]},
    ]
    row = {"custom_id": "r1", "method": "POST", "url": "/v1/chat/completions"}
    book = book_of(
        tmp_path,
        lines(
            {**row, "body": {"model": "m", "messages": messages, "max_tokens": 30}},
            {**row, "custom_id": "r2", "body": {"messages": messages}},
        ),
    )
    first, second = sessions(book)
    assert book.facts.format == "OpenAI batch"
    assert (first.name, first.turns[0].messages, first.turns[0].output_tokens) == ("r1", messages, 30)
    assert second.turns[0].output_tokens == 128
    assert book.facts.notes == ["file: requests without max_tokens (1): answers of 128 tokens are asked for."]


def span(conversation: str, at_s: float, tokens: tuple[int, int], parent: str = "p") -> dict[str, object]:
    return {
        "traceId": "t",
        "spanId": str(at_s),
        "parentSpanId": parent,
        "startTimeUnixNano": str(int(at_s * 1e9)),
        "endTimeUnixNano": str(int((at_s + 1) * 1e9)),
        "attributes": [
            {"key": "gen_ai.conversation.id", "value": {"stringValue": conversation}},
            {"key": "gen_ai.usage.input_tokens", "value": {"intValue": str(tokens[0])}},
            {"key": "gen_ai.usage.output_tokens", "value": {"intValue": tokens[1]}},
        ],
    }


SPANS = [
    span("c", 5, (90, 9), "q"),  # spans are written when they end, in any order
    span("c", 1, (50, 5)),
    span("c", 3, (70, 7)),
    span("d", 2, (10, 1)),
    {"traceId": "t", "spanId": "tool", "attributes": []},
    span("c", 9, (10, 0)),
]


def test_opentelemetry_spans_in_each_form(tmp_path: Path) -> None:
    exported = {"resourceSpans": [{"scopeSpans": [{"spans": SPANS[:3]}, {"spans": SPANS[3:]}]}]}
    console = [
        {
            "name": "chat",
            "context": {"trace_id": "0x1", "span_id": "0x2"},
            "parent_id": each["parentSpanId"],
            "start_time": f"1970-01-01T00:00:0{int(int(str(each['startTimeUnixNano'])) / 1e9)}.000000Z",
            "end_time": f"1970-01-01T00:00:0{int(int(str(each['endTimeUnixNano'])) / 1e9)}.000000Z",
            "attributes": {
                "gen_ai.conversation.id": name,
                "gen_ai.usage.input_tokens": prompt,
                "gen_ai.usage.output_tokens": output,
            },
        }
        for each, name, prompt, output in [
            (SPANS[0], "c", 90, 9),
            (SPANS[1], "c", 50, 5),
            (SPANS[2], "c", 70, 7),
            (SPANS[3], "d", 10, 1),
        ]
    ]
    for text in (
        lines(*SPANS),
        lines(exported),
        lines(exported, {"resourceSpans": []}),
        json.dumps(exported, indent=2),
        lines(*console),
    ):
        book = book_of(tmp_path, text)
        assert book.facts.format == "OpenTelemetry"
        found = {session.name: session for session in sessions(book)}
        assert lengths(found["c"]) == [(50, 5), (15, 7), (13, 9)]
        assert [turn.step for turn in found["c"].turns] == [0, 1, 0]
        assert [(turn.pause_s, turn.at_s) for turn in found["c"].turns] == [(0, 0), (1, 2), (1, 4)]
        assert lengths(found["d"]) == [(10, 1)]


def test_sessions_that_are_too_long_end_early_and_are_counted(tmp_path: Path) -> None:
    long = {"turns": [{"prompt_tokens": 50, "output_tokens": 5}] * 3}
    book = book_of(tmp_path, lines(long, {"turns": [{"prompt_tokens": 500, "output_tokens": 5}]}))
    book.fit(120)
    assert book.too_long() == (2, 1)
    assert book.count() == 1
    assert [len(book.next_in_file()[1].turns) for _ in range(2)] == [2, 2]
    with pytest.raises(ValueError, match=r"file: no session fits into the model's context \(40 tokens"):
        book.fit(40)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "the file holds no sessions"),
        ("hello", "the format is unknown; known are our own JSONL, ShareGPT"),
        ('{"a": 1}', "the format is unknown"),
        ('{"messages": []}', "line 1: a file of prompts and no sessions; --prompts sends it"),
        (b"\x1f\x8b\x08\x00", "the file is compressed; unpack it first"),
        (b"\xff\xfe{\x00", "line 1: not UTF-8 text (byte 0 of the file)"),
        (b'{"turns": []}\n', "line 1: not a session (Expected `array` of length >= 1"),
        (lines(OWN) + '{"turns": 3}', "line 2: not a session (Expected `array`, got `int`"),
        (lines(OWN) + "{", "line 2: not a session (Input data was truncated)"),
        (lines(OWN).encode() + b'{"session": "\xff", "turns": []}', "line 2: not"),
        (lines({"turns": [{"prompt_token": 1}]}), "unknown key 'prompt_token' (did you mean prompt_tokens?)"),
        (lines({"turns": [{"branches": []}]}), "branches that run at once are not replayed"),
        (lines({"turns": [{"output_tokens": 1}]}), "turn 0: prompt_tokens is missing, and there is no text"),
        (
            lines({"turns": [{"prompt_tokens": 1}]}),
            "turn 0: output_tokens is missing, and there is no answer",
        ),
        (lines({"turns": [{"prompt_tokens": 1, "output_tokens": 0}]}), "Expected `int` >= 1"),
        (
            lines({"turns": [{"prompt_tokens": 1, "output_tokens": 1, "at_s": at} for at in (0, 5, 4)]}),
            "line 1: turn 2: the turn goes back in time (at_s 4 after 5)",
        ),
        (
            lines({"turns": [{"prompt_tokens": 1, "output_tokens": 1}, {**OWN["turns"][0]}]}),
            "turn 1: shared names blocks",
        ),
        ("a,b,c\n1,2,3\nx,4,5\n", "line 3: not a time, prompt tokens and output tokens"),
        (
            BURSTGPT + "5,s,1,m,9,9,18,l\n4,s,1,m,9,9,18,l\n",
            "line 3: session s goes back in time (4 after 5)",
        ),
        (BURSTGPT + "5,s,1,m,nine,9,18,l\n", "line 2: not a request of BurstGPT"),
        (BURSTGPT + "5,s,1,m,9,0,9,l\n", "the file holds no session that can be replayed"),
        ('[{"conversations": []},\n {"conversation": []}]', "line 2: not a conversation of ShareGPT"),
        ('[{"conversations": []},\n\n {"conver', "line 3: not JSON"),
        (lines({"custom_id": "x", "body": {"input": "text"}}), "line 1: not a chat completion of a batch"),
        (lines({**span("c", 1, (5, 5)), "endTimeUnixNano": "1"}), "line 1: a span that goes back in time"),
        (lines({"turns": [{"prompt_tokens": 1 << 70, "output_tokens": 1}]}), "line 1: "),
        ("a,b,c\n1,2,3\nnan,4,5\n", "line 3: not a time, prompt tokens and output tokens"),
        ("a,b,c\n1,2,3\n2,4,99999999999999999999\n", "line 3: a number is too large"),
        (BURSTGPT + "5,s,nan,m,9,9,18,l\n", "line 2: a negative or infinite number"),
        ("[" + '{"a":' * 100_000, "JSON that is nested too deeply"),
        (lines({**span("c", 1, (5, 5)), "attributes": [{"key": []}]}), "line 1: a span with attributes"),
        ('{"resourceSpans": 3}\n{"resourceSpans": 3}\n', "line 1: not a span, nor an OTLP export"),
        (lines({"timestamp": 1, "input_length": 0, "output_length": 1}), "line 1: not a request of a trace"),
    ],
)
def test_bad_input_is_one_sentence_with_file_and_line(tmp_path: Path, text: str | bytes, said: str) -> None:
    with pytest.raises(ValueError, match=r"file") as found:
        book_of(tmp_path, text)
    assert said in str(found.value)
    assert str(found.value).startswith(str(tmp_path / "file"))
    assert "\n" not in str(found.value)
