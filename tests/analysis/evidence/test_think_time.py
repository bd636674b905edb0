"""Think time read off levels, and the share of users that it leaves in flight."""

import math

import pytest

from analysis.evidence.think_time import ClassPace, Thinking, thinking_of
from analysis.statistics.samples import MissShare
from testing.runs.virtual import level


def test_the_share_of_users_in_flight_solves_littles_law():
    thinking = Thinking(think_s=2.0, idle_s=1.0, slope_s=0.05)
    for users in (1, 10, 50):
        p = thinking.active(users)
        response = 1.0 + 0.05 * p * users
        assert p == pytest.approx(response / (response + 2.0))
    assert Thinking(think_s=2.0, idle_s=1.0, slope_s=0.0).active(9) == pytest.approx(1 / 3)


@pytest.mark.parametrize("idle_s", [0.0, 0.5])
def test_each_class_is_in_flight_as_its_own_pauses_say(idle_s: float) -> None:
    """Also where requests seem to take no time alone, so that nobody in flight would be a solution too."""
    paces = (
        ClassPace(weight=3.0, think_s=0.1, idle_s=1.2 * idle_s, slope_s=0.06),
        ClassPace(weight=1.0, think_s=2.0, idle_s=0.5 * idle_s, slope_s=0.025),
    )
    thinking = Thinking(think_s=0.5, idle_s=idle_s, slope_s=0.05, classes=paces)
    shares = [thinking.active_of_class(position)(20) for position in (0, 1)]
    in_flight = 15 * shares[0] + 5 * shares[1]
    for share, pace in zip(shares, paces, strict=True):
        duration_s = pace.idle_s + pace.slope_s * in_flight
        assert share == pytest.approx(duration_s / (duration_s + pace.think_s), rel=1e-3)
        assert share > 0.1


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
    waiting = {"blocked": MissShare(misses=30, n=100), "waiting_fraction": 0.9}
    levels = [
        level(4, in_flight=1.0, e2e_mean_s=1.0, n=20),
        level(40, in_flight=30.0, e2e_mean_s=9.0, n=2000, **waiting),
    ]
    found = thinking_of(levels)
    assert found is not None
    assert found.think_s == pytest.approx(3.0)
    assert found.idle_s + found.slope_s == pytest.approx(1.0)  # of the free level alone
    assert found.think_error == pytest.approx(1 / math.sqrt(2020))
