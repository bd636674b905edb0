"""Limits that no level has passed: how far the requests prove that they hold."""

import numpy as np
import pytest

from analysis.capacity.headline import headline_of
from analysis.evidence.evidence import Evidence
from analysis.levels.level import Level
from analysis.statistics.samples import MissShare
from analysis.walls.held import HeldLimit, held_limits
from loadtest.record import Slo
from testing.runs.virtual import level


def measured(*levels: Level) -> Evidence:
    return Evidence(runs=[], levels=levels, pairs=None, pool=None, thinking=None, slo=Slo(), failures=[])


def limits(*levels: Level) -> dict[str, HeldLimit]:
    return {limit.name: limit for limit in held_limits(measured(*levels), [], error=0.05)}


def late(users: int, misses: int, n: int) -> Level:
    return level(users, ttft_miss=MissShare(misses=misses, n=n))


def test_twenty_requests_without_a_miss_do_not_prove_an_objective():
    found = limits(late(4, 0, 20))["ttft"]
    (proof,) = found.proofs
    assert not proof.holds
    assert proof.share_at_most == pytest.approx(0.139, abs=0.001)
    assert proof.more_requests == 39  # 59 without a miss prove 5 %
    assert proof.more_s == pytest.approx(39 / 0.2, rel=0.02)  # 20 requests in 100 s
    assert found.holds_to_users is None
    assert headline_of(measured(late(4, 0, 20)), [], confidence=0.9).max_users is None


def test_levels_above_vouch_for_the_ones_below():
    found = limits(late(2, 0, 20), late(4, 0, 40), late(8, 0, 60))["ttft"]
    assert found.holds_to_users == 8
    assert found.at(2).share_at_most < found.at(8).share_at_most < 0.05


def test_the_answer_is_at_least_the_largest_level_that_is_proved():
    levels = late(4, 0, 200), late(8, 2, 200), late(16, 8, 200)
    found = limits(*levels)["ttft"]
    assert found.holds_to_users == 8
    assert found.at(16).share_at_most == pytest.approx(0.071, abs=0.001)
    headline = headline_of(measured(*levels), [], confidence=0.9)
    assert headline.at_least
    assert (headline.max_users, headline.interval, headline.binding) == (8, (8, None), "not_reached")


def test_requests_that_depend_on_each_other_prove_less():
    alike = level(8, ttft_miss=MissShare(misses=0, n=100, effect=4.0))
    assert limits(alike)["ttft"].holds_to_users is None
    assert limits(late(8, 0, 100))["ttft"].holds_to_users == 8


def test_no_error_at_all_does_not_keep_the_answer_low_but_one_does():
    """Proving a share of 1 % takes 300 requests, even where the server has turned none away."""
    clean = level(8, n=200, overload=MissShare(misses=0, n=200))
    assert not limits(clean)["errors"].at(8).holds
    assert headline_of(measured(clean), [], confidence=0.9).max_users == 8
    refused = level(8, n=200, overload=MissShare(misses=1, n=200))
    assert headline_of(measured(refused), [], confidence=0.9).max_users is None


def test_an_objective_that_is_just_missed_is_called_held_one_time_in_twenty_at_most():
    rng = np.random.default_rng(0)
    wrong = 0
    for _ in range(400):
        counts = {users: 25 * users for users in (4, 8, 16, 24)}
        levels = [late(users, int(rng.binomial(n, 0.051)), n) for users, n in counts.items()]
        wrong += limits(*levels)["ttft"].holds_to_users is not None
    assert wrong <= 0.05 * 400 + 2 * (0.05 * 0.95 * 400) ** 0.5
