"""The requests of a replayed session: lengths, texts, histories, and what a prefix cache could find."""

from pathlib import Path
from typing import Any

import pytest

from loadtest.run.sessions.ledger import SessionLedger
from loadtest.settings import Settings
from loadtest.workload.conversations import ChatRequest
from loadtest.workload.sessions.recorded import RecordedSession, RecordedTurn
from loadtest.workload.sessions.replay import HandedSession, SentTexts, SessionReplay
from testing.inputs.workloads import workload


def turn(prompt: int = 100, output: int = 20, **changes: Any) -> RecordedTurn:
    return RecordedTurn(prompt_tokens=prompt, output_tokens=output, **changes)


def replay(
    *turns: RecordedTurn,
    number: int = 0,
    round_: int = 0,
    server_history: bool = True,
    max_model_len: int = 10_000,
    reusable: list[int] | None = None,
) -> SessionReplay:
    handed = HandedSession(
        number=number,
        round=round_,
        due_s=None,
        reusable=reusable or [0] * len(turns),
        session=RecordedSession(name="s", turns=list(turns), block_tokens=32),
    )
    return SessionReplay(
        handed, workload=workload(max_model_len=max_model_len), server_history=server_history
    )


def played(each: SessionReplay, *, extra: int = 0) -> list[ChatRequest]:
    """All requests; the server answers `word`s of the length asked for and counts `extra` tokens a prompt."""
    found = []
    for request in each.requests():
        found.append(request)
        assert request.recorded is not None
        prompt = (request.recorded.prompt_tokens or 100) + extra
        text = " ".join(["word"] * request.max_tokens)
        each.answered(text, prompt_tokens=prompt, output_tokens=request.max_tokens, chunks=5)
    return found


def texts(request: ChatRequest) -> list[str]:
    return [str(message["content"]) for message in request.messages]


def test_lengths_are_those_recorded_and_the_servers_answers_go_back() -> None:
    first, second, third = played(replay(turn(), turn(50, 8), turn(30, 5, anew=True)))
    assert [request.max_tokens for request in (first, second, third)] == [20, 8, 5]
    assert len(texts(first)[0].split()) == 90  # 10 tokens are the template's
    assert texts(second)[:2] == [texts(first)[0], " ".join(["word"] * 20)]
    assert len(texts(second)[2].split()) == 40
    assert len(third.messages) == 1
    facts = [request.recorded for request in (first, second, third)]
    assert [(each.prompt_tokens, each.output_tokens) for each in facts if each] == [
        (100, 20),
        (170, 8),
        (30, 5),
    ]
    assert [each.reusable_tokens for each in facts if each] == [0, 119, 0]
    assert [request.keep_text for request in (first, second, third)] == [True, True, False]


def test_recorded_answers_go_back_with_the_same_words_each_time() -> None:
    turns = [turn(), turn(50, 8, answer="It is so."), turn(9)]
    one, other = (played(replay(*turns, server_history=False)) for _ in range(2))
    assert [texts(request) for request in one] == [texts(request) for request in other]
    assert len(texts(one[1])[1].split()) == 20
    assert texts(one[2])[3] == "It is so."
    assert not any(request.keep_text for request in one)
    facts = [request.recorded for request in one]
    assert [each.reusable_tokens for each in facts if each] == [0, 100, 170]  # no answer of the server's


def test_a_failed_turn_ends_a_session_unless_recorded_answers_go_on() -> None:
    for server_history, sent in ((True, 1), (False, 2)):
        each = replay(turn(), turn(), server_history=server_history)
        count = 0
        for _ in each.requests():
            count += 1
            each.failed()
        assert count == sent


def test_texts_of_a_file_are_sent_as_they_are() -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    (request,) = played(replay(turn(messages=messages, states_prompt=False, states_output=False)))
    assert request.messages == messages
    assert request.recorded is not None
    assert (request.recorded.prompt_tokens, request.recorded.output_tokens) == (None, None)


def test_shared_blocks_are_the_same_text_in_one_round_only() -> None:
    one, other, later = (
        texts(played(replay(turn(shared=(4, 5)), number=number, round_=round_))[0])[0].split()
        for number, round_ in ((1, 0), (2, 0), (3, 1))
    )
    assert len(one) == len(other) == 90
    assert one[:64] == other[:64]
    assert one[64:] != other[64:]
    assert one[:3] != later[:3]


def test_blocks_that_cover_a_prompt_fill_it_to_its_length() -> None:
    (request,) = played(replay(turn(70, shared=(1, 2, 3))))
    assert len(texts(request)[0].split()) == 60


def test_a_session_is_cut_where_the_servers_counts_fill_the_context() -> None:
    each = replay(turn(400, 100), turn(300, 100), turn(10, 10), max_model_len=900)
    assert len(played(each)) == 1 + 1
    longer = replay(turn(400, 100), turn(300, 100), max_model_len=900)
    assert len(played(longer, extra=50)) == 1
    assert longer.cut
    assert longer.following is None


def test_what_earlier_sessions_sent_is_reusable() -> None:
    sent = SentTexts()

    def session(*blocks: int, **changes: Any) -> RecordedSession:
        return RecordedSession(name="s", turns=[turn(shared=blocks, **changes), turn()], block_tokens=10)

    assert sent.add(session(1, 2, 3), round_=0) == [0, 0]
    assert sent.add(session(1, 2, 9), round_=0) == [20, 0]
    assert sent.add(session(2, 1), round_=0) == [0, 0]  # another beginning
    assert sent.add(session(1, 2, 3, 4), round_=0) == [30, 0]
    assert sent.add(session(1, 2, 3), round_=1) == [0, 0]
    text = [{"role": "user", "content": "x" * 640}]
    assert sent.add(session(messages=text), round_=0) == [0, 0]
    assert sent.add(session(messages=[{"role": "user", "content": "x" * 320 + "y" * 99}]), round_=0)[0] == (
        pytest.approx(80, abs=16)
    )


def test_a_ledger_begins_sessions_at_the_rate_asked_for(tmp_path: Path) -> None:
    path = tmp_path / "f.jsonl"
    path.write_text('{"start_s": 4, "turns": [{"prompt_tokens": 5, "output_tokens": 5}]}\n' * 3)
    ledger = SessionLedger(Settings(sessions=path, arrivals="constant:2", level_s=4))
    ledger.fit(100)
    assert ledger.extent() == (7, 4)
    assert len(ledger.take_due(1.2)) == 2
    assert len(ledger.take_due(9)) == 5
    assert ledger.take_due(99) == []
    assert ledger.begun_again == 2
