"""The memory wall of a replica in production: from its pool, its lengths, and the KV usage that was seen."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.lengths import LengthPairs
from analysis.headroom.seen_loads import GRAIN, seen_points
from analysis.memory.block_distribution import Holders, Occupancy, block_distribution
from analysis.memory.formula_shift import (
    FAR_USERS,
    FormulaShift,
    LevelPressure,
    kv_wall_users,
    measured_shift,
)
from analysis.production.buckets import Buckets
from analysis.production.engines import EngineHistory, Production
from analysis.production.length_fit import fit_lengths, length_values
from analysis.statistics.arrays import Floats, Ints
from loadtest.record import Slo

PAIRS = 2000
"""Pairs of lengths that stand for the histograms."""
TIME_BATCHES = 10
"""Parts of the time that are compared to say how sure the KV tokens of a request are."""
MIN_SCRAPES = 20
"""Fewest scrapes with requests from which KV usage counts."""
FULL_POOL = 0.9
"""From this share of the pool on, requests that wait do so for memory."""
Z90 = 1.645


@dataclass(frozen=True, kw_only=True, slots=True)
class UsedBlocks:
    """KV blocks that a running request holds, measured."""

    mean: float
    se_ln: float
    """Standard error of ln(mean)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryWall:
    """The memory wall of one replica, in requests in flight. A band is (low, estimate, high)."""

    blocks: int
    """Blocks that requests can use: all but the null block."""
    block_size: int
    blocks_by_lengths: tuple[float, float, float]
    """Mean blocks of a request over its steps: where long prompts have short answers, where lengths do not go
    together, and where long prompts have long answers."""
    by_lengths: tuple[float, float, float]
    used: UsedBlocks | None
    by_usage: tuple[float, float, float] | None
    """None where KV usage was not seen often enough."""
    near: int
    """Loads near the wall whose preemptions moved it."""

    @property
    def best(self) -> tuple[float, float, float]:
        """The band by what was measured; without that, by lengths alone."""
        return self.by_usage or self.by_lengths


def memory_wall(production: Production, prompt: Buckets, output: Buckets, slo: Slo) -> MemoryWall | None:
    """Returns the number of requests in flight at which preemptions or waiting for blocks pass their limits.

    The formula of load tests (`Occupancy`) is asked with lengths from the histograms. These do not tell which
    prompt had which answer, so the band by lengths alone holds every pairing. KV usage over running requests
    does tell what a request holds, also where prompts share blocks: it scales the pool of the formula. Where
    the loads that were seen come near the wall, preemptions move it, as they do in a load test.

    Returns None where the server does not tell its pool, or where no number of requests fills it.
    """
    pools = [
        (one.num_gpu_blocks, one.block_size)
        for one in production.engines
        if one.num_gpu_blocks and one.block_size
    ]
    if not pools:
        return None
    num_gpu_blocks, block_size = min(pools)
    blocks = num_gpu_blocks - 1
    prompts, outputs = (_lengths(buckets) for buckets in (prompt, output))
    mixed = np.random.default_rng(0).permutation(PAIRS)
    paired = [_pairs(prompts, outputs[order]) for order in (slice(None, None, -1), mixed, slice(None))]
    means = [block_distribution(pairs, block_tokens=block_size).mean for pairs in paired]
    walls = [_walls(pairs, blocks, block_size, slo) for pairs in paired]
    if not all(0 < wall[1] < FAR_USERS for wall in walls):
        return None
    used, seen = used_blocks(production), _pressures(production)
    by_usage, near = None, 0
    if used is not None:
        scaled = blocks * means[1] / used.mean
        band, near = _moved(paired[1], scaled, block_size, slo, seen)
        by_usage = _widened(band, Z90 * used.se_ln)
    return MemoryWall(
        blocks=blocks,
        block_size=block_size,
        blocks_by_lengths=(min(means), means[1], max(means)),
        by_lengths=(min(wall[0] for wall in walls), walls[1][1], max(wall[2] for wall in walls)),
        used=used,
        by_usage=by_usage,
        near=near,
    )


