"""The prefix-cache wall: the formula against counting and against the engine, and what a run says of it."""

import math
from dataclasses import replace

import msgspec
import numpy as np
import pytest

from analysis.capacity.answer import recommend
from analysis.evidence.evidence import gather
from analysis.evidence.turns import Turns, turns_of, uncut_weights
from analysis.levels.context import Pool
from analysis.reading.runs import Run
from analysis.twin.maximum import find_maximum
from analysis.virtual.run import simulate_users
from analysis.virtual.service import Chatting, Service
from analysis.walls import prefix_cache
from analysis.walls.eviction import INSTANTS, Eviction, _TimeLine
from analysis.walls.prefix_cache import Found, found_in
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig
from testing.truth.prefix_services import SLO, compare, maybe_wall_of, run_of, true_wall, wall_of

LEVELS = (4, 8, 16, 24, 32)


def service(**changes: object) -> Service:
    """Three turns of 200 tokens in and 100 out, twenty seconds of thought, a pool of 20 whole histories."""
    rng = np.random.default_rng(0)
    chats = []
    for _ in range(100):
        history, turns = 0, []
        for _ in range(3):
            words, output = int(rng.integers(100, 300)), int(rng.integers(50, 150))
            turns.append((history + words, output))
            history += words + output
        chats.append(turns)
    engine = EngineConfig(
        num_gpu_blocks=1001, max_model_len=2048, step_base_s=0.01, prefill_per_token_s=0.00005, jitter_cv=0.1
    )
    chatting = Chatting(conversations=chats, pauses_s=rng.exponential(20.0, 500))
    return Service(engine=replace(engine, **changes), chatting=chatting)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def run() -> Run:
    return run_of(service(), LEVELS, seed=0)


@pytest.fixture(scope="module")
def true() -> float:
    return true_wall(service(), start=18.0)


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
    answer = recommend([run], slo=SLO)
    assert answer.binding == "prefix_cache"
    assert answer.bounds[0].basis in ("measured", "interpolated")
    rates = [level.prefix_hit_rate for level in answer.levels]
    assert rates[0] > 0.5
    assert rates == sorted(rates, reverse=True)
    fp8 = next(lever for lever in answer.levers if "fp8" in lever.change)
    assert fp8.users == pytest.approx(2 * answer.estimate, rel=0.1)
    assert any("offloading" in lever.change for lever in answer.levers)
    # Memory in use says nothing of it.
    assert next(level for level in answer.levels if level.users == 24).kv_cache_usage < 0.4


def test_where_it_was_not_met_the_report_says_so(run):
    far = recommend([run_of(service(), (2, 4), seed=0)], slo=SLO)
    assert far.at_least
    met = {bound.name for bound in far.bounds}
    assert "prefix_cache" in met  # predicted, far above what was measured
    off = recommend([without_cache(run)], slo=SLO)
    assert "prefix_cache" in {wall.name for wall in off.not_met}
    assert off.levels[0].prefix_hit_rate is None


def test_levels_that_find_everything_overrule_the_formula():
    """As when the pool is larger than the server said."""
    large = run_of(service(num_gpu_blocks=4001), LEVELS, seed=0)
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
    single = replace(service().chatting, conversations=[((200, 100),), ((150, 60),)])
    assert maybe_wall_of(run_of(replace(service(), chatting=single), (4, 8), seed=0)) is None
    off = without_cache(run)
    assert maybe_wall_of(off) is None
    # The server does not say whether it caches: nothing found means that it does not.
    assert maybe_wall_of(with_server(off, enable_prefix_caching=None)) is None


def test_answers_that_are_not_sent_back_as_they_were_are_not_reusable(run):
    forgetful = replace(service(), chatting=replace(service().chatting, answers_cached=False))
    other = run_of(forgetful, (2, 4), seed=0)
    for one, kept in ((run, True), (other, False)):
        evidence = gather([one], slo=SLO)
        turns = turns_of([one], block_tokens=16, shared_prefix=0)
        assert turns is not None
        assert turns.answers_cached is kept
        assert found_in([one], evidence.levels, turns)[0].share == pytest.approx(1.0, abs=0.01)


def test_the_true_limit_knows_it(true):
    found = find_maximum(service(), Slo(ttft_p95_s=60.0, tpot_p95_s=60.0))
    assert found is not None
    assert found.wall == "prefix_cache"
    assert found.x == pytest.approx(true, rel=0.05)
    assert found.below.kv_usage < 0.4


# The parts of the formula.


