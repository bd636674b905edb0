"""Conversations that a run shows, and what of them can be found again."""

from dataclasses import replace

import numpy as np
import pytest

from analysis.evidence.evidence import gather_evidence
from analysis.evidence.lifetimes import censoring_weights
from analysis.evidence.turns import reusable_tokens, turns_of
from analysis.reading.runs import Run
from analysis.walls.prefix_cache import level_hits
from testing.truth.prefix_services import SLO, run_of
from testing.truth.three_turns import three_turns


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(three_turns(), (2, 4), seed=0)


def test_answers_that_are_not_sent_back_as_they_were_are_not_reusable(run):
    forgetful = replace(three_turns(), chatting=replace(three_turns().chatting, answers_cached=False))
    other = run_of(forgetful, (2, 4), seed=0)
    for one, kept in ((run, True), (other, False)):
        evidence = gather_evidence([one], slo=SLO)
        turns = turns_of([one], block_tokens=16, shared_prefix=0)
        assert turns is not None
        assert turns.answers_cached is kept
        reusable = reusable_tokens(one.requests, kept, 16, 0)
        (found, *_) = level_hits([one], evidence.levels, lambda _, known=reusable: known)
        assert found.share == pytest.approx(1.0, abs=0.01)


def test_what_the_end_of_a_run_cut_stands_for_longer_ones():
    rng = np.random.default_rng(0)
    true, cut = rng.geometric(0.2, 20_000), rng.geometric(0.15, 20_000)
    weight = censoring_weights(np.minimum(true, cut).astype(float), true <= cut)
    assert weight.sum() == pytest.approx(1.0)
    assert float(weight @ np.minimum(true, cut)) == pytest.approx(5.0, rel=0.03)
    assert censoring_weights(np.array([1.0, 2.0, 3.0]), np.array([True, False, True])) == pytest.approx(
        [1 / 3, 0.0, 2 / 3]
    )
