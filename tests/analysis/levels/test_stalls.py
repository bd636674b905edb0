"""How long an answer stands still: which answers have a stall, and what a level says of them."""

import math
from pathlib import Path

import numpy as np
import pytest

from analysis.evidence.evidence import gather_evidence
from analysis.levels.level import Level
from analysis.notes import GeneratorFroze
from analysis.reading.runs import find_runs, read_run
from loadtest.record import ClientSample, Outcome, RequestRecord, Slo, encode_line
from testing.runs.folders import make_folder, row

BEGIN, END = 100.0, 160.0
COUNT = 118
"""Answers that end in the level, two a second."""


def answer(number: int, *gaps_s: float, **changes: object) -> RequestRecord:
    """An answer whose first event comes after 0.1 s, and each further one after one of the gaps."""
    chunk_s = (0.1 + np.concatenate([[0.0], np.cumsum(gaps_s)])).round(6).tolist()
    values = {
        "start_unix_s": BEGIN + number / 2,
        "chunk_s": chunk_s,
        "end_s": chunk_s[-1] + 0.01,
        "output_tokens": len(chunk_s),
    }
    return row(number, **(values | changes))


def level_of(folder: Path, rows: list[RequestRecord], *, stall_p95_s: float | None = None) -> Level:
    make_folder(folder, rows, schedule=[(BEGIN, END, 1)], settings={"settle_s": 0.0})
    return judged(folder, stall_p95_s=stall_p95_s)


def judged(folder: Path, *, stall_p95_s: float | None) -> Level:
    (found,) = find_runs(folder)
    (level,) = gather_evidence([read_run(found)], slo=Slo(stall_p95_s=stall_p95_s)).levels
    return level


def standing_still(stall_s: float, *, every: int) -> list[RequestRecord]:
    """Answers of 0.31 s and a stall in every so manieth."""
    return [answer(number, 0.1, stall_s if number % every == 0 else 0.1, 0.1) for number in range(COUNT)]


def test_a_stall_is_the_longest_gap_of_an_answer_wherever_it_is(tmp_path: Path) -> None:
    gaps = [(0.3, 0.1, 0.1), (0.1, 0.3, 0.1), (0.1, 0.1, 0.3)]
    rows = [answer(number, *gaps[number % 3]) for number in range(COUNT)]
    found = level_of(tmp_path / "r", rows).requests
    assert found.stall_s.p50 == found.stall_s.p95 == pytest.approx(0.3)
    assert found.stalled == (1.0, 0.0, 0.0)


def test_rows_in_another_order_keep_their_own_stall(tmp_path: Path) -> None:
    """The rows stand in the order of their ends, the columns too; these end in another order."""
    rows = [answer(0, 2.0, 0.1), answer(1), answer(2, 0.2, 0.3), answer(3, 0.1)]
    (found,) = find_runs(make_folder(tmp_path / "r", rows))
    longest_s = read_run(found).requests.longest_gap_s.tolist()
    assert longest_s == pytest.approx([math.nan, 0.3, 0.1, 2.0], nan_ok=True)


def test_shares_and_percentiles_are_those_of_the_answers(tmp_path: Path) -> None:
    found = level_of(tmp_path / "r", standing_still(0.6, every=10)).requests
    share = math.ceil(COUNT / 10) / COUNT
    assert found.stalled == pytest.approx((share, share, 0.0))
    assert found.stall_s.p50 == pytest.approx(0.1)
    assert found.stall_s.p95 == pytest.approx(0.6)
    assert found.tpot_s.p95 == pytest.approx((0.1 + 0.6 + 0.1) / 3)


def test_an_answer_with_fewer_than_two_events_has_none(tmp_path: Path) -> None:
    single = [answer(number, output_tokens=1) for number in range(COUNT)]
    found = level_of(tmp_path / "single", single, stall_p95_s=0.5).requests
    assert found.stall_s.p50 is None
    assert all(map(math.isnan, found.stalled))
    assert found.stall_miss.n == 0
    both = single[::2] + standing_still(0.6, every=1)[1::2]
    found = level_of(tmp_path / "both", both, stall_p95_s=0.5).requests
    assert found.stalled == (1.0, 1.0, 0.0)
    assert found.stall_miss.n == len(single) // 2