def chats(lengths, *, outputs=40, block_tokens=8, answers_cached=True, pauses_s=(3.0, 5.0, 9.0)) -> Turns:
    """Conversations of so many turns each; every turn adds 50 tokens and an answer."""
    prompt = np.array([50 + turn * (50 + outputs) for length in lengths for turn in range(length)])
    length = np.array(lengths)
    reusable = np.where(prompt > 50, (prompt - 51) // block_tokens * block_tokens, 0)
    return Turns(
        prompt=prompt,
        output=np.full(len(prompt), outputs),
        first=np.cumsum(length) - length,
        length=length,
        weight=np.full(len(length), 1 / len(length)),
        reusable=reusable.astype(np.float64),
        pauses_s=np.array(pauses_s),
        pause_weight=np.full(len(pauses_s), 1 / len(pauses_s)),
        block_tokens=block_tokens,
        shared_prefix=0,
        answers_cached=answers_cached,
    )


@pytest.mark.parametrize("answers_cached", [True, False])
def test_blocks_touched_are_those_that_counting_finds(answers_cached):
    turns = chats([1, 2, 3, 5], answers_cached=answers_cached)
    line = _TimeLine(turns, 2.0, np.random.default_rng(1), resample=False)
    within = np.array([0.0, 1.0, 4.0, 12.0, 40.0])
    total_s = float(line._end_s[-1])
    now = np.linspace(40.0, total_s, INSTANTS, endpoint=False)
    counted = [_counted(line, turns, at, within) for at in now[::40]]
    assert line.touched(within)[::40] == pytest.approx(np.array(counted))


def _counted(line, turns: Turns, at: float, within) -> list[int]:
    """Names of blocks held at that instant, or last held so long before or less."""
    last: dict[tuple[int, int, int], float] = {}
    chat = -1
    for turn, (row, begin, end) in enumerate(zip(line.row, line._start_s, line._end_s, strict=True)):
        chat += not line.again[turn]
        if begin > at:
            break
        prompt, output = turns.prompt[row], turns.output[row]
        done = min(max((at - begin) / (end - begin), 0.0), 1.0)
        tokens = prompt + done * (output - 1)
        blocks = math.ceil(tokens / 8) if end > at else (prompt + output - 1) // 8
        for place in range(blocks):
            answer = place >= prompt // 8 and not turns.answers_cached
            last[chat, turn if answer else -1, place] = math.inf if end > at else end
    return [sum(when >= at - reach for when in last.values()) for reach in within]


def test_what_is_found_falls_from_all_to_nothing():
    eviction = Eviction(chats([4] * 50), response_s=2.0, rng=np.random.default_rng(0), resample=False)
    shares = eviction.found(np.arange(1.0, 400.0), blocks=1000)
    assert shares[0] == pytest.approx(1.0)
    assert np.all(np.diff(shares) <= 1e-12)
    assert shares[-1] < 0.05
    at = eviction.wall(1000)
    assert float(eviction.found(np.array(at), 1000)) == pytest.approx(0.9, abs=1e-4)
    assert eviction.wall(2000) == pytest.approx(2 * at, rel=0.1)


def test_what_the_end_of_a_run_cut_stands_for_longer_ones():
    rng = np.random.default_rng(0)
    true, cut = rng.geometric(0.2, 20_000), rng.geometric(0.15, 20_000)
    weight = uncut_weights(np.minimum(true, cut).astype(float), true <= cut)
    assert weight.sum() == pytest.approx(1.0)
    assert float(weight @ np.minimum(true, cut)) == pytest.approx(5.0, rel=0.03)
    assert uncut_weights(np.array([1.0, 2.0, 3.0]), np.array([True, False, True])) == pytest.approx(
        [1 / 3, 0.0, 2 / 3]
    )


def test_plays_of_conversations_tell_the_hit_rate_of_their_window():
    """The cold start is left out: in it nothing can be found."""
    played = simulate_users(service(), 4, requests=400, seed=1)
    begin_s, end_s = played.window
    inside = [one for one in played.traces[0].requests if begin_s <= (one.end_s or 0.0) <= end_s]
    hits = sum(one.cached_tokens for one in inside) / sum(one.prompt_tokens for one in inside)
    assert played.figures(SLO).prefix_hit_rate == pytest.approx(hits)


def test_one_noisy_lowest_level_is_not_averaged_away_by_many_others():
    eviction = Eviction(chats([4] * 50), response_s=2.0, rng=np.random.default_rng(0), resample=False)
    pool = Pool(blocks=1000, block_tokens=8)
    users = round(eviction.wall(1000))

    def spread(levels: int) -> float:
        lowest = Found(users=1, share=0.9, se=0.05)
        others = [Found(users=users, share=0.81, se=0.002)] * levels
        shift, weight = prefix_cache._shift(eviction, pool, [lowest, *others], sd=1.0)
        return math.sqrt(weight @ shift**2 - (weight @ shift) ** 2)

    assert spread(9) > 0.9 * spread(1)
