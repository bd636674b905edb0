"""Fits recover what they were given; bounds cover; walls are where the shares say."""

import math

import numpy as np
import pytest

from analysis.evidence import step_time as latency
from analysis.evidence.evidence import gather, max_num_seqs_of
from analysis.evidence.think_time import Thinking, thinking_of
from analysis.levels.level import load_points
from analysis.notes import NotSteady
from analysis.statistics.crossings import miss_crossing, p95_crossing
from analysis.statistics.samples import Quantiles, Share
from analysis.walls.max_num_seqs import max_num_seqs_wall, waiting_share
from analysis.walls.throughput import throughput_fall
from testing.truth.deployments import deployment
from testing.truth.methods import sweep
from testing.virtual_runs import level


def test_step_time_recovers_base_and_slope():
    base, slope = 0.02, 0.001
    levels = [level(n, output_tok_s=n / (base + slope * n)) for n in (1, 2, 4, 8, 16)]
    found = latency.step_time(levels)
    assert found is not None
    assert found.base_s == pytest.approx(base)
    assert found.per_sequence_s == pytest.approx(slope)
    assert found.knee == pytest.approx(180.0)
    assert found.output_tok_s(found.knee) == pytest.approx(0.9 / slope)


def test_step_time_needs_two_loads_and_leaves_queues_out():
    assert latency.step_time([level(4), level(4)]) is None
    assert latency.step_time([level(4), level(8, waiting_fraction=0.5)]) is None


def miss_levels(rng, *, at, slope, users=(4, 8, 12, 16, 20, 24), n=400):
    def share(count):
        p = 1 / (1 + math.exp(-(math.log(0.05 / 0.95) + slope * math.log(count / at))))
        return Share(misses=int(rng.binomial(n, p)), n=n)

    return [level(count, ttft_miss=share(count)) for count in users]


def ttft_crossing(levels):
    return miss_crossing(load_points(levels, lambda one: one.requests.ttft_miss), limit=0.05)


def test_the_crossing_of_misses_is_recovered():
    found = ttft_crossing(miss_levels(np.random.default_rng(0), at=15.0, slope=8.0, n=20000))
    assert found is not None
    assert found.x == pytest.approx(15.0, rel=0.02)
    low, high = found.bound(0.05)
    assert low < found.x < high


def test_one_sided_bounds_cover_as_often_as_they_claim():
    covered, met = 0, 0
    for seed in range(120):
        found = ttft_crossing(miss_levels(np.random.default_rng(seed), at=15.0, slope=8.0))
        if found is not None:
            met += 1
            covered += found.bound(0.05)[0] <= 15.0
    assert met >= 110
    assert covered / met >= 0.9


def test_dependent_requests_widen_the_bounds():
    levels = miss_levels(np.random.default_rng(1), at=15.0, slope=8.0)
    wide = [
        level(
            one.users,
            ttft_miss=Share(misses=one.requests.ttft_miss.misses, n=one.requests.ttft_miss.n, effect=8.0),
        )
        for one in levels
    ]
    narrow, widened = ttft_crossing(levels), ttft_crossing(wide)
    assert narrow is not None
    assert widened is not None
    assert widened.bound(0.05)[0] < narrow.bound(0.05)[0]


def test_a_level_that_was_lucky_counts_no_more_than_its_neighbours():
    def crossing(effects):
        shares = ((12, 0.0), (16, 0.02), (16, 0.06), (20, 0.2))
        return ttft_crossing(
            [
                level(users, ttft_miss=Share(misses=round(part * 1000), n=1000, effect=effect))
                for (users, part), effect in zip(shares, effects, strict=True)
            ]
        )

    own, pooled = crossing((1.0, 2.0, 12.0, 25.0)), crossing((10.0,) * 4)
    assert own.x == pytest.approx(pooled.x)
    assert own.bound(0.05) == pytest.approx(pooled.bound(0.05), rel=0.02)
    assert own.bound(0.05)[1] > pooled.bound(0.05)[1]  # unequal effects are less sure


def test_a_cliff_between_two_levels_is_known_no_better_than_the_levels():
    levels = [
        level(users, ttft_miss=Share(misses=missed, n=500)) for users, missed in ((8, 0), (16, 0), (32, 500))
    ]
    found = ttft_crossing(levels)
    assert found is not None
    low, high = found.bound(0.05)
    assert 15.5 < low < 18.0
    assert 28.0 < high < 33.0


def test_a_p95_places_the_crossing_inside_a_cliff():
    shares = ((8, 0, 0.25), (16, 0, 0.5), (32, 500, 1.0))
    levels = [
        level(users, ttft_miss=Share(misses=missed, n=500), ttft_s=Quantiles(p95=p95))
        for users, missed, p95 in shares
    ]
    found = p95_crossing(
        load_points(levels, lambda one: one.requests.ttft_miss, lambda one: one.requests.ttft_s.p95),
        objective=0.625,
    )
    assert found is not None
    assert found.x == pytest.approx(20.0)


