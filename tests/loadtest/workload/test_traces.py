"""Traces: read, refused, and the texts that their blocks stand for."""

from pathlib import Path

import pytest

from loadtest.workload.arrivals import Arrival
from loadtest.workload.traces import read_trace
from testing.inputs.workloads import workload


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "azure.csv",
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2023-11-16 18:15:46.6805900,374,44\n2023-11-16 18:15:50.6805900,396,109\n",
        ),
        ("plain.csv", "time_s,prompt_tokens,output_tokens\n10.5,374,44\n14.5,396,109\n"),
        ("bare.csv", "14.5,396,109\n10.5,374,44\n"),
        (
            "mooncake.jsonl",
            '{"timestamp": 500, "input_length": 374, "output_length": 44, "hash_ids": [0]}\n'
            '{"timestamp": 4500, "input_length": 396, "output_length": 109, "hash_ids": [0, 1]}\n',
        ),
    ],
)
def test_a_trace_is_read_from_its_first_request_in_the_order_of_time(
    tmp_path: Path, name: str, text: str
) -> None:
    (tmp_path / name).write_text(text)
    found = read_trace(tmp_path / name, speed=2)
    assert [(one.number, one.prompt_tokens, one.output_tokens) for one in found] == [
        (0, 374, 44),
        (1, 396, 109),
    ]
    assert [one.due_s for one in found] == pytest.approx([0, 2])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "holds no requests"),
        ("time_s,prompt,output\n1,2\n", "line 2: not a time"),
        ("time_s,prompt,output\nsoon,2,3\n", "line 2: not a time"),
        ('{"timestamp": 1}\n', "line 1: not a request of a trace"),
    ],
)
def test_a_bad_trace_is_refused_with_its_line(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "trace").write_text(text)
    with pytest.raises(ValueError, match=said):
        read_trace(tmp_path / "trace", speed=1)


LENGTHS = "lognormal:100,0.6"


def said(arrival: Arrival, **changes: object) -> list[str]:
    (message,) = workload(**{"max_model_len": 4096, **changes}).request_at(arrival).messages
    return str(message["content"]).split()


def test_requests_with_the_same_blocks_share_that_much_text_and_no_more() -> None:
    one = said(Arrival(0, 0.0, 1500, 8, (7, 8, 9)))
    two = said(Arrival(1, 0.0, 1400, 8, (7, 8, 10)))
    assert [len(one), len(two)] == [1490, 1390]
    shared = next(i for i, (a, b) in enumerate(zip(one, two, strict=False)) if a != b)
    assert shared == 1 + 1024  # the title, which differs from run to run
    assert said(Arrival(2, 0.0, 1400, 8, (7, 8, 10)), nonce="other")[:10] != two[:10]


def test_an_arrival_asks_the_same_whoever_makes_its_request() -> None:
    first, again = (workload(prompt_tokens=LENGTHS).request_at(Arrival(5, 1.0)) for _ in range(2))
    assert first == again
    assert first.messages != workload(prompt_tokens=LENGTHS).request_at(Arrival(6, 1.0)).messages


def test_what_does_not_fit_the_context_is_clipped_and_noted() -> None:
    request = workload(max_model_len=512).request_at(Arrival(0, 0.0, 9000, 500))
    assert request.clipped
    assert len(str(request.messages[0]["content"]).split()) + 10 + request.max_tokens <= 512
