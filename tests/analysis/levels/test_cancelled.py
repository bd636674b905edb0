"""Requests that we cancelled: counted, no errors, and misses of TTFT only where they were late already."""

from pathlib import Path

import pytest

from analysis.evidence.evidence import gather_evidence
from analysis.levels.requests import RequestFigures
from analysis.reading.runs import find_runs, read_run
from loadtest.record import Outcome, RequestRecord, Slo
from testing.runs.folders import make_folder, row

BEGIN, END = 100.0, 150.0
TTFT_S = 2.0
SLO = Slo(ttft_p95_s=TTFT_S, tpot_p95_s=1.0)


def answered(number: int) -> RequestRecord:
    """One user's requests, half a second each, one after the other."""
    return row(number, start_unix_s=BEGIN + number / 2, chunk_s=[0.1, 0.3, 0.49], end_s=0.5)


def cancelled(number: int, *, after_s: float, chunks: list[float]) -> RequestRecord:
    return row(
        number,
        user=2,
        start_unix_s=BEGIN + number / 2,
        chunk_s=chunks,
        end_s=after_s,
        output_tokens=None,
        outcome=Outcome.CANCELLED,
    )


def figures_of(folder: Path, *more: RequestRecord) -> RequestFigures:
    rows = [answered(number) for number in range(100)]
    make_folder(folder, [*rows, *more], schedule=[(BEGIN, END, 1)])
    (found,) = find_runs(folder)
    (level,) = gather_evidence([read_run(found)], slo=SLO).levels
    return level.requests


def test_what_we_cancelled_is_counted_apart_and_is_no_error(tmp_path: Path) -> None:
    gone = [cancelled(n, after_s=0.2, chunks=[]) for n in (20, 40, 60)]
    plain, level = figures_of(tmp_path / "a"), figures_of(tmp_path / "b", *gone)
    assert (plain.cancelled, level.cancelled) == (0, 3)
    assert level.n == plain.n == 99  # the last one ends with the level
    assert level.errors == level.overload.misses == 0
    assert level.ttft_s == plain.ttft_s
    assert level.goodput_rps == plain.goodput_rps


@pytest.mark.parametrize(
    ("after_s", "chunks", "missed"),
    [
        (TTFT_S - 0.1, [], 0),  # it might still have been in time
        (TTFT_S + 0.1, [], 1),
        (3 * TTFT_S, [TTFT_S - 0.1], 0),  # its first token had come
        (3 * TTFT_S, [TTFT_S + 0.1], 1),
    ],
)
def test_a_cancelled_request_misses_ttft_only_if_it_was_late_already(
    tmp_path: Path, after_s: float, chunks: list[float], missed: int
) -> None:
    level = figures_of(tmp_path / "r", cancelled(50, after_s=after_s, chunks=chunks))
    assert level.cancelled == 1
    assert level.ttft_miss.misses == missed
    assert level.errors == 0
    assert level.tpot_miss.misses == 0


def test_an_error_is_no_cancellation(tmp_path: Path) -> None:
    failed = row(
        50, user=2, start_unix_s=BEGIN + 25, chunk_s=[], end_s=0.1, output_tokens=None,
        outcome=Outcome.HTTP_ERROR, http_status=429,
    )  # fmt: skip
    level = figures_of(tmp_path / "r", failed)
    assert (level.cancelled, level.errors, level.overload.misses, level.ttft_miss.misses) == (0, 1, 1, 0)
