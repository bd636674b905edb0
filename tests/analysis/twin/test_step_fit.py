"""The history from which step times are fitted: what is in flight at an instant, and odd stamps."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from msgspec import structs

from analysis.evidence.evidence import gather_evidence
from analysis.reading.columns import Requests
from analysis.reading.runs import Run, find_runs, read_run
from analysis.statistics.arrays import Floats
from analysis.twin.calibration import CalibrationError, ServerFlags, calibrate
from analysis.twin.step_fit import SEGMENT_TOKENS, STEP_TERMS, StepHistory, step_sums, why_no_steps
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run

FLAGS = ServerFlags(max_num_seqs=64, async_scheduling=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose first row to end is not the first to begin."""
    path = tmp_path_factory.mktemp("twin") / "run"
    write_run(path, small_engine(), Plan(levels=(8, 12), level_s=20.0, seed=3))
    (found,) = find_runs(path)
    return read_run(found)


def first_s(rows: Requests) -> Floats:
    return np.asarray(rows.start_unix_s + rows.first_chunk_s)


def test_the_tokens_held_are_those_of_the_requests_in_flight(run: Run) -> None:
    rows = run.requests
    first, last = first_s(rows), rows.start_unix_s + rows.last_chunk_s
    assert first[0] > first.min()
    row = int(np.flatnonzero((rows.chunks > 60) & (first > first.min() + 10))[0])
    design, took_s, _ = StepHistory.of(rows).design(np.array([[row, 24]]), 1)
    ends = first[row] + np.cumsum(rows.gap_s[rows.gap_start[row] :][: 24 + SEGMENT_TOKENS], dtype=np.float64)
    held = 0.0
    for begin, end in pairwise(ends[23:]):
        at = (begin + end) / 2
        live = (first < at) & (at < last)
        rate = (rows.chunks[live] - 1) / (last - first)[live]
        held += float(np.sum(rows.prompt_tokens[live] + rate * (at - first[live])))
    ended = (ends[23] + ends[24]) / 2, ends[-1] + (ends[-1] - ends[-2]) / 2
    prefilled = float(rows.prompt_tokens[(ended[0] < first) & (first < ended[1])].sum())
    assert design[0, 2] == pytest.approx(held + prefilled, rel=1e-6)
    assert took_s[0] == pytest.approx(ends[-1] - ends[23])


def test_a_pooled_run_without_known_lengths_is_left_out(run: Run) -> None:
    blind = replace(run.requests, prompt_tokens=np.full(len(run.requests), np.nan))
    other = replace(run, info=structs.replace(run.info, run_id="blind"), requests=blind)
    evidence = gather_evidence([run, other], slo=Slo())
    alone = gather_evidence([run], slo=Slo())
    assert StepHistory.of(blind).knows_lengths is False
    both, one = (calibrate(known, known.levels, FLAGS).service.engine for known in (evidence, alone))
    for name in STEP_TERMS:
        assert getattr(both, name) == pytest.approx(getattr(one, name)), name


def together(rows: Requests, share: float) -> Requests:
    """Lets this share of the gaps vanish: their tokens arrive with the token after them."""
    gone = np.random.default_rng(0).random(len(rows.gap_s)) < share
    owner = np.repeat(np.arange(len(rows)), np.diff(rows.gap_start))
    gap = rows.gap_s.astype(np.float64)
    for at in np.flatnonzero(gone[:-1]):
        if owner[at] == owner[at + 1]:
            gap[at + 1] += gap[at]
            gap[at] = 0.0
    return replace(rows, gap_s=gap.astype(np.float32))


def test_tokens_that_arrive_together_do_not_move_the_step_time(run: Run) -> None:
    """Stretches of eight such tokens take no time; they are not skipped, which would make steps too long."""
    evidence = gather_evidence([replace(run, requests=together(run.requests, 0.3))], slo=Slo())
    found = calibrate(evidence, evidence.levels, FLAGS).service.engine
    true = small_engine()
    seconds = found.step_base_s + 10 * (found.step_per_seq_s + found.step_per_kv_token_s * 172)
    assert seconds == pytest.approx(true.step_base_s + 10 * true.step_per_seq_s, rel=0.1)


def test_a_gateway_that_gathers_tokens_shows_no_steps(run: Run) -> None:
    evidence = gather_evidence([replace(run, requests=together(run.requests, 0.7))], slo=Slo())
    with pytest.raises(CalibrationError, match="with 8 users most tokens arrive together"):
        calibrate(evidence, evidence.levels, FLAGS)


def test_a_level_says_why_it_shows_no_steps(run: Run) -> None:
    (level, _) = gather_evidence([run], slo=Slo()).levels
    rows = run.requests
    for changes, why in (
        ({}, None),
        ({"prompt_tokens": np.full(len(rows), np.nan)}, "the rows hold no token counts"),
        ({"output_tokens": 2 * rows.output_tokens}, "the number of chunks differs"),
    ):
        found = why_no_steps(StepHistory.of(replace(rows, **changes)), level)
        assert found is None if why is None else why in str(found)
        assert (step_sums(StepHistory.of(replace(rows, **changes)), level, 1) is None) == (why is not None)
