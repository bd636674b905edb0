"""The first line of the answer, from walls that are given."""

import numpy as np
import pytest

from analysis.capacity.headline import headline_of
from analysis.evidence.evidence import Evidence
from analysis.walls.names import WallName
from analysis.walls.placed import PlacedWall, placed_between, placed_by_draws, placed_exactly
from loadtest.record import Slo
from testing.runs.virtual import level

RNG = np.random.default_rng(0)
DRAWS = RNG.permutation((np.arange(300) + 0.5) / 300)
"""Shares whose quantiles are themselves."""


def evidence(*users: int) -> Evidence:
    levels = [level(count) for count in users]
    return Evidence(runs=[], levels=levels, pairs=None, pool=None, thinking=None, slo=Slo(), failures=[])


MEASURED = evidence(8, 16, 24)


def wall(name: WallName, low: float, high: float, *, turned: bool = False) -> PlacedWall:
    """A wall whose draws are spread evenly from `low` to `high`; its place is the middle."""
    shares = 1.0 - DRAWS if turned else DRAWS
    draws = low + (high - low) * shares
    return placed_by_draws(name, MEASURED, (low + high) / 2, draws, measured=True)


def test_one_wall_has_its_own_interval() -> None:
    found = headline_of(MEASURED, [wall("kv_cache", 10.0, 20.0)], confidence=0.9)
    assert found.binding == "kv_cache"
    assert found.interval_x == pytest.approx((10.5, 19.5), abs=0.02)
    assert (found.max_users, found.estimate, found.interval) == (10, 15, (10, 19))
    assert found.p_binding == {"kv_cache": 1.0}


def test_walls_that_tie_share_the_error_of_the_upper_end() -> None:
    """Half of the error above is left to each of two rivals; the lower end is the least of all lower ends."""
    memory, ttft = wall("kv_cache", 10.0, 20.0), wall("ttft", 11.0, 19.6, turned=True)
    found = headline_of(MEASURED, [ttft, memory], confidence=0.9)
    assert found.binding == "kv_cache"
    assert found.estimate_x == 15.0
    assert found.interval_x is not None
    assert found.interval_x[0] == pytest.approx(10.5, abs=0.02)  # of memory, at 5 %
    assert found.interval_x[1] == pytest.approx(19.6 - 8.6 * 0.025, abs=0.03)  # of TTFT, at 2.5 %
    assert found.p_binding.keys() == {"kv_cache", "ttft"}
    assert sum(found.p_binding.values()) == pytest.approx(1.0, abs=0.002)


def test_a_wall_that_is_hardly_ever_first_does_not_widen_the_interval() -> None:
    memory = wall("kv_cache", 10.0, 20.0)
    far = wall("tpot", 19.0, 40.0, turned=True)
    alone, beside = (headline_of(MEASURED, stands, confidence=0.9) for stands in ([memory], [memory, far]))
    assert beside.interval_x == alone.interval_x
    assert beside.p_binding["kv_cache"] > 0.95


def test_the_least_lower_end_counts_whosever_it_is() -> None:
    """The wall that binds in the estimate is known well; another, further up, may lie below it."""
    known, vague = placed_exactly("max_num_seqs", MEASURED, 14.0), wall("ttft", 8.0, 22.0)
    found = headline_of(MEASURED, [known, vague], confidence=0.9)
    assert (found.binding, found.estimate) == ("max_num_seqs", 14)
    assert found.interval_x is not None
    assert found.interval_x[0] == pytest.approx(8.7, abs=0.05)
    assert found.max_users == 8
    assert found.interval_x[1] == 14.0


def test_a_wall_beyond_the_levels_leaves_the_highest_of_them_as_the_lower_end() -> None:
    found = headline_of(MEASURED, [wall("kv_cache", 25.0, 29.0)], confidence=0.9)
    assert not found.at_least
    assert (found.max_users, found.estimate) == (24, 27)


def test_a_wall_far_beyond_the_levels_leaves_at_least() -> None:
    found = headline_of(MEASURED, [wall("kv_cache", 50.0, 60.0)], confidence=0.9)
    assert found.at_least
    assert found.binding == "not_reached"
    assert (found.max_users, found.estimate, found.interval) == (24, None, (24, None))


def test_less_confidence_is_a_narrower_interval() -> None:
    sure, unsure = (
        headline_of(MEASURED, [wall("kv_cache", 10.0, 20.0)], confidence=share).interval_x
        for share in (0.9, 0.5)
    )
    assert sure == pytest.approx((10.5, 19.5), abs=0.02)
    assert unsure == pytest.approx((12.5, 17.5), abs=0.02)


def test_the_binding_wall_is_the_most_probable_one_where_estimates_cannot_tell() -> None:
    """A fall of throughput is only known to lie between two levels, and its estimate is the lower one."""
    fall = placed_between("throughput", MEASURED, (16, 24), np.random.default_rng(0))
    found = headline_of(MEASURED, [fall, wall("ttft", 15.5, 17.5)], confidence=0.9)
    assert found.p_binding["ttft"] > 0.8
    assert (found.binding, found.estimate_x) == ("ttft", 16.5)
    assert found.interval_x is not None
    assert found.interval_x[0] < 16.5 < found.interval_x[1]


def test_no_wall_is_named_that_is_less_probable_than_another() -> None:
    """The lowest estimate is that of the fall, but most of its range lies above the sharp TTFT wall."""
    fall = placed_between("throughput", MEASURED, (8, 24), np.random.default_rng(0))
    found = headline_of(MEASURED, [fall, wall("ttft", 10.5, 11.5)], confidence=0.9)
    assert found.p_binding["throughput"] < 0.25
    assert (found.binding, found.estimate_x) == ("ttft", 11.0)
    for sharp in (9.0, 12.0, 20.0):
        found = headline_of(MEASURED, [fall, wall("tpot", sharp - 0.5, sharp + 0.5)], confidence=0.9)
        assert found.p_binding[found.binding] == max(found.p_binding.values())
        assert found.interval_x is not None
        assert found.interval_x[0] <= found.estimate_x <= found.interval_x[1]


def test_a_wall_that_lies_clearly_lower_binds() -> None:
    found = headline_of(MEASURED, [wall("kv_cache", 10.0, 12.0), wall("ttft", 14.0, 18.0)], confidence=0.9)
    assert (found.binding, found.estimate_x) == ("kv_cache", 11.0)


def test_a_bound_beyond_all_draws_is_continued_and_not_a_single_draw() -> None:
    """At an error of 0.0018, three hundred draws leave half a draw: two samples of them agree within 10 %."""
    ends = []
    for seed in range(100):
        draws = np.random.default_rng(seed).normal(20.0, 1.0, 300)
        ends.append(placed_by_draws("kv_cache", MEASURED, 20.0, draws, measured=True).bound(0.0018))
    low, high = np.array(ends).T
    assert low.mean() == pytest.approx(20.0 - 2.911, abs=0.1)
    assert high.mean() == pytest.approx(20.0 + 2.911, abs=0.1)
    assert max(low.std(), high.std()) < 0.3
