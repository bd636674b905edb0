"""Where a search probes, on engines in virtual time."""

from dataclasses import replace

import pytest

from analysis.capacity.answer import answer_of
from analysis.capacity.judgement import judge
from analysis.search import advice as search
from loadtest.record import SearchAdvice, Slo
from testing.truth.deployments import VirtualDeployment, deployment
from testing.truth.methods import bisection, judged_estimate
from testing.truth.methods import search as searched
from testing.truth.virtual_load import VirtualLoad

KV_BOUND, TPOT_BOUND = 10, 12
"""Deployments, and where benchmarks/data/coverage.jsonl has their maximum."""
TRUE_X = {KV_BOUND: 25.19, TPOT_BOUND: 12.58}


@pytest.mark.parametrize("number", TRUE_X)
def test_a_search_is_close_and_cheaper_than_a_bisection(number: int) -> None:
    one = deployment(number)
    looks = list(searched(one, budget_s=900.0))
    load, last = looks[-1]
    assert judged_estimate(last) == pytest.approx(TRUE_X[number], rel=0.08)
    assert load.now_s < bisection(one, requests=2000).gpu_s
    answer = answer_of(judge([load.run()], slo=one.slo))
    assert answer.headline.estimate_x == pytest.approx(TRUE_X[number], rel=0.08)


def test_levels_follow_each_other_without_a_jump_beyond_four_times_what_has_held() -> None:
    one = deployment(KV_BOUND)
    (*_, (load, _)) = searched(one, budget_s=900.0)
    users = [level[2] for level in load.run().info.schedule]
    assert users[0] == 4
    assert len(users) > 3
    assert all(after <= 4 * max(users[: place + 1]) for place, after in enumerate(users[1:]))
    assert max(users) < 1.3 * TRUE_X[KV_BOUND]


def test_a_budget_is_kept() -> None:
    (*_, (load, _)) = searched(deployment(TPOT_BOUND), budget_s=33.0)
    assert load.now_s == pytest.approx(33.0)


def with_objectives(one: VirtualDeployment, slo: Slo) -> VirtualDeployment:
    return replace(one, slo=slo)


def advised(one: VirtualDeployment, users: int, seconds: float) -> SearchAdvice:
    """After so many users were held for so long."""
    load = VirtualLoad(one.service, one.slo, seed=1)
    load.hold(users, seconds)
    seen = judge([load.run()], slo=one.slo, quick=True)
    return search.advise(seen, holding=users, held_s=seconds, left_s=600.0)


def test_where_one_user_breaks_an_objective_it_ends_and_says_so() -> None:
    impossible = with_objectives(deployment(KV_BOUND), Slo(ttft_p95_s=1e-6))
    assert advised(impossible, 4, 60.0).users == 2
    last = advised(impossible, 1, 60.0)
    assert last.users is None
    assert "wall" in last.why


def test_where_nothing_breaks_it_goes_on_to_the_most(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(search, "MAX_SEARCHED_USERS", 8)
    one = deployment(KV_BOUND)
    assert advised(one, 4, 60.0).users == 8
    last = advised(one, 8, 60.0)
    assert last.users is None
    assert "up to 8 users" in last.line


def test_a_level_far_past_a_wall_is_left_before_it_has_settled() -> None:
    one = deployment(TPOT_BOUND)
    hurried = advised(one, 60, 8.0)
    assert hurried.users is not None
    assert hurried.users < 60


def test_a_level_that_cannot_be_trusted_is_left_once_and_ends_the_search_the_second_time() -> None:
    one = deployment(KV_BOUND)
    load = VirtualLoad(one.service, one.slo, seed=1, lag_s=0.05)
    load.hold(8, 200.0)
    seen = judge([load.run()], slo=one.slo, quick=True)
    first = search.advise(seen, holding=8, held_s=200.0, left_s=600.0)
    assert first.users == 4
    assert "late" in first.why
    load.hold(4, 200.0)
    seen = judge([load.run()], slo=one.slo, quick=True)
    assert search.advise(seen, holding=4, held_s=200.0, left_s=400.0).users is None


def test_a_young_level_is_held() -> None:
    advice = advised(deployment(KV_BOUND), 4, 6.0)
    assert advice.users == 4
    assert advice.look_s >= 2.0