def test_bounds_at_any_level_hold_the_place_that_a_p95_gave():
    shares = ((8, 0, 0.2), (16, 40, 0.97), (32, 900, 9.0))
    levels = [
        level(users, ttft_miss=Share(misses=missed, n=1000), ttft_s=Quantiles(p95=p95))
        for users, missed, p95 in shares
    ]
    found = p95_crossing(
        load_points(levels, lambda one: one.requests.ttft_miss, lambda one: one.requests.ttft_s.p95),
        objective=1.0,
    )
    assert found is not None
    for error in (0.05, 0.3, 0.49):
        low, high = found.bound(error)
        assert low <= found.x <= high


def test_levels_that_hold_make_no_wall_and_one_chance_miss_makes_none_either():
    held = [level(users, ttft_miss=Share(misses=0, n=300)) for users in (1, 2, 4, 8)]
    assert ttft_crossing(held) is None
    chance = [
        level(users, ttft_miss=Share(misses=missed, n=n))
        for users, missed, n in ((1, 2, 30), (2, 0, 300), (4, 1, 300))
    ]
    assert ttft_crossing(chance) is None


def test_untrusted_levels_are_never_fitted():
    levels = [level(1), level(2, ttft_miss=Share(misses=200, n=200), why_not=(NotSteady(),))]
    assert ttft_crossing(levels) is None


def test_throughput_falls_only_when_it_is_sure():
    rates = ((8, 800.0), (16, 1500.0), (24, 1300.0))
    sure = [level(users, output_tok_s=rate, output_tok_se=10.0) for users, rate in rates]
    assert throughput_fall(sure) == (16, 24)
    unsure = [level(users, output_tok_s=rate, output_tok_se=150.0) for users, rate in rates]
    assert throughput_fall(unsure) is None


def test_slots_are_the_wall_themselves_without_think_time():
    assert max_num_seqs_wall(8, active=lambda _: 1.0) == 8.0


def test_thinking_users_may_outnumber_the_slots():
    found = max_num_seqs_wall(8, active=lambda _: 0.5)
    queue = [waiting_share(8, users, lambda _: 0.5) for users in (math.floor(found), math.floor(found) + 1)]
    assert queue[0] <= 0.1 < queue[1]


def test_slots_are_as_stated_or_as_seen():
    assert max_num_seqs_of([level(4)], stated=None) is None
    assert max_num_seqs_of([level(4)], stated=64) == 64
    assert max_num_seqs_of([level(16, max_num_seqs=8), level(20, max_num_seqs=8)], stated=None) == 8


def test_slots_are_seen_where_three_numbers_of_users_leave_equally_many_running():
    def seen(*most_running):
        levels = zip((19, 22, 26, 32), most_running, strict=False)
        return max_num_seqs_of([level(users, most_running=most) for users, most in levels], stated=None)

    assert seen(17, 17, 17) == 17
    assert seen(17, 17) is None
    assert seen(17, 18, 17, 17) is None
    assert seen(None, 17, 17, 17) == 17
    near = [level(users, most_running=42) for users in (45, 48, 52)]  # prefill keeps the others waiting
    assert max_num_seqs_of(near, stated=None) is None


def test_queues_for_slots_do_not_slow_the_steps_that_are_fitted():
    free = [level(n, output_tok_s=n / (0.01 + 0.001 * n)) for n in (4, 8)]
    queued = [
        level(n, in_flight=n, output_tok_s=400.0, most_running=17, blocked=Share(misses=0, n=50))
        for n in (19, 22, 26)
    ]
    assert latency.step_time(free + queued) == latency.step_time(free)


def test_the_share_of_users_in_flight_solves_littles_law():
    thinking = Thinking(think_s=2.0, idle_s=1.0, slope_s=0.05)
    for users in (1, 10, 50):
        p = thinking.active(users)
        response = 1.0 + 0.05 * p * users
        assert p == pytest.approx(response / (response + 2.0))
    assert Thinking(think_s=2.0, idle_s=1.0, slope_s=0.0).active(9) == pytest.approx(1 / 3)


def test_think_time_is_read_off_the_levels():
    levels = []
    for users in (4, 8, 16):
        p = Thinking(think_s=2.0, idle_s=1.0, slope_s=0.05).active(users)
        levels.append(level(users, in_flight=users * p, e2e_mean_s=1.0 + 0.05 * users * p))
    found = thinking_of(levels)
    assert found is not None
    assert found.think_s == pytest.approx(2.0)
    assert found.slope_s == pytest.approx(0.05, rel=0.01)


def test_think_time_is_also_read_off_levels_whose_requests_wait():
    waiting = {"blocked": Share(misses=30, n=100), "waiting_fraction": 0.9}
    levels = [
        level(4, in_flight=1.0, e2e_mean_s=1.0, n=20),
        level(40, in_flight=30.0, e2e_mean_s=9.0, n=2000, **waiting),
    ]
    found = thinking_of(levels)
    assert found is not None
    assert found.think_s == pytest.approx(3.0)
    assert found.idle_s + found.slope_s == pytest.approx(1.0)  # of the free level alone
    assert found.think_error == pytest.approx(1 / math.sqrt(2020))


def test_the_pace_of_prefill_is_found_where_people_think_and_their_prompts_meet():
    one = deployment(176)  # long prompts, long thoughts: 29 requests at the lowest level
    load, _ = sweep(one)
    pace = gather([load.run()], slo=one.slo).pace
    assert pace is not None
    assert pace.prefill_per_token_s == pytest.approx(one.service.engine.prefill_per_token_s, rel=0.15)
