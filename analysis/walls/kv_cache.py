"""The KV-cache wall (a limit in users): requests wait for memory, or are preempted and computed again."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.evidence import Evidence
from analysis.evidence.lengths import LengthPairs
from analysis.evidence.step_time import StepCost
from analysis.evidence.think_time import Thinking
from analysis.levels.context import Pool
from analysis.levels.level import Level
from analysis.memory.block_distribution import (
    SMALLEST,
    Holders,
    Occupancy,
    blocks_of_a_user,
    holders_of,
)
from analysis.memory.formula_shift import (
    FAR_USERS,
    FormulaShift,
    LevelPressure,
    kv_wall_users,
    measured_pressure,
    measured_shift,
)
from analysis.memory.replay import replayed_shift
from analysis.statistics.arrays import Floats, Ints
from analysis.walls.placed import PlacedWall, placed_by_draws
from loadtest.record import Slo

GRAIN_USERS = 0.1  # standard error from the interpolation between whole users
GRAIN_SHARE = 0.005  # standard error of the replay, as a share of the wall


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class KvCacheWall:
    """The KV-cache wall (a limit in users).

    x: number of users at the wall, over all engines together. draws: values of `x` from resampled data, shape
    (resamples,).
    """

    x: float
    draws: Floats
    holders: Sequence[Holders]
    """The users of one engine, by class."""
    pool: Pool
    shift: FormulaShift
    blocks: int
    """Blocks of one engine's pool, those of a text that all users share left out."""


def place_kv_cache(evidence: Evidence, wall: KvCacheWall) -> PlacedWall | None:
    """Returns the KV-cache wall as a `PlacedWall`, the form that all walls have; None where no number of
    users exceeds the limits."""
    if wall.x >= FAR_USERS:
        return None
    return placed_by_draws("kv_cache", evidence, wall.x, wall.draws, measured=wall.shift.levels > 0)


def kv_cache_wall(
    pairs: LengthPairs,
    pool: Pool,
    levels: Sequence[Level],
    slo: Slo,
    *,
    thinking: Thinking | None = None,
    step_cost: StepCost | None = None,
    replay: bool = True,
    resamples: int = 300,
    rng: np.random.Generator,
    on_step: Callable[[int], None] = lambda _: None,
) -> KvCacheWall:
    """Computes the number of users at which preemptions or the time blocked exceed their limits.

    The result of a formula is corrected twice: by a replay of the measured lengths in the simulated engine,
    then by the preemptions and blocked times measured at levels near the wall. Each of the `resamples` draws
    resamples whole conversations, the think time and the correction.
    """
    blocks = pool.blocks - pairs.shared_prefix // pool.block_tokens
    thinking = thinking.per_engine(pool.engines) if thinking else None
    step_cost = step_cost.per_engine(pool.engines) if step_cost else None
    seen = [_for_one_engine(one, pool.engines) for one in measured_pressure(levels)]

    holders = holders_of(pairs, block_tokens=pool.block_tokens, thinking=thinking)
    formula = Occupancy(holders, blocks)
    start = max(int(blocks / max(blocks_of_a_user(holders)[0], SMALLEST)), 1)
    rough = kv_wall_users(formula, slo, shift=FormulaShift(), start=start)
    prior = FormulaShift()
    if replay:
        prior = replayed_shift(pairs, pool, formula, slo, step_cost=step_cost, thinking=thinking, x=rough)

    def place(
        weight: Floats | None, thinking: Thinking | None, start: int
    ) -> tuple[float, FormulaShift, Occupancy]:
        resampled = holders_of(pairs, block_tokens=pool.block_tokens, thinking=thinking, weight=weight)
        occupancy = Occupancy(resampled, blocks)
        rough = kv_wall_users(occupancy, slo, shift=prior, start=start)
        shift = measured_shift(occupancy, seen, slo, near_users=rough, prior=prior)
        return kv_wall_users(occupancy, slo, shift=shift, start=max(int(rough), 1)), shift, occupancy

    x, shift, _ = place(None, thinking, max(int(rough), 1))
    draws = np.empty(resamples)
    for at in range(resamples):
        thought = thinking.drawn(rng) if thinking else None
        _, drawn, occupancy = place(_resampled(pairs.conversation, rng), thought, max(int(x), 1))
        moved = kv_wall_users(occupancy, slo, shift=_jittered(drawn, rng), start=max(int(x), 1))
        draws[at] = max(moved + max(GRAIN_USERS, GRAIN_SHARE * moved) * rng.standard_normal(), 0.0)
        on_step(1)
    return KvCacheWall(
        x=x * pool.engines,
        draws=draws * pool.engines,
        holders=holders,
        pool=pool,
        shift=shift,
        blocks=blocks,
    )


def _for_one_engine(seen: LevelPressure, engines: int) -> LevelPressure:
    if engines == 1:
        return seen
    return LevelPressure(
        users=max(round(seen.users / engines), 1),
        preemptions=seen.preemptions,
        finished=seen.finished,
        blocked=math.nan,
        scrapes=0.0,
    )


def _jittered(shift: FormulaShift, rng: np.random.Generator) -> FormulaShift:
    return FormulaShift(
        preempted=shift.preempted + shift.preempted_se * rng.standard_normal(),
        blocked=shift.blocked + shift.blocked_se * rng.standard_normal(),
    )


def _resampled(conversation: Ints, rng: np.random.Generator) -> Floats:
    """Draws whole conversations at random and returns how often each request was drawn. Shape (n,).

    conversation: number of each request's conversation, 0..k-1.
    """
    count = int(conversation.max()) + 1
    drawn = np.bincount(rng.integers(0, count, count), minlength=count)
    return drawn[conversation].astype(np.float64)
