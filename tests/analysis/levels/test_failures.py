"""Failed requests: which objectives they miss by their own times, and whether load is their cause."""

from pathlib import Path

import pytest

from analysis.evidence.evidence import Evidence, gather_evidence
from analysis.levels.failures.classes import Cause, FailureClass, cause_of
from analysis.levels.requests import RequestFigures
from analysis.reading.runs import find_runs, read_run
from loadtest.record import Outcome, RequestRecord, Slo
from testing.runs.folders import make_folder, row

SLO = Slo(ttft_p95_s=2.0, tpot_p95_s=0.1)
BEGIN, END = 100.0, 200.0
BUSY = FailureClass(outcome=Outcome.HTTP_ERROR, http_status=503)
TOO_MANY = FailureClass(outcome=Outcome.HTTP_ERROR, http_status=429)
TOO_LONG = FailureClass(outcome=Outcome.HTTP_ERROR, http_status=400)


def answered(number: int, begin: float = BEGIN, user: int = 1, users: int = 1) -> RequestRecord:
    """Half a second each: TTFT 0.1 s and TPOT 0.02 s of 21 tokens."""
    return row(
        number,
        request_id=f"{begin}-{user}-{number}",
        user=user,
        level_users=users,
        start_unix_s=begin + number / 2,
        chunk_s=[0.1 + 0.02 * chunk for chunk in range(20)] + [0.5],
        output_tokens=21,
        end_s=0.5,
    )


def failed(number: int, *, after_s: float, chunks: list[float], **changes: object) -> RequestRecord:
    values = {
        "user": 2,
        "start_unix_s": BEGIN + number / 2,
        "chunk_s": chunks,
        "end_s": after_s,
        "output_tokens": None,
        "http_status": 200,
    }
    return row(number, request_id=f"failed-{number}", **(values | changes))


def evidence_of(folder: Path, rows: list[RequestRecord], *levels: tuple[float, float, int]) -> Evidence:
    make_folder(folder, rows, schedule=levels or [(BEGIN, END, 2)], ended_unix_s=END + 1000)
    (found,) = find_runs(folder)
    return gather_evidence([read_run(found)], slo=SLO)


def figures_of(folder: Path, *more: RequestRecord) -> RequestFigures:
    (level,) = evidence_of(folder, [answered(number) for number in range(200)] + list(more)).levels
    return level.requests


def test_a_gateway_that_cuts_streams_makes_no_misses_of_ttft_or_tpot(tmp_path: Path) -> None:
    """Their first token came in time, and their tokens came fast: only an error is left."""
    cut = [0.1 + 0.015 * chunk for chunk in range(300)]
    gone = [
        failed(n, after_s=5.0, chunks=cut, outcome=Outcome.TRUNCATED, error="cut") for n in range(10, 110)
    ]
    found = figures_of(tmp_path / "r", *gone)
    assert (found.ttft_miss.misses, found.tpot_miss.misses) == (0, 0)
    assert found.ttft_miss.n == found.tpot_miss.n == found.n == 299
    assert found.errors == 100
    assert found.tpot_s.p95 is not None
    assert found.tpot_s.p95 <= 0.021


def test_refused_requests_say_nothing_about_ttft(tmp_path: Path) -> None:
    gone = [
        failed(n, after_s=0.01, chunks=[], outcome=Outcome.HTTP_ERROR, http_status=400) for n in range(100)
    ]
    found, plain = figures_of(tmp_path / "a", *gone), figures_of(tmp_path / "b")
    assert (found.ttft_miss, found.ttft_s, found.n) == (plain.ttft_miss, plain.ttft_s, plain.n)
    assert (found.goodput_rps, found.overload.misses) == (plain.goodput_rps, 0)
    assert (found.errors, found.ended) == (100, plain.n + 100)


def test_answers_without_text_have_no_ttft_however_long_they_took(tmp_path: Path) -> None:
    gone = [failed(n, after_s=3.0, chunks=[], outcome=Outcome.EMPTY) for n in range(0, 200, 7)]
    found = figures_of(tmp_path / "r", *gone)
    assert found.ttft_miss.misses == 0
    assert found.errors == sum(one.count for one in found.failures) > 20


@pytest.mark.parametrize("outcome", [Outcome.TIMEOUT, Outcome.DISCONNECTED, Outcome.CANCELLED])
@pytest.mark.parametrize(
    ("after_s", "chunks", "missed", "counted"),
    [(1.9, [], 0, 0), (2.5, [], 1, 1), (5.0, [1.9], 0, 1), (5.0, [2.5], 1, 1)],
)
def test_a_failed_request_misses_ttft_by_its_own_times_only(
    tmp_path: Path, outcome: Outcome, after_s: float, chunks: list[float], missed: int, counted: int
) -> None:
    found = figures_of(tmp_path / "r", failed(50, after_s=after_s, chunks=chunks, outcome=outcome))
    assert found.ttft_miss.misses == missed
    assert found.ttft_miss.n == 199 + counted


