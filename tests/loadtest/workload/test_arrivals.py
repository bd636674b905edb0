"""When requests of an open loop are due: laws, traces, sharing over workers, and the load test that sends."""

import itertools
import statistics
from pathlib import Path

import pytest

from loadtest.workload.arrivals import Arrival, ArrivalProcess, WorkerAssignment, is_assigned
from loadtest.workload.distributions import Distribution
from loadtest.workload.traces import read_trace
from testing.load_tests import Finished, RunLocust, two_processes
from testing.workloads import workload

LONG_S = 5000.0


def times(law: str, *, seed: int = 1, duration_s: float = LONG_S) -> list[float]:
    return [one.due_s for one in ArrivalProcess.parse(law).arrivals(seed=seed, duration_s=duration_s)]


def gaps(law: str) -> list[float]:
    due = times(law)
    return [after - before for before, after in itertools.pairwise(due)]


@pytest.mark.parametrize(
    ("law", "mean_s", "cv"),
    [
        ("constant:4", 0.25, 0.0),
        ("poisson:4", 0.25, 1.0),
        ("gamma:4,0.25", 0.25, 2.0),
        ("gamma:2,4", 0.5, 0.5),
    ],
)
def test_a_law_has_the_rate_and_the_burstiness_it_names(law: str, mean_s: float, cv: float) -> None:
    found = gaps(law)
    assert statistics.mean(found) == pytest.approx(mean_s, rel=0.05)
    assert statistics.stdev(found) / statistics.mean(found) == pytest.approx(cv, rel=0.05, abs=1e-6)


@pytest.mark.parametrize(("law", "quarter"), [("poisson:0-8", 1 / 16), ("constant:8-0", 7 / 16)])
def test_a_ramp_changes_its_rate_evenly(law: str, quarter: float) -> None:
    due = times(law)
    assert len(due) == pytest.approx(4 * LONG_S, rel=0.03)
    assert sum(one < LONG_S / 4 for one in due) / len(due) == pytest.approx(quarter, rel=0.05)


def test_arrivals_follow_the_seed() -> None:
    assert times("poisson:4") == times("poisson:4")
    assert times("poisson:4") != times("poisson:4", seed=2)


@pytest.mark.parametrize("law", ["poisson", "poisson:0", "poisson:4,2", "gamma:4", "gamma:4,0", "weibull:2"])
def test_a_nonsense_law_is_refused_with_the_forms(law: str) -> None:
    with pytest.raises(ValueError, match="gamma:RATE,BURSTINESS"):
        ArrivalProcess.parse(law)


def test_workers_share_every_arrival_once_and_again_after_a_change() -> None:
    shares = [WorkerAssignment(0.0, ("0", "1")), WorkerAssignment(50.0, ("1", "2", "3"))]
    for number, due_s in enumerate(times("poisson:4", duration_s=100)):
        senders = [name for name in "0123" if is_assigned(Arrival(number, due_s), name, shares)]
        assert len(senders) == 1
        assert senders[0] in shares[due_s >= 50.0].workers


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


LENGTHS = Distribution.parse("lognormal:100,0.6")


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


def facts(run: Finished) -> list[tuple[int, float, int]]:
    start = run.info["arrivals"]["start_unix_s"]
    rows = sorted(run.rows(), key=lambda row: row["user"])
    return [(row["user"], round(row["scheduled_unix_s"] - start, 3), row["max_tokens"]) for row in rows]


def test_an_open_loop_sends_what_is_due_in_one_process_as_in_two(
    run_locust: RunLocust, simulated: str, tmp_path: Path
) -> None:
    flags = {"arrivals": "poisson:5-25", "level_s": "4", "output_tokens": "lognormal:8,0.5"}
    one = run_locust(simulated, **flags)
    one.reports.rename(tmp_path / "one")
    one.reports = tmp_path / "one"
    two = run_locust(simulated, *two_processes(), **flags)
    assert [one.code, two.code] == [0, 0], one.said + two.said
    law = ArrivalProcess.parse("poisson:5-25")
    assert [due for _, due, _ in facts(one)] == [
        round(arrival.due_s, 3) for arrival in law.arrivals(seed=0, duration_s=4)
    ]
    assert facts(one) == facts(two)
    assert {row["worker"] for row in two.rows()} == {"0", "1"}
    for row in one.rows() + two.rows():
        assert row["outcome"] == "ok"
        assert -0.001 <= row["start_unix_s"] - row["scheduled_unix_s"] < 0.5
    assert one.info["schedule"] == []
    assert any(sample["due_to_sent_max_s"] for sample in one.rows("client-0.jsonl"))


def test_an_open_loop_does_not_wait_for_answers(run_locust: RunLocust, simulated: str) -> None:
    """Answers of two seconds, ten requests a second: a closed loop of one user would send one."""
    run = run_locust(simulated, arrivals="constant:10", level_s="1.5", output_tokens="100")
    rows = sorted(run.rows(), key=lambda row: row["start_unix_s"])
    assert len(rows) == 14
    assert rows[-1]["start_unix_s"] < rows[0]["start_unix_s"] + rows[0]["end_s"]
    assert {row["outcome"] for row in rows} == {"ok"}


def test_a_trace_is_replayed_at_its_times(run_locust: RunLocust, simulated: str, tmp_path: Path) -> None:
    (tmp_path / "trace.csv").write_text("time_s,prompt,output\n0,60,4\n1,80,5\n4,50,6\n")
    # The drawn lengths, which do not fit the context, are not the trace's.
    run = run_locust(simulated, trace=str(tmp_path / "trace.csv"), trace_speed="2", prompt_tokens="9000")
    assert run.code == 0, run.said
    assert [(user, due) for user, due, _ in facts(run)] == [(0, 0.0), (1, 0.5), (2, 2.0)]
    rows = sorted(run.rows(), key=lambda row: row["user"])
    assert [row["output_tokens"] for row in rows] == [4, 5, 6]
    assert [row["prompt_tokens"] for row in rows] == pytest.approx([60, 80, 50], abs=3)
    assert run.info["arrivals"]["trace"] == "trace.csv"


@pytest.mark.parametrize(
    ("changes", "flags", "said"),
    [
        ({"arrivals": "often"}, [], "'often' is not an arrival process"),
        ({"arrivals": "poisson:1", "levels": "1,2"}, [], "--levels cannot be combined"),
        ({"arrivals": "poisson:1", "think_s": "3"}, [], "an open loop has no users"),
        ({"arrivals": "poisson:1"}, ["-u", "3"], "-u is of users"),
        ({"trace": "/no/such/trace"}, [], "/no/such/trace does not exist"),
        ({"trace": "README.md"}, [], "not a time, prompt tokens and output tokens"),
    ],
)
def test_a_bad_open_loop_gets_one_sentence_and_exit_2(
    run_locust: RunLocust, simulated: str, changes: dict[str, str], flags: list[str], said: str
) -> None:
    run = run_locust(simulated, *flags, **changes)
    assert run.code == 2, run.said
    assert said in run.said
    assert "Traceback" not in run.said
    assert not run.reports.exists()
