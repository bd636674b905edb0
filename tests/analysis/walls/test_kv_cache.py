"""The block law against counting, the formulas against draws, the wall against the engine."""

import math
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from analysis.evidence.evidence import gather
from analysis.evidence.gauge import gauge_of
from analysis.evidence.lengths import Pairs
from analysis.levels.context import Pool
from analysis.reading.runs import find_runs, read_run
from analysis.statistics.samples import Share
from analysis.walls.block_law import Occupancy, block_law
from analysis.walls.kv_cache import _resampled, memory_wall
from analysis.walls.kv_shift import FORMULA_BIAS, Seen, Shift, margins, pressure_seen, shift_of, wall
from analysis.walls.replay import replayed
from loadtest.record import Slo
from loadtest.simulator.engine.requests import Request
from loadtest.simulator.virtual import closed_loop
from testing.virtual_runs import Plan, chat_lengths, level, small_engine, write_run

SLO = Slo()
NO_SHIFT = Shift(preempted=0.0, blocked=0.0)


def pairs(prompt, output, *, conversation=None, shared_prefix=0) -> Pairs:
    return Pairs(
        prompt=np.array(prompt, dtype=np.int64),
        output=np.array(output, dtype=np.int64),
        conversation=np.arange(len(prompt)) if conversation is None else np.array(conversation),
        shared_prefix=shared_prefix,
    )


def drawn_pairs(n=3000, seed=0) -> Pairs:
    rng = np.random.default_rng(seed)
    lengths = np.array([chat_lengths(rng) for _ in range(n)])
    return pairs(lengths[:, 0], lengths[:, 1])


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(1, 90), st.integers(1, 70)), min_size=1, max_size=8),
    st.integers(1, 40),
)
def test_the_block_law_is_what_counting_steps_gives(lengths, block):
    law = block_law(pairs(*zip(*lengths, strict=True)), block_tokens=block)
    held = [math.ceil((s + j) / block) for s, o in lengths for j in range(o)]
    counted = np.bincount(held, minlength=len(law.held)) / len(held)
    assert law.held == pytest.approx(counted)
    entry = np.bincount([math.ceil(s / block) for s, _ in lengths], minlength=len(law.entry)) / len(lengths)
    assert law.entry == pytest.approx(entry)
    growths = sum(math.ceil((s + o - 1) / block) - math.ceil(s / block) for s, o in lengths)
    assert law.growth.sum() == pytest.approx(growths / len(lengths))
    assert law.steps == pytest.approx(np.mean([o for _, o in lengths]))


def test_weights_count_a_pair_as_often_as_they_say():
    twice = block_law(pairs([40, 40, 200], [30, 30, 50]), block_tokens=16)
    weighted = block_law(pairs([40, 200], [30, 50]), block_tokens=16, weight=np.array([2.0, 1.0]))
    assert weighted.held == pytest.approx(twice.held)
    assert weighted.growth == pytest.approx(twice.growth)


def test_mean_tokens_are_the_length_laws_plus_half_a_block():
    rng = np.random.default_rng(1)
    prompt, output = rng.integers(50, 300, 20000), rng.integers(20, 200, 20000)
    mean = np.sum(prompt * output + output * (output - 1) / 2) / output.sum()
    found = block_law(pairs(prompt, output), block_tokens=32).mean * 32
    assert found == pytest.approx(mean + 31 / 2, rel=0.002)


def test_blocked_time_is_the_chance_that_the_pool_overflows():
    law = block_law(drawn_pairs(), block_tokens=32)
    hold = law.steps / (law.steps + 1)
    rng = np.random.default_rng(2)
    draws = rng.choice(len(law.held), p=law.held, size=(40000, 18)) * (rng.random((40000, 18)) < hold)
    found = Occupancy(law, 127).at(18).blocked
    assert found == pytest.approx(np.mean(draws.sum(axis=1) > 127), abs=0.005)


def test_pressure_rises_with_users_and_a_pool_for_nobody_holds_nobody():
    occupancy = Occupancy(block_law(drawn_pairs(), block_tokens=32), 127)
    pressure = [occupancy.at(users) for users in range(1, 22)]
    assert all(a.blocked <= b.blocked + 1e-12 for a, b in pairwise(pressure))
    assert (
        wall(Occupancy(block_law(pairs([100], [100]), block_tokens=32), 2), SLO, shift=NO_SHIFT, start=1)
        == 0.0
    )


@pytest.mark.parametrize("start", [1, 5, 16, 200])
def test_the_wall_does_not_depend_on_where_the_search_starts(start):
    occupancy = Occupancy(block_law(drawn_pairs(), block_tokens=32), 127)
    found = wall(occupancy, SLO, shift=NO_SHIFT, start=start)
    last = math.floor(found)
    assert max(margins(occupancy.at(last), SLO, shift=NO_SHIFT)) <= 0
    assert max(margins(occupancy.at(last + 1), SLO, shift=NO_SHIFT)) > 0


