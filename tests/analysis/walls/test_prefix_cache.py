"""The prefix-cache wall: where the engine has it, and what a run says of it."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from analysis.capacity.answer import recommend
from analysis.levels.context import Pool
from analysis.memory.eviction import Eviction
from analysis.reading.runs import Run
from analysis.reporting.capacity_words import first_screen
from analysis.reporting.words import words
from analysis.twin.maximum import find_maximum
from analysis.walls import prefix_cache
from analysis.walls.prefix_cache import LevelHits
from loadtest.record import Slo
from testing.inputs.conversations import chats
from testing.truth.prefix_services import compare, maybe_wall_of, run_of, true_wall, wall_of
from testing.truth.three_turns import three_turns

LEVELS = (4, 8, 16, 24, 32)
HITS = Slo(prefix_hit_fraction=0.9)
"""The objective that makes the prefix cache a wall."""


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(three_turns(), LEVELS, seed=0)


@pytest.fixture(scope="module")
def true() -> float:
    return true_wall(three_turns(), start=18.0)


@pytest.mark.parametrize("seed", [1, 12])
def test_the_wall_of_random_services_is_where_the_engine_has_it(seed):
    case = compare(seed)
    assert case.formula.x == pytest.approx(case.true, rel=0.15)
    assert case.swept.x == pytest.approx(case.true, rel=0.05, abs=1.0)


def test_a_run_across_the_wall_knows_it_by_cached_tokens_and_by_counters_alike(run, true):
    untold = replace(run.requests, cached_tokens=np.full(len(run.requests), np.nan))
    told, counted = wall_of(run), wall_of(replace(run, requests=untold))
    for found in (told, counted):
        assert found.measured
        assert found.x == pytest.approx(true, rel=0.05, abs=0.5)
        low, high = np.quantile(found.draws, [0.05, 0.95])
        assert low <= true <= high
        assert high - low < 0.2 * true


def test_it_is_named_explained_and_given_levers(run):
    answer = recommend([run], slo=HITS)
    assert answer.headline.binding == "prefix_cache"
    assert answer.prefix_cache is None
    assert answer.bounds[0].basis in ("measured", "interpolated")
    rates = [level.server.prefix_hit_rate for level in answer.levels]
    assert rates[0] > 0.5
    assert rates == sorted(rates, reverse=True)
    fp8 = next(option for option in answer.options if "fp8" in words(option.change))
    assert fp8.users == pytest.approx(2 * answer.headline.estimate, rel=0.1)
    assert any("offloading" in words(option.change) for option in answer.options)
    # Memory in use says nothing of it.
    assert next(level for level in answer.levels if level.users == 24).server.kv_cache_usage < 0.4


def test_without_an_objective_for_hits_it_is_a_note_with_its_place_and_no_wall(run, true):
    answer = recommend([run], slo=Slo())
    assert answer.headline.binding != "prefix_cache"
    assert "prefix_cache" not in {wall.name for wall in [*answer.bounds, *answer.not_met]}
    assert answer.headline.max_users >= LEVELS[-1] > true
    assert answer.prefix_cache is not None
    assert answer.prefix_cache.users_x == pytest.approx(true, rel=0.05, abs=0.5)
    said = " ".join(first_screen(answer, slo=Slo(), confidence=0.9))
    assert f"From about {answer.prefix_cache.users_x:.0f} users on" in said
    assert "computed again" in said


def test_a_lower_objective_for_hits_is_met_with_more_users(run):
    strict, loose = (recommend([run], slo=Slo(prefix_hit_fraction=share)) for share in (0.9, 0.6))
    assert loose.headline.estimate_x > 1.1 * strict.headline.estimate_x


def test_far_below_it_the_wall_is_predicted_and_the_answer_is_at_least(true):
    far = recommend([run_of(three_turns(), (2, 4), seed=0, cycles=60)], slo=HITS)
    assert far.headline.at_least
    (wall,) = (bound for bound in far.bounds if bound.name == "prefix_cache")
    assert wall.basis == "extrapolated"
    assert wall.users_x == pytest.approx(true, rel=0.2)


def test_without_a_cache_the_answer_says_that_its_wall_was_not_met(run):
    off = recommend([without_cache(run)], slo=HITS)
    assert "prefix_cache" in {wall.name for wall in off.not_met}
    assert math.isnan(off.levels[0].server.prefix_hit_rate)


def test_levels_that_find_everything_overrule_the_formula():
    """As when the pool is larger than the server said."""
    large = run_of(three_turns(num_gpu_blocks=4001), LEVELS, seed=0)
    found = wall_of(with_server(large, num_gpu_blocks=1001))
    assert np.quantile(found.draws, 0.05) > LEVELS[-1]


def with_server(run: Run, **changes: object) -> Run:
    server = msgspec.structs.replace(run.info.server, **changes)
    return replace(run, info=msgspec.structs.replace(run.info, server=server))


def without_cache(run: Run) -> Run:
    """What the same people leave of a server that caches nothing."""
    unknown = np.full(len(run.requests), np.nan)
    zeros = np.zeros(len(run.server))
    return replace(
        with_server(run, enable_prefix_caching=False),
        requests=replace(run.requests, cached_tokens=unknown),
        server=replace(run.server, prefix_cache_hits_total=zeros, prefix_cache_queries_total=zeros),
    )


def test_without_conversations_or_without_a_cache_there_is_none(run):
    single = replace(three_turns().chatting, conversations=[((200, 100),), ((150, 60),)])
    assert maybe_wall_of(run_of(replace(three_turns(), chatting=single), (4, 8), seed=0)) is None
    off = without_cache(run)
    assert maybe_wall_of(off) is None
    # The server does not say whether it caches: nothing found means that it does not.
    assert maybe_wall_of(with_server(off, enable_prefix_caching=None)) is None


def test_the_true_limit_knows_it(true):
    found = find_maximum(three_turns(), Slo(ttft_p95_s=60.0, tpot_p95_s=60.0, prefix_hit_fraction=0.9))
    assert found is not None
    assert found.wall == "prefix_cache"
    assert found.x == pytest.approx(true, rel=0.05)
    assert found.below.kv_usage < 0.4


def test_one_noisy_lowest_level_is_not_averaged_away_by_many_others():
    eviction = Eviction(chats([4] * 50), response_s=2.0, rng=np.random.default_rng(0), resample=False)
    pool = Pool(blocks=1000, block_tokens=8)
    users = round(eviction.wall(1000))

    def spread(levels: int) -> float:
        lowest = LevelHits(users=1, share=0.9, se=0.05)
        others = [LevelHits(users=users, share=0.81, se=0.002)] * levels
        shift, weight = prefix_cache._shift(eviction, pool, [lowest, *others], sd=1.0)
        return math.sqrt(weight @ shift**2 - (weight @ shift) ** 2)

    assert spread(1) > 0.01
    assert spread(9) > 0.9 * spread(1)
