"""The prefix-cache wall: the users whose histories are evicted from the cache before the next turn.

It limits the answer only where an objective for the hits is set.

Hits are shares of the tokens that an unlimited cache would have found. Formulas: docs/method.md.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.evidence import Evidence
from analysis.evidence.think_time import Thinking, thinking_of
from analysis.evidence.turns import Turns, answers_cached_of, reusable_tokens, turns_of
from analysis.levels.context import Pool
from analysis.levels.level import Level
from analysis.memory.eviction import FOUND_LIMIT, MOST_USERS, Eviction
from analysis.reading.runs import Run
from analysis.statistics.arrays import Floats
from analysis.statistics.samples import student
from analysis.walls.placed import WALL_DRAWS, PlacedWall, placed_by_draws

EVICTION_SD = 0.025  # of ln(true wall / formula) at known lengths: `python -m benchmarks prefix_cache`
FREEDOM = 4.0  # of Student's t: its tails let levels outweigh a formula that they contradict
SHAPE_SE = 0.01  # standard error of the formula's relative hits at the wall
SHAPE_DRIFT = 0.1  # further error for each unit of relative hits away from the wall
FARTHEST = math.log(20.0)  # |ln(wall / formula)| that measured levels can reach
MIN_HITS = 0.05  # hits at the lowest load; below, nothing is reused (no caching, or other texts)
HIT_BATCHES = 8  # batches of a window, for the standard error of its hits
FORMULA_DRAWS = 60
SETTLING_ROUNDS = 4  # rounds after which request durations and wall agree
SHIFT_GRID = 1001


@dataclass(frozen=True, kw_only=True, slots=True)
class LevelHits:
    """Share of the reusable tokens that one trusted level found in the cache, with its standard error."""

    users: int
    share: float
    se: float


Reusable = Callable[[Run], Floats]
"""Returns the tokens of each request of a run that an unlimited cache would hold."""


def level_hits(runs: Sequence[Run], levels: Sequence[Level], reusable_of: Reusable) -> list[LevelHits]:
    """Returns the hits of each trusted level, in rising order of users.

    They come from the requests' cached tokens, or else from the server's counter.
    """
    found = []
    for run in runs:
        reusable = reusable_of(run)
        for level in levels:
            if level.trusted and level.run_id == run.info.run_id:
                edges = np.linspace(level.window.begin_unix_s, level.window.end_unix_s, HIT_BATCHES + 1)
                share = _hit_share(*_batches(run, reusable, edges))
                if share is not None:
                    found.append(LevelHits(users=level.users, share=share[0], se=share[1]))
    return sorted(found, key=lambda one: one.users)


def _batches(run: Run, reusable: Floats, edges: Floats) -> tuple[Floats, Floats]:
    """Returns two arrays with a value for each batch of the window, shape (HIT_BATCHES,) each.

    They are the tokens found in the cache and the reusable tokens; nan if unknown.
    """
    rows = run.requests
    inside = (rows.end_unix_s >= edges[0]) & (rows.end_unix_s < edges[-1]) & ~np.isnan(reusable)
    if inside.any() and not np.isnan(rows.cached_tokens[inside]).any():
        at, hits = rows.end_unix_s[inside], rows.cached_tokens[inside]
        return np.histogram(at, edges, weights=hits)[0], np.histogram(at, edges, weights=reusable[inside])[0]
    counter = run.server.prefix_cache_hits_total
    told = ~np.isnan(counter)
    begun = rows.start_unix_s + np.nan_to_num(rows.sent_s)
    asked = (begun >= edges[0]) & (begun < edges[-1]) & ~np.isnan(reusable)
    if told.sum() < 2:
        return np.full(HIT_BATCHES, np.nan), np.full(HIT_BATCHES, np.nan)
    hits = np.diff(np.interp(edges, run.server.unix_s[told], counter[told]))
    return hits, np.histogram(begun[asked], edges, weights=reusable[asked])[0]


def _hit_share(hits: Floats, reusable: Floats) -> tuple[float, float] | None:
    """Returns the share of the reusable tokens that was found, and its standard error; None if undefined.

    The standard error comes from the batches. It is widened by Student's t, because batches are few.
    """
    total = float(reusable.sum())
    if not total > 0:
        return None
    share = float(hits.sum()) / total
    spread = float(np.sum((hits - share * reusable) ** 2)) * HIT_BATCHES / (HIT_BATCHES - 1)
    return share, math.sqrt(spread) / total * student(HIT_BATCHES) / 1.645


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PrefixWall:
    """The prefix-cache wall in users of all engines together.

    draws: random values of the wall according to its error, shape (draws,).
    """

    x: float
    draws: Floats
    measured: bool
    """Whether hit rates of several levels moved the formula."""
    with_pool: Callable[[float], float]
    """Function from the factor by which the pool grows to the users at the wall."""


def place_prefix_cache(evidence: Evidence, wall: PrefixWall) -> PlacedWall:
    """Returns the prefix-cache wall as a `PlacedWall`, the form that all walls have."""
    return placed_by_draws("prefix_cache", evidence, wall.x, wall.draws, measured=wall.measured)


def prefix_wall(
    runs: Sequence[Run],
    levels: Sequence[Level],
    pool: Pool,
    *,
    shared_prefix: int,
    limit: float | None,
    resamples: int = WALL_DRAWS,
    rng: np.random.Generator,
) -> PrefixWall | None:
    """Computes the number of users at which the hits fall below a share `limit` of those at low load.

    The result of a formula is corrected by the measured hits. None where nothing is reused, because
    conversations have one turn or the server has no prefix caching, and where the number is beyond
    MOST_USERS. With classes of users there is no formula: the wall is where measured hits fall below the
    limit, and None if they do not. limit: the objective; by default FOUND_LIMIT.
    """
    limit = limit or FOUND_LIMIT
    if runs[-1].info.classes:
        return _measured_wall(runs, levels, pool, limit=limit, resamples=resamples, rng=rng)
    thinking = thinking_of(levels)
    turns = turns_of(runs, block_tokens=pool.block_tokens, shared_prefix=shared_prefix)
    if turns is None or thinking is None:
        return None
    found = level_hits(runs, levels, lambda run: _reusable(run, turns))
    caching = runs[-1].info.server.enable_prefix_caching
    if caching is False or (found[0].share < MIN_HITS if found else caching is None):
        return None
    eviction, formula = _settled(turns, thinking, pool, pool.blocks, limit)
    if not math.isfinite(formula):
        return None
    response_s = _response_s(thinking, formula * pool.engines)
    drawn = [
        Eviction(turns, response_s=response_s, rng=rng, resample=True).wall(pool.blocks, limit)
        for _ in range(FORMULA_DRAWS)
    ]
    sd = math.hypot(EVICTION_SD, float(np.std(np.log(np.minimum(drawn, MOST_USERS)))))
    shift, weight = _shift(eviction, pool, found, limit=limit, sd=sd)
    middle, *draws = np.interp(np.append(0.5, rng.uniform(size=resamples)), np.cumsum(weight), shift)
    scale = pool.engines * math.exp(middle)

    def with_pool(factor: float) -> float:
        return scale * _settled(turns, thinking, pool, pool.blocks * factor, limit)[1]

    return PrefixWall(
        x=scale * formula,
        draws=pool.engines * formula * np.exp(draws),
        measured=len(found) > 1,
        with_pool=with_pool,
    )


def _reusable(run: Run, turns: Turns) -> Floats:
    return reusable_tokens(run.requests, turns.answers_cached, turns.block_tokens, turns.shared_prefix)


def _measured_wall(
    runs: Sequence[Run],
    levels: Sequence[Level],
    pool: Pool,
    *,
    limit: float,
    resamples: int,
    rng: np.random.Generator,
) -> PrefixWall | None:
    """Returns the wall between the measured levels whose relative hits are around the limit, on a line."""
    answers_cached = answers_cached_of(runs)

    def reusable(run: Run) -> Floats:
        classes = run.info.classes or []
        shared_of_class = {one.name: float(one.shared_tokens) for one in classes}
        each = np.array([shared_of_class.get(name, 0.0) for name in run.requests.class_names] + [0.0])
        return reusable_tokens(run.requests, answers_cached, pool.block_tokens, each[run.requests.user_class])

    found = level_hits(runs, levels, reusable)
    if len(found) < 2 or found[0].share < MIN_HITS:
        return None
    users = np.array([float(one.users) for one in found])
    share = np.array([one.share for one in found])
    spread = np.array([one.se for one in found])

    def crossing(measured: Floats) -> float:
        below = np.flatnonzero(measured < limit * measured[0])
        if not len(below):
            return float(users[-1])
        low, high = below[0] - 1, below[0]
        part = (measured[low] - limit * measured[0]) / (measured[low] - measured[high])
        return float(users[low] + part * (users[high] - users[low]))

    if not (share < limit * share[0]).any():
        return None
    draws = np.array([crossing(share + spread * rng.standard_normal(len(share))) for _ in range(resamples)])
    x = crossing(share)
    return PrefixWall(x=x, draws=draws, measured=True, with_pool=lambda factor: x * factor)


def _response_s(thinking: Thinking, users: float) -> float:
    whole = max(round(users), 1)
    return thinking.idle_s + thinking.slope_s * whole * thinking.active(whole)


def _settled(
    turns: Turns, thinking: Thinking, pool: Pool, blocks: float, limit: float
) -> tuple[Eviction, float]:
    """Returns the formula, and the number of users of one engine at which it places the wall.

    The formula needs the request duration, and the request duration depends on the number of users that the
    formula gives. Duration and number of users are therefore computed in turn, SETTLING_ROUNDS times.
    """
    users = 1.0
    for _ in range(SETTLING_ROUNDS):
        response_s = _response_s(thinking, min(users, MOST_USERS) * pool.engines)
        eviction = Eviction(turns, response_s=response_s, rng=np.random.default_rng(0), resample=False)
        users = eviction.wall(blocks, limit)
    return eviction, users


def _shift(
    eviction: Eviction, pool: Pool, found: Sequence[LevelHits], *, limit: float = FOUND_LIMIT, sd: float
) -> tuple[Floats, Floats]:
    """Returns possible values of ln(wall / formula) and their weights, shape (SHIFT_GRID,) each.

    The weights are a posterior. The prior is Student's t with scale `sd`, the formula's error. It is updated
    by comparing measured with expected hits. Measured hits are first divided by the measured hits at the
    lowest load, and expected hits by the expected hits at the lowest load.
    """
    shift = np.linspace(-FARTHEST, FARTHEST, SHIFT_GRID)
    log_weight = -0.5 * (FREEDOM + 1.0) * np.log1p((shift / sd) ** 2 / FREEDOM)
    if len(found) > 1:
        lowest, rest = found[0], found[1:]
        relative = np.array([one.share for one in rest]) / lowest.share
        variance = (np.array([one.se for one in rest]) / lowest.share) ** 2
        variance += SHAPE_SE**2 + (SHAPE_DRIFT * (relative - limit)) ** 2
        common = relative * lowest.se / lowest.share  # all ratios contain the lowest level's error
        expected = [
            eviction.found(one.users / pool.engines * np.exp(-shift), pool.blocks) for one in (lowest, *rest)
        ]
        off = relative[:, None] - np.stack(expected[1:]) / expected[0]
        weighed = off / variance[:, None]
        # The quadratic form of diag(variance) + common common^T, by Sherman and Morrison.
        log_weight -= 0.5 * np.sum(off * weighed, axis=0)
        log_weight += 0.5 * (common @ weighed) ** 2 / (1.0 + float(np.sum(common**2 / variance)))
    weight = np.exp(log_weight - log_weight.max())
    return shift, weight / weight.sum()