def test_the_wall_is_where_the_engine_preempts_one_request_in_a_hundred():
    lengths = drawn_pairs(12000, seed=3)
    found = wall(Occupancy(block_law(lengths, block_tokens=32), 127), SLO, shift=NO_SHIFT, start=10)
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
    law = block_law(drawn_pairs(), block_tokens=32)
    small, large = (wall(Occupancy(law, blocks), SLO, shift=NO_SHIFT, start=10) for blocks in (127, 511))
    assert large > 4.1 * small


def test_a_shared_prefix_counts_once():
    alone = block_law(pairs([200] * 50, [100] * 50), block_tokens=32)
    shared = block_law(pairs([200] * 50, [100] * 50, shared_prefix=128), block_tokens=32)
    assert alone.mean - shared.mean == pytest.approx(4.0)


def test_thinking_users_leave_room_for_more():
    law = block_law(drawn_pairs(), block_tokens=32)
    busy, idle = (
        wall(Occupancy(law, 127, lambda _, p=p: p), SLO, shift=NO_SHIFT, start=10) for p in (1.0, 0.5)
    )
    assert 1.4 * busy < idle < 2.0 * busy  # less than twice: the atom adds variance


def test_counts_near_the_wall_move_the_formula_as_far_as_they_carry():
    occupancy = Occupancy(block_law(drawn_pairs(), block_tokens=32), 127)
    formula = occupancy.at(18).preempted
    many = [Seen(users=18, preemptions=2 * formula * 1e6, finished=10**6, blocked=math.nan, scrapes=0.0)]
    few = [Seen(users=18, preemptions=2 * formula * 100, finished=100, blocked=math.nan, scrapes=0.0)]
    none: list[Seen] = []
    sure, unsure, prior = (
        shift_of(occupancy, seen, SLO, near_users=17.0, prior=Shift()) for seen in (many, few, none)
    )
    assert sure.preempted == pytest.approx(math.log(2), abs=0.15)
    assert prior.preempted < unsure.preempted < sure.preempted
    assert prior.preempted == pytest.approx(FORMULA_BIAS, abs=1e-6)
    assert sure.preempted_se < unsure.preempted_se < prior.preempted_se + 1e-9
    assert prior.levels == 0


def test_levels_that_queue_for_slots_do_not_move_the_formula():
    seated = level(20, slots=8)
    doubted = level(18, why_not=("late",))
    plain = level(16, blocked=Share(misses=2, n=20, effect=2.0))
    found = pressure_seen([seated, doubted, plain])
    assert [one.users for one in found] == [16]
    assert found[0].scrapes == 10.0
    capped = level(22, most_running=8)
    assert pressure_seen([capped], slots=8) == []
    assert [one.users for one in pressure_seen([capped], slots=9)] == [22]


def test_conversations_are_resampled_whole():
    rng = np.random.default_rng(0)
    weight = _resampled(np.array([0, 0, 1, 1, 1, 2]), rng)
    assert weight[0] == weight[1]
    assert len(set(weight[2:5])) == 1


def test_the_interval_covers_the_wall_of_the_law_it_was_drawn_from():
    exact = Occupancy(block_law(drawn_pairs(200000, seed=9), block_tokens=32), 127)
    pool, covered = Pool(blocks=127, block_tokens=32), 0
    rough = wall(exact, SLO, shift=Shift(), start=16)
    engine = replayed(drawn_pairs(20000, seed=9), pool, exact, SLO, x=rough)
    truth = wall(exact, SLO, shift=engine, start=16)
    for seed in range(12):
        rng = np.random.default_rng(seed)
        found = memory_wall(drawn_pairs(600, seed=100 + seed), pool, [], SLO, resamples=60, rng=rng)
        low, high = np.quantile(found.draws, [0.05, 0.95])
        covered += low <= truth <= high
        assert high - low < 4.0
    assert covered >= 9  # nine in ten; `python -m benchmarks coverage` counts more of them


def test_the_servers_gauge_agrees_with_the_length_law(tmp_path):
    write_run(tmp_path / "r", small_engine(), Plan(levels=(4, 8, 12), level_s=20.0))
    evidence = gather([read_run(find_runs(tmp_path / "r")[0])], slo=SLO)
    assert evidence.pairs is not None
    assert evidence.pool is not None
    found = gauge_of(evidence.runs, evidence.levels, evidence.pool, shared_prefix=0)
    assert found is not None
    law = block_law(evidence.pairs, block_tokens=32)
    assert found.tokens_per_request == pytest.approx(law.mean * 32, rel=0.05)
    assert abs(found.off) < 0.03
    assert found.r2 > 0.8