def test_events_count_and_not_their_tokens_or_kinds(tmp_path: Path) -> None:
    """Several tokens in an event, as with speculative decoding, and reasoning before the answer."""
    many = {"output_tokens": 40, "chunk_tokens": [10, 20, 30, 40], "chunk_kinds": "rrct"}
    rows = [answer(number, 0.1, 0.4, 0.2, **many) for number in range(COUNT)]
    found = level_of(tmp_path / "r", rows).requests
    assert found.stall_s.p50 == pytest.approx(0.4)
    assert found.tpot_s.p50 == pytest.approx(0.7 / 30)


def test_what_broke_off_counts_by_its_events_and_what_we_cancelled_does_not(tmp_path: Path) -> None:
    cut = {"outcome": Outcome.TRUNCATED, "output_tokens": None}
    ours = {"outcome": Outcome.CANCELLED, "output_tokens": None}
    rows = [
        answer(number, 0.1, 0.4, **(cut if number % 3 == 0 else {}))
        if number % 3 < 2
        else answer(number, 3.0, **ours)
        for number in range(COUNT)
    ]
    found = level_of(tmp_path / "r", rows, stall_p95_s=0.5).requests
    assert found.stalled == (1.0, 0.0, 0.0)
    assert found.stall_miss.misses == 0
    assert found.stall_miss.n == found.n < COUNT


def test_a_gateway_that_gathers_chunks_hides_stalls(tmp_path: Path) -> None:
    rows = [answer(number, *[0.0] * 10, 0.3, *[0.0] * 10) for number in range(COUNT)]
    found = level_of(tmp_path / "r", rows, stall_p95_s=0.1).requests
    assert found.gathered
    assert found.stall_s.p50 is None
    assert found.stall_miss.n == 0


def test_without_an_objective_nothing_is_missed_and_with_one_goodput_counts_it(tmp_path: Path) -> None:
    rows = standing_still(0.6, every=4)
    free = level_of(tmp_path / "free", rows).requests
    bound = level_of(tmp_path / "bound", rows, stall_p95_s=0.5).requests
    assert free.stall_miss.n == 0
    assert free.stall_s == bound.stall_s
    assert bound.stall_miss.fraction == pytest.approx(0.25, abs=0.01)
    assert bound.goodput_rps == pytest.approx((1.0 - bound.stall_miss.fraction) * free.goodput_rps)


def health(folder: Path, *, frozen_s: float, at: float = BEGIN + 30.0) -> None:
    """The load generator's health, with one moment of standing still in the second that ends at `at`."""
    samples = [
        ClientSample(
            unix_s=BEGIN + second,
            loop_lag_max_s=frozen_s if BEGIN + second == at else 0.001,
            loop_lag_p99_s=0.001,
            cpu=0.1,
            in_flight=1,
            started_total=0,
            ended_total=0,
        )
        for second in range(int(END - BEGIN) + 5)
    ]
    (folder / "client-0.jsonl").write_bytes(b"".join(map(encode_line, samples)))


def test_a_load_generator_that_stood_still_is_not_the_servers_stall(tmp_path: Path) -> None:
    """Two answers that were under way then stand still, and no others."""
    still = range(58, 60)
    seen = [answer(number, 0.1, 0.7 if number in still else 0.15, 0.14) for number in range(COUNT)]
    folder = tmp_path / "r"
    assert level_of(folder, seen, stall_p95_s=0.5).trusted
    health(folder, frozen_s=0.6)
    (doubt,) = judged(folder, stall_p95_s=0.5).why_not
    assert isinstance(doubt, GeneratorFroze)
    assert doubt.lag_s == pytest.approx(0.6)
    assert doubt.share == pytest.approx(2 / COUNT, abs=0.002)
    assert judged(folder, stall_p95_s=None).trusted  # no other figure hangs on one moment
    health(folder, frozen_s=0.2)
    assert judged(folder, stall_p95_s=0.5).trusted  # too short to be most of a stall of 0.5 s
    health(folder, frozen_s=0.6, at=BEGIN + 50.0)
    assert judged(folder, stall_p95_s=0.5).trusted  # nobody stood still then
