"""The memory wall against the engine, and how often its interval covers."""

import math

import numpy as np
import pytest

from analysis.levels.context import Pool
from analysis.memory.block_distribution import Holders, Occupancy, block_distribution
from analysis.memory.formula_shift import FormulaShift, kv_margins, kv_wall_users
from analysis.memory.replay import replayed_shift
from analysis.walls.kv_cache import _resampled, kv_cache_wall
from loadtest.record import Slo
from loadtest.simulator.engine.requests import Request
from loadtest.simulator.virtual import closed_loop
from testing.inputs.length_pairs import drawn_pairs
from testing.runs.virtual import small_engine

SLO = Slo()


NO_SHIFT = FormulaShift(preempted=0.0, blocked=0.0)


@pytest.mark.parametrize("start", [1, 5, 16, 200])
def test_the_wall_does_not_depend_on_where_the_search_starts(start):
    occupancy = Occupancy([Holders(block_distribution(drawn_pairs(), block_tokens=32))], 127)
    found = kv_wall_users(occupancy, SLO, shift=NO_SHIFT, start=start)
    last = math.floor(found)
    assert max(kv_margins(occupancy.at(last), SLO, shift=NO_SHIFT)) <= 0
    assert max(kv_margins(occupancy.at(last + 1), SLO, shift=NO_SHIFT)) > 0


def test_the_wall_is_where_the_engine_preempts_one_request_in_a_hundred():
    lengths = drawn_pairs(12000, seed=3)
    found = kv_wall_users(
        Occupancy([Holders(block_distribution(lengths, block_tokens=32))], 127),
        SLO,
        shift=NO_SHIFT,
        start=10,
    )
    share = {}
    for users in (math.floor(found) - 1, math.floor(found) + 2):
        requests = [
            Request(prompt_tokens=int(s), output_tokens=int(o))
            for s, o in zip(lengths.prompt[:6000], lengths.output[:6000], strict=True)
        ]
        trace = closed_loop(small_engine(), requests, users=users, start_spread_s=1.0)
        share[users] = trace.counters.preemptions / len(requests)
    below, above = share.values()
    assert below < 0.01 < above


def test_variance_pools_so_four_times_the_pool_holds_more_than_four_times_the_users():
    law = block_distribution(drawn_pairs(), block_tokens=32)
    small, large = (
        kv_wall_users(Occupancy([Holders(law)], blocks), SLO, shift=NO_SHIFT, start=10)
        for blocks in (127, 511)
    )
    assert large > 4.1 * small


def test_thinking_users_leave_room_for_more():
    law = block_distribution(drawn_pairs(), block_tokens=32)
    busy, idle = (
        kv_wall_users(
            Occupancy([Holders(law, lambda _, p=p: p)], 127),
            SLO,
            shift=NO_SHIFT,
            start=10,
        )
        for p in (1.0, 0.5)
    )
    assert 1.4 * busy < idle < 2.0 * busy  # less than twice: the atom adds variance


def test_conversations_are_resampled_whole():
    rng = np.random.default_rng(0)
    weights = np.array([_resampled(np.array([0, 0, 1, 1, 1, 2]), rng) for _ in range(2000)])
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 2] == weights[:, 3]).all()
    assert (weights[:, 3] == weights[:, 4]).all()
    assert (weights[:, [0, 2, 5]].sum(axis=1) == 3).all()  # as many conversations as there were
    assert weights[:, [0, 2, 5]].mean(axis=0) == pytest.approx(1.0, abs=0.1)
    assert weights[:, 0].std() == pytest.approx(math.sqrt(2 / 3), abs=0.05)


def test_the_interval_is_as_wide_as_repeated_measurements_spread():
    exact = Occupancy([Holders(block_distribution(drawn_pairs(200000, seed=9), block_tokens=32))], 127)
    pool = Pool(blocks=127, block_tokens=32)
    rough = kv_wall_users(exact, SLO, shift=FormulaShift(), start=16)
    engine = replayed_shift(drawn_pairs(20000, seed=9), pool, exact, SLO, x=rough)
    truth = kv_wall_users(exact, SLO, shift=engine, start=16)
    walls = []
    for seed in range(20):
        rng, lengths = np.random.default_rng(seed), drawn_pairs(600, seed=100 + seed)
        walls.append(kv_cache_wall(lengths, pool, [], SLO, resamples=60, rng=rng))
    spread = np.std([found.x for found in walls])
    assert np.mean([found.x for found in walls]) == pytest.approx(truth, abs=0.5 * spread)
    assert np.mean([found.draws.std() for found in walls]) == pytest.approx(spread, rel=0.25)
    ends = np.array([np.quantile(found.draws, [0.05, 0.95]) for found in walls])
    covered = (ends[:, 0] <= truth) & (truth <= ends[:, 1])
    assert covered.sum() >= 17  # 18 are expected; `python -m benchmarks coverage` counts more of them
