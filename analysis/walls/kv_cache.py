"""TODO."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.lengths import Pairs
from analysis.evidence.step_time import Pace
from analysis.evidence.think_time import Thinking, active_of
from analysis.levels.context import Pool
from analysis.levels.level import Level
from analysis.statistics.arrays import Floats, Ints
from analysis.walls.block_law import SMALLEST, BlockLaw, Occupancy, block_law
from analysis.walls.kv_shift import Seen, Shift, measured_pressure, shift_of, wall
from analysis.walls.replay import replayed
from loadtest.record import Slo

GRAIN_USERS, GRAIN_SHARE = 0.1, 0.005  # standard error, the larger: the curve between whole users, the replay


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class MemoryWall:
    """The wall and its resampled draws, shape (resamples,), in users of all engines together."""

    x: float
    draws: Floats
    law: BlockLaw
    pool: Pool
    shift: Shift
    blocks: int
    """Of one engine, shared prefix taken off."""


def memory_wall(
    pairs: Pairs,
    pool: Pool,
    levels: Sequence[Level],
    slo: Slo,
    *,
    thinking: Thinking | None = None,
    pace: Pace | None = None,
    max_num_seqs: int | None = None,
    replay: bool = True,
    resamples: int = 300,
    rng: np.random.Generator,
    on_step: Callable[[int], None] = lambda _: None,
) -> MemoryWall:
    """Where the pool stops holding, drawn from resampled conversations, the error of the think time, and the
    formula's own, which a replay in the engine, at the pace that was measured, makes smaller."""
    blocks = pool.blocks - pairs.shared_prefix // pool.block_tokens
    thinking = thinking.of_one(pool.engines) if thinking else None
    pace = pace.of_one(pool.engines) if pace else None
    seen = [
        _for_one_engine(one, pool.engines) for one in measured_pressure(levels, max_num_seqs=max_num_seqs)
    ]

    law = block_law(pairs, block_tokens=pool.block_tokens)
    formula = Occupancy(law, blocks, active_of(thinking))
    start = max(int(blocks / max(law.mean, SMALLEST)), 1)
    rough = wall(formula, slo, shift=Shift(), start=start)
    prior = Shift()
    if replay:
        prior = replayed(pairs, pool, formula, slo, pace=pace, thinking=thinking, x=rough)

    def one(weight: Floats | None, thinking: Thinking | None, start: int) -> tuple[float, Shift, Occupancy]:
        law = block_law(pairs, block_tokens=pool.block_tokens, weight=weight)
        occupancy = Occupancy(law, blocks, active_of(thinking))
        rough = wall(occupancy, slo, shift=prior, start=start)
        shift = shift_of(occupancy, seen, slo, near_users=rough, prior=prior)
        return wall(occupancy, slo, shift=shift, start=max(int(rough), 1)), shift, occupancy

    x, shift, _ = one(None, thinking, max(int(rough), 1))
    draws = np.empty(resamples)
    for at in range(resamples):
        thought = thinking.drawn(rng) if thinking else None
        _, drawn, occupancy = one(_resampled(pairs.conversation, rng), thought, max(int(x), 1))
        moved = wall(occupancy, slo, shift=_jittered(drawn, rng), start=max(int(x), 1))
        draws[at] = max(moved + max(GRAIN_USERS, GRAIN_SHARE * moved) * rng.standard_normal(), 0.0)
        on_step(1)
    return MemoryWall(
        x=x * pool.engines, draws=draws * pool.engines, law=law, pool=pool, shift=shift, blocks=blocks
    )


def _for_one_engine(seen: Seen, engines: int) -> Seen:
    if engines == 1:
        return seen
    return Seen(
        users=max(round(seen.users / engines), 1),
        preemptions=seen.preemptions,
        finished=seen.finished,
        blocked=math.nan,
        scrapes=0.0,
    )


def _jittered(shift: Shift, rng: np.random.Generator) -> Shift:
    return Shift(
        preempted=shift.preempted + shift.preempted_se * rng.standard_normal(),
        blocked=shift.blocked + shift.blocked_se * rng.standard_normal(),
    )


def _resampled(conversation: Ints, rng: np.random.Generator) -> Floats:
    """How often each request counts in a resample of whole conversations, which are 0..k-1. Shape (n,)."""
    count = int(conversation.max()) + 1
    drawn = np.bincount(rng.integers(0, count, count), minlength=count)
    return drawn[conversation].astype(np.float64)
