"""`locust -f scenarios/chat.py` with arrivals or a trace, as a user runs it."""

from pathlib import Path

import pytest

from loadtest.workload.arrivals import Arrival, ArrivalProcess
from testing.inputs.workloads import workload
from testing.load_tests import Finished, RunLocust, two_processes


def said(arrival: Arrival, **changes: object) -> list[str]:
    (message,) = workload(**{"max_model_len": 4096, **changes}).request_at(arrival).messages
    return str(message["content"]).split()


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
        ({"arrivals": "poisson:1"}, ["-u", "3"], "-u cannot be combined with --arrivals"),
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
