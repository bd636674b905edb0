"""What the analysis says of an open loop: slices, scheduled TTFT, late sending, why there is no answer."""

from pathlib import Path

import pytest

from analysis.capacity.answer import recommend
from analysis.levels.open_loop import slices_of
from analysis.reading.runs import find_runs, read_run
from analysis.reporting.words import sentences, words
from loadtest.record import ArrivalsInfo, ClientSample, Outcome, RequestRecord, Slo, encode_line
from testing.runs.folders import make_folder, row

START = 1000.0


def due_row(number: int, *, late_s: float = 0.0, ttft_s: float = 0.2, **changes: object) -> RequestRecord:
    """Due every 0.1 s, an answer of ten tokens in 0.5 s."""
    due = START + number / 10
    return row(
        number,
        scheduled_unix_s=due,
        start_unix_s=due + late_s,
        sent_s=0.001,
        chunk_s=[0.001 + ttft_s + 0.05 * i for i in range(10)],
        end_s=0.001 + ttft_s + 0.46,
        output_tokens=10,
        level_users=None,
        **changes,
    )


def open_run(folder: Path, rows: list[RequestRecord], *, lag_s: float = 0.0):
    arrivals = ArrivalsInfo(law="constant:10", start_unix_s=START, end_unix_s=START + 20)
    make_folder(folder, rows, arrivals=arrivals)
    for worker in (0, 1):
        health = [
            ClientSample(
                unix_s=START + second,
                loop_lag_max_s=lag_s * worker,
                loop_lag_p99_s=lag_s * worker,
                cpu=0.1,
                in_flight=6,
                started_total=0,
                ended_total=0,
            )
            for second in range(20)
        ]
        (folder / f"client-{worker}.jsonl").write_bytes(b"".join(map(encode_line, health)))
    (found,) = find_runs(folder)
    return read_run(found)


def test_slices_count_what_was_due_ended_and_in_flight(tmp_path: Path) -> None:
    slices = slices_of(open_run(tmp_path / "r", [due_row(n) for n in range(200)]))
    assert [(one.from_s, one.to_s, one.due) for one in slices] == [
        (0.0, 5.0, 50), (5.0, 10.0, 50), (10.0, 15.0, 50), (15.0, 20.0, 50)
    ]  # fmt: skip
    assert slices[1].ended_rps == pytest.approx(10)
    assert slices[1].in_flight == pytest.approx(6.6)
    assert slices[1].output_tok_s == pytest.approx(100)
    assert slices[1].ttft_s.p95 == pytest.approx(0.2)
    assert slices[1].due_ttft_s.p95 == pytest.approx(0.201)


def test_ttft_from_due_shows_what_a_late_load_generator_hides(tmp_path: Path) -> None:
    run = open_run(tmp_path / "r", [due_row(n, late_s=0.3 if n >= 100 else 0.0) for n in range(200)])
    early, *_, late = slices_of(run)
    assert early.due_ttft_s.p95 == pytest.approx(0.201)
    assert late.ttft_s.p95 == pytest.approx(0.2)
    assert late.due_ttft_s.p95 == pytest.approx(0.501)
    answer = recommend([run], slo=Slo())
    assert any("requests were sent late, p99 301 ms" in warning for warning in sentences(answer.warnings))


def test_requests_sent_in_time_get_no_warning(tmp_path: Path) -> None:
    run = open_run(tmp_path / "r", [due_row(n) for n in range(200)])
    assert sum(one.due for one in slices_of(run)) == 200
    assert not any("late" in warning for warning in sentences(recommend([run], slo=Slo()).warnings))


def test_requests_given_up_count_as_slow_and_not_as_missing(tmp_path: Path) -> None:
    """A tenth never had a token: the p50 stands, the p95 is nobody's."""
    gone = {"chunk_s": [], "outcome": Outcome.CANCELLED, "end_s": 3.0, "output_tokens": None}
    rows = [due_row(n) for n in range(200)]
    rows = [row(n, **{"scheduled_unix_s": one.scheduled_unix_s, "start_unix_s": one.start_unix_s, **gone})
            if n % 10 == 0 else one for n, one in enumerate(rows)]  # fmt: skip
    first = slices_of(open_run(tmp_path / "r", rows))[0]
    assert first.ttft_s.p50 == pytest.approx(0.2)
    assert first.ttft_s.p95 is None
    assert [first.errors, first.cancelled] == [0, 5]


def test_one_late_worker_makes_a_slice_untrusted(tmp_path: Path) -> None:
    """Also where the mean over the workers would be good enough."""
    run = open_run(tmp_path / "r", [due_row(n) for n in range(200)], lag_s=0.008)
    assert all("event-loop lag 8.0 ms" in words(one.why_not[0]) for one in slices_of(run))


def test_an_open_loop_has_no_number_of_users_and_says_so(tmp_path: Path) -> None:
    answer = recommend([open_run(tmp_path / "r", [due_row(n) for n in range(200)])], slo=Slo())
    assert answer.refused
    assert answer.headline.max_users is None
    assert "open loop" in words(answer.reasons[0])
    assert len(answer.open_loop) == 4
