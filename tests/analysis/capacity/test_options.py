"""Options are named only where they move the limit."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from analysis.answers.capacity import Option
from analysis.capacity.headline import headline_of
from analysis.capacity.judgement import Judgement, judge
from analysis.capacity.options import options_of
from analysis.notes import FasterGateway, LessRefusal, LighterWork, RaiseMaxNumSeqs, SecondReplica
from analysis.reading.runs import find_runs, read_run
from analysis.reporting.words import words
from analysis.walls.names import WallName
from analysis.walls.placed import PlacedWall, placed_by_draws, placed_exactly
from loadtest.record import Slo
from testing.runs.virtual import Plan, level, small_engine, write_run


@pytest.fixture(scope="module")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Judgement:
    folder: Path = tmp_path_factory.mktemp("reports") / "run"
    write_run(folder, small_engine(), Plan(levels=(8, 16, 20), level_s=20.0))
    return judge([read_run(found) for found in find_runs(folder)], slo=Slo(), quick=True)


def options_at(judged: Judgement, *walls: PlacedWall) -> list[Option]:
    headline = headline_of(judged.evidence, walls, confidence=0.9)
    return options_of(replace(judged, walls=walls), walls, headline, None)


def named(judged: Judgement, *walls: PlacedWall) -> set[type]:
    return {type(one.change) for one in options_at(judged, *walls)}


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


def with_means(judged: Judgement, *, client_s: float, engine_s: float) -> Judgement:
    levels = []
    for users in (8, 16, 20):
        one = level(users)
        requests = replace(one.requests, ttft_mean_s=client_s * users)
        server = replace(one.server, ttft_mean_s=engine_s * users)
        levels.append(replace(one, requests=requests, server=server))
    return replace(judged, evidence=replace(judged.evidence, levels=levels))


def test_a_gateway_that_keeps_requests_before_an_idle_engine_is_the_only_thing_to_mend(
    judged: Judgement,
) -> None:
    """The engine's histogram shows a tenth of the clients' time: neither GPU nor replica would help."""
    slow = with_means(judged, client_s=0.1, engine_s=0.01)
    (option,) = options_at(slow, spread(slow, "ttft", 12.0))
    assert option.change == FasterGateway(users=16, ttft_s=1.6, engine_s=0.16)
    assert (option.users_x, option.gain_users) == (None, None)
    assert "1600 ms to the first token at 16 users (mean), 160 ms are the engine's own" in words(
        option.change
    )


@pytest.mark.parametrize("engine_s", [0.09, math.nan])
def test_an_engine_that_is_slow_itself_or_does_not_tell_gets_lighter_work(
    judged: Judgement, engine_s: float
) -> None:
    busy = with_means(judged, client_s=0.1, engine_s=engine_s)
    assert named(busy, spread(busy, "ttft", 12.0)) == {LighterWork, SecondReplica}


def test_no_option_is_worse_than_the_limit(judged: Judgement) -> None:
    walls = [*judged.walls, spread(judged, "tpot", 16.5)]
    headline = headline_of(judged.evidence, walls, confidence=0.9)
    assert headline.estimate_x is not None
    for option in options_of(judged, walls, headline, None):
        assert option.users_x is None or option.users_x > headline.estimate_x
        assert option.users_x is None or math.isfinite(option.users_x)