def used_blocks(production: Production) -> UsedBlocks | None:
    """Returns the mean KV blocks of a running request, by the scrapes with at least as many requests running
    as in their median: a prefix that several share is then counted about as at the wall."""
    known = [_used(engine) for engine in production.engines if engine.num_gpu_blocks]
    at, running, held = (np.concatenate([np.empty(0), *(one[part] for one in known)]) for part in range(3))
    if len(running) < MIN_SCRAPES:
        return None
    busy = running >= np.median(running)
    at, running, held = at[busy], running[busy], held[busy]
    mean = float(held.sum() / running.sum())
    if not mean > 0:
        return None
    batch = np.minimum(
        (np.argsort(np.argsort(at, kind="stable")) * TIME_BATCHES) // len(at), TIME_BATCHES - 1
    ).astype(np.int64)
    rest = np.bincount(batch, held - mean * running, TIME_BATCHES)
    count = len(np.unique(batch))
    error = math.sqrt(float(rest @ rest) * count / max(count - 1, 1)) / float(running.sum())
    return UsedBlocks(mean=mean, se_ln=error / mean)


def _used(engine: EngineHistory) -> tuple[Floats, Floats, Floats]:
    some = (engine.running >= 1) & (engine.kv_cache_usage > 0)
    held = engine.kv_cache_usage[some] * ((engine.num_gpu_blocks or 0) - 1)
    return engine.unix_s[some], engine.running[some], held


def _lengths(buckets: Buckets) -> Ints:
    whole: Ints = np.maximum(np.rint(length_values(buckets, fit_lengths(buckets), PAIRS)), 1).astype(np.int64)
    return whole


def _pairs(prompt: Ints, output: Ints) -> LengthPairs:
    return LengthPairs(prompt=prompt, output=output, conversation=np.arange(PAIRS))


def _walls(pairs: LengthPairs, blocks: float, block_size: int, slo: Slo) -> tuple[float, float, float]:
    """Returns the wall on a pool of so many blocks, with the formula's own errors."""
    return _moved(pairs, blocks, block_size, slo, [])[0]


def _moved(
    pairs: LengthPairs, blocks: float, block_size: int, slo: Slo, seen: Sequence[LevelPressure]
) -> tuple[tuple[float, float, float], int]:
    """Returns the wall on a pool of so many blocks, with the formula's errors as far as preemptions at loads
    near the wall leave them, and how many such loads there are."""
    distribution = block_distribution(pairs, block_tokens=block_size)
    occupancy = Occupancy([Holders(distribution)], max(round(blocks), 1))
    start = max(int(blocks / distribution.mean), 1)
    rough = kv_wall_users(occupancy, slo, shift=FormulaShift(), start=start)
    formula = measured_shift(occupancy, seen, slo, near_users=rough, prior=FormulaShift())

    def wall(sign: float) -> float:
        shift = FormulaShift(
            preempted=formula.preempted + sign * Z90 * formula.preempted_se,
            blocked=formula.blocked + sign * Z90 * formula.blocked_se,
        )
        return kv_wall_users(occupancy, slo, shift=shift, start=start)

    return (wall(1.0), wall(0.0), wall(-1.0)), formula.levels


def _pressures(production: Production) -> list[LevelPressure]:
    """Returns the preemptions at each load that was seen. Requests that wait for a slot hold no memory."""
    return [
        LevelPressure(
            users=max(round(point.users / GRAIN), 1),
            preemptions=float(point.misses.misses),
            finished=point.misses.n,
            blocked=math.nan,
            scrapes=0.0,
        )
        for point in seen_points(production, preempted_in, _holding)
    ]


def _holding(engine: EngineHistory) -> Floats:
    full = engine.kv_cache_usage >= FULL_POOL
    held: Floats = engine.running + np.where(full, np.nan_to_num(engine.waiting), 0.0)
    return held


def preempted_in(engine: EngineHistory, window: int) -> tuple[float, float] | None:
    """Returns preemptions and finished requests of a window; None where they are not known."""
    if not {"preemptions_total", "finished_total"} <= set(engine.counted):
        return None
    preempted = float(engine.counted["preemptions_total"][window])
    finished = float(engine.counted["finished_total"][window])
    known = not math.isnan(preempted) and not math.isnan(finished)
    return (preempted, finished) if known else None


def _widened(band: tuple[float, float, float], reach: float) -> tuple[float, float, float]:
    """Adds an error of `reach` in ln x to a band, in quadrature."""
    low, x, high = band
    if not low > 0:
        return band
    below, above = math.hypot(math.log(x / low), reach), math.hypot(math.log(high / x), reach)
    return x * math.exp(-below), x, x * math.exp(above)
