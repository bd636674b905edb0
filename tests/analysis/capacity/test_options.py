"""Options are named only where they move the limit."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.capacity.headline import headline_of
from analysis.capacity.judgement import Judgement, judge
from analysis.capacity.options import options_of
from analysis.notes import LessRefusal, RaiseMaxNumSeqs, SecondReplica
from analysis.reading.runs import find_runs, read_run
from analysis.walls.names import WallName
from analysis.walls.placed import PlacedWall, placed_by_draws, placed_exactly
from loadtest.record import Slo
from testing.runs.virtual import Plan, small_engine, write_run


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    folder: Path = tmp_path_factory.mktemp("reports") / "run"
    write_run(folder, small_engine(), Plan(levels=(8, 16, 20), level_s=20.0))
    return judge([read_run(found) for found in find_runs(folder)], slo=Slo(), quick=True)


def named(judged: Judgement, *walls: PlacedWall) -> set[type]:
    headline = headline_of(judged.evidence, walls, confidence=0.9)
    return {type(one.change) for one in options_of(replace(judged, walls=walls), walls, headline, None)}


def spread(judged: Judgement, name: WallName, x: float) -> PlacedWall:
    draws = np.random.default_rng(0).normal(x, 0.5, 300)
    return placed_by_draws(name, judged.evidence, x, draws, measured=True)


def test_a_second_replica_is_no_answer_to_refusals(judged: Judgement) -> None:
    assert named(judged, spread(judged, "errors", 12.0)) == {LessRefusal}


def test_an_option_that_moves_nothing_is_not_named(judged: Judgement) -> None:
    """More slots gain nothing where another wall lies at the same number of users."""
    slots = placed_exactly("max_num_seqs", judged.evidence, 12.0)
    tied = named(judged, slots, spread(judged, "ttft", 12.05))
    assert SecondReplica in tied
    assert RaiseMaxNumSeqs not in tied
    assert RaiseMaxNumSeqs in named(judged, slots, spread(judged, "ttft", 15.0))


def test_no_option_is_worse_than_the_limit(judged: Judgement) -> None:
    walls = [*judged.walls, spread(judged, "tpot", 16.5)]
    headline = headline_of(judged.evidence, walls, confidence=0.9)
    assert headline.estimate_x is not None
    for option in options_of(judged, walls, headline, None):
        assert option.users_x is None or option.users_x > headline.estimate_x
        assert option.users_x is None or math.isfinite(option.users_x)
