"""Crossings of shares and of percentiles: recovered, and bounds that cover as often as they claim."""

import math
from dataclasses import replace

import numpy as np
import pytest

from analysis.levels.level import load_points
from analysis.notes import NotSteady
from analysis.statistics.crossings import miss_crossing, p95_crossing
from analysis.statistics.samples import MissShare, Quantiles
from testing.runs.virtual import level


def miss_levels(rng, *, at, slope, users=(4, 8, 12, 16, 20, 24), n=400):
    def share(count):
        p = 1 / (1 + math.exp(-(math.log(0.05 / 0.95) + slope * math.log(count / at))))
        return MissShare(misses=int(rng.binomial(n, p)), n=n)

    return [level(count, ttft_miss=share(count)) for count in users]


def ttft_crossing(levels):
    return miss_crossing(load_points(levels, lambda one: one.requests.ttft_miss), limit=0.05)


def test_the_crossing_of_misses_is_recovered():
    found = ttft_crossing(miss_levels(np.random.default_rng(0), at=15.0, slope=8.0, n=20000))
    assert found is not None
    assert found.x == pytest.approx(15.0, rel=0.02)
    low, high = found.bound(0.05)
    assert low < found.x < high


@pytest.mark.parametrize("slope", [4.0, 12.0])
def test_how_flat_a_curve_is_stands_with_its_crossing(slope):
    """Its true share of misses is half the limit, and twice the limit, at these two numbers of users."""
    found = ttft_crossing(miss_levels(np.random.default_rng(2), at=15.0, slope=slope, n=40000))
    assert found is not None
    odds = [math.log(share / (1 - share) * 0.95 / 0.05) for share in (0.025, 0.1)]
    assert found.rise == pytest.approx([15.0 * math.exp(off / slope) for off in odds], rel=0.03)


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
            ttft_miss=MissShare(misses=one.requests.ttft_miss.misses, n=one.requests.ttft_miss.n, effect=8.0),
        )
        for one in levels
    ]
    narrow, widened = ttft_crossing(levels), ttft_crossing(wide)
    assert narrow is not None
    assert widened is not None
    assert widened.bound(0.05)[0] < narrow.bound(0.05)[0]


def runs_of_one_server(seed, *, runs, sd, labelled=True):
    """Levels of runs between which the server's place of the crossing differs by `sd` in ln users."""
    rng = np.random.default_rng(seed)
    found = []
    for run in range(runs):
        at = 15.0 * math.exp(sd * rng.standard_normal())
        levels = miss_levels(rng, at=at, slope=12.0, users=(8, 12, 14, 16, 18, 20), n=1500)
        found += [replace(one, run_id=str(run) if labelled else "one") for one in levels]
    return found, 15.0 * math.exp(sd * rng.standard_normal())


def held_further(*, runs, sd, labelled=True):
    """How often the 90 % interval of the pooled runs holds the place that a further run has."""
    held = 0
    for seed in range(100):
        levels, further = runs_of_one_server(seed, runs=runs, sd=sd, labelled=labelled)
        low, high = ttft_crossing(levels).bound(0.05)
        held += low <= further <= high
    return held


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_runs_between_which_the_server_differs_give_an_interval_that_holds_a_further_run(runs):
    assert 84 <= held_further(runs=runs, sd=0.05) <= 98
    assert held_further(runs=runs, sd=0.05, labelled=False) < 75


def test_runs_that_do_not_differ_are_hardly_wider_than_one_long_run():
    def width(labelled):
        return np.median(
            [
                np.ptp(
                    ttft_crossing(runs_of_one_server(seed, runs=3, sd=0.0, labelled=labelled)[0]).bound(0.05)
                )
                for seed in range(40)
            ]
        )

    assert width(True) < 1.15 * width(False)


def test_a_level_that_was_lucky_counts_no_more_than_its_neighbours():
    def crossing(effects):
        shares = ((12, 0.0), (16, 0.02), (16, 0.06), (20, 0.2))
        return ttft_crossing(
            [
                level(users, ttft_miss=MissShare(misses=round(part * 1000), n=1000, effect=effect))
                for (users, part), effect in zip(shares, effects, strict=True)
            ]
        )

    own, pooled = crossing((1.0, 2.0, 12.0, 25.0)), crossing((10.0,) * 4)
    assert own.x == pytest.approx(pooled.x)
    assert own.bound(0.05) == pytest.approx(pooled.bound(0.05), rel=0.02)
    assert own.bound(0.05)[1] > pooled.bound(0.05)[1]  # unequal effects are less sure


def test_a_cliff_between_two_levels_is_known_no_better_than_the_levels():
    levels = [
        level(users, ttft_miss=MissShare(misses=missed, n=500))
        for users, missed in ((8, 0), (16, 0), (32, 500))
    ]
    found = ttft_crossing(levels)
    assert found is not None
    low, high = found.bound(0.05)
    assert 15.5 < low < 18.0
    assert 28.0 < high < 33.0


def test_a_p95_places_the_crossing_inside_a_cliff():
    shares = ((8, 0, 0.25), (16, 0, 0.5), (32, 500, 1.0))
    levels = [
        level(users, ttft_miss=MissShare(misses=missed, n=500), ttft_s=Quantiles(p95=p95))
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
        level(users, ttft_miss=MissShare(misses=missed, n=1000), ttft_s=Quantiles(p95=p95))
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
    held = [level(users, ttft_miss=MissShare(misses=0, n=300)) for users in (1, 2, 4, 8)]
    assert ttft_crossing(held) is None
    chance = [
        level(users, ttft_miss=MissShare(misses=missed, n=n))
        for users, missed, n in ((1, 2, 30), (2, 0, 300), (4, 1, 300))
    ]
    assert ttft_crossing(chance) is None


def test_untrusted_levels_are_never_fitted():
    levels = [level(1), level(2, ttft_miss=MissShare(misses=200, n=200), why_not=(NotSteady(),))]
    assert ttft_crossing(levels) is None


def refusal_levels(rng, *, places, n=400):
    """A gateway refuses what is beyond its places: a share that rises at once and then levels off."""
    found = []
    for users in (8, 10, 11, 13, 14, 16, 18):
        share = max(1.0 - places / users, 0.0)
        found.append(level(users, overload=MissShare(misses=int(rng.binomial(n, share)), n=n)))
    return found


def test_a_curve_that_levels_off_pulls_the_crossing_down_less_from_near_points_alone():
    """The share passes 1 % right after 12.4 users, and is 23 % at 16: no logistic curve has both."""
    near, all_points = [], []
    for seed in range(40):
        points = load_points(
            refusal_levels(np.random.default_rng(seed), places=12.4), lambda one: one.requests.overload
        )
        for reach, found in ((3.0, near), (math.inf, all_points)):
            crossing = miss_crossing(points, limit=0.01, reach=reach)
            assert crossing is not None
            found.append(abs(math.log(crossing.x * 0.99 / 12.4)))
    assert np.mean(near) < 0.7 * np.mean(all_points)