def test_a_percentile_that_rests_on_a_timeout_is_only_a_lower_bound(tmp_path: Path) -> None:
    gone = [failed(n, after_s=10.0, chunks=[], outcome=Outcome.TIMEOUT) for n in range(0, 160, 2)]
    found = figures_of(tmp_path / "r", *gone).ttft_s
    assert found.p50 == pytest.approx(0.099)
    assert found.p95 is None
    assert found.p95_at_least == pytest.approx(9.999)


def test_a_slow_stream_that_breaks_off_misses_tpot(tmp_path: Path) -> None:
    slow = [0.1 + 0.2 * chunk for chunk in range(20)]
    found = figures_of(tmp_path / "r", failed(50, after_s=5.0, chunks=slow, outcome=Outcome.STREAM_ERROR))
    assert found.tpot_miss.misses == 1


def test_chunks_of_a_broken_stream_hold_as_many_tokens_as_those_of_whole_ones(tmp_path: Path) -> None:
    """Four tokens a chunk, 0.2 s between chunks: 50 ms a token, which is no miss."""
    whole = [
        row(n, start_unix_s=BEGIN + n, chunk_s=[0.1, 0.3, 0.5, 0.7], output_tokens=13, end_s=0.7)
        for n in range(90)
    ]
    cut = failed(50, after_s=5.0, chunks=[0.1 + 0.2 * n for n in range(20)], outcome=Outcome.TRUNCATED)
    (level,) = evidence_of(tmp_path / "r", [*whole, cut]).levels
    assert (level.requests.tpot_miss.misses, level.requests.tpot_miss.n) == (0, 91)


def test_users_who_pause_for_long_do_not_hide_their_failures(tmp_path: Path) -> None:
    """Five failures in a row with pauses of 1, 2, 4, 8 and 16 s keep a user away for 31 s of 100."""
    busy = {"after_s": 0.01, "chunks": [], "outcome": Outcome.HTTP_ERROR, "http_status": 503}
    gone = [failed(2 * n, **busy, pause_s=n + 1.0) for n in (0, 1, 3, 7, 15)]  # type: ignore[arg-type]
    found = figures_of(tmp_path / "r", *gone)
    assert found.errors == 5
    assert found.overload.fraction == pytest.approx(31 / (31 + 199), abs=0.005)
    assert found.overload.n == 204


@pytest.mark.parametrize(
    ("failure", "by_users", "cause"),
    [
        (BUSY, [(1, 0, 60), (4, 0, 240), (6, 0, 360), (8, 90, 450)], "load"),
        (BUSY, [(1, 6, 60), (4, 24, 240), (8, 48, 480)], "not load"),
        (BUSY, [(2, 30, 60), (4, 100, 150), (8, 300, 350)], "load"),
        (BUSY, [(1, 0, 60), (2, 1, 120), (4, 3, 240), (8, 5, 480)], "not load"),
        (BUSY, [(1, 0, 60), (8, 1, 100)], "unclear"),
        (BUSY, [(8, 40, 100)], "unclear"),
        (BUSY, [(1, 10, 100)], "not load"),
        (TOO_MANY, [(1, 6, 60), (4, 24, 240)], "load"),
        (TOO_LONG, [(1, 0, 60), (8, 90, 450)], "not load"),
        (FailureClass(outcome=Outcome.EMPTY), [(1, 0, 60), (8, 90, 450)], "not load"),
        (FailureClass(outcome=Outcome.TIMEOUT), [(1, 0, 60), (8, 90, 450)], "load"),
    ],
)
def test_load_is_the_cause_of_what_appears_or_rises_with_the_users(
    failure: FailureClass, by_users: list[tuple[int, int, int]], cause: Cause
) -> None:
    assert cause_of(failure, by_users) == cause


def test_failures_in_bursts_need_more_of_them_to_prove_a_rise() -> None:
    by_users = [(1, 2, 100), (8, 20, 200)]
    assert cause_of(BUSY, by_users) == "load"
    assert cause_of(BUSY, by_users, effect=6.0) == "not load"


def test_the_level_stands_on_the_others_where_as_many_fail_at_every_level(tmp_path: Path) -> None:
    rows, levels = [], []
    for number, users in enumerate((1, 2, 4)):
        begin = BEGIN + 200.0 * number
        levels.append((begin, begin + 100.0, users))
        for user in range(users):
            rows += [answered(n, begin, user, users) for n in range(200)]
        for n in range(0, 200, 10):
            rows += [
                failed(
                    n, after_s=0.01, chunks=[], outcome=Outcome.HTTP_ERROR, http_status=503, user=user + 100,
                    start_unix_s=begin + n / 2 + 0.3, error=f"no healthy upstream (request {n}a)",
                )
                for user in range(users)
            ]  # fmt: skip
    found = evidence_of(tmp_path / "r", rows, *levels)
    (total,) = found.failures
    assert (total.failure, total.cause, total.count) == (BUSY, "not load", 7 * 20)
    assert total.words == "no healthy upstream (request 0a)"
    assert total.seen_at == [1, 2, 4]
    assert [level.trusted for level in found.levels] == [True] * 3
    assert [level.requests.overload.misses for level in found.levels] == [0, 0, 0]
    assert [level.requests.errors for level in found.levels] == [20, 40, 80]
