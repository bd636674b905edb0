"""TODO."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.evidence import Evidence, gather
from analysis.evidence.gauge import Gauge, gauge_of
from analysis.levels.level import load_points
from analysis.notes import NoLevels, NoRequests, NoSuccess, Note, NoTrustedLevel, OpenLoop, PastWallAtLowest
from analysis.reading.runs import Run
from analysis.statistics.crossings import Crossing, miss_crossing, p95_crossing
from analysis.walls.errors import OVERLOAD_LIMIT
from analysis.walls.kv_cache import MemoryWall, memory_wall
from analysis.walls.max_num_seqs import placed_max_num_seqs
from analysis.walls.names import WallName
from analysis.walls.placed import (
    QUICK_RESAMPLES,
    RESAMPLES,
    PlacedWall,
    placed_at_crossing,
    placed_between,
    placed_by_draws,
)
from analysis.walls.prefix_cache import PrefixWall, prefix_wall
from analysis.walls.throughput import throughput_fall
from loadtest.record import Slo


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judgement:
    """The evidence and where the walls stand in it: what an answer at any confidence is made of."""

    evidence: Evidence
    memory: MemoryWall | None
    prefix: PrefixWall | None
    gauge: Gauge | None
    walls: Sequence[PlacedWall]
    reasons: list[Note]


def judge(
    runs: Sequence[Run],
    *,
    slo: Slo,
    seed: int = 0,
    quick: bool = False,
    on_step: Callable[[int], None] = lambda _: None,
) -> Judgement:
    """Places the walls of runs that may be pooled (see `load.comparable`). Deterministic for a given seed.

    `on_step` is called for each of RESAMPLES resamples, for a progress bar. `quick`, for a look while a test
    runs: the memory wall without the engine's replay, from fewer resamples.
    """
    rng = np.random.default_rng(seed)
    evidence = gather(runs, slo=slo)
    memory = _memory_wall(evidence, rng, on_step, quick=quick)
    prefix = _prefix_wall(evidence, np.random.default_rng(seed + 1))
    walls = _placed_walls(evidence, memory, prefix, rng)
    return Judgement(
        evidence=evidence,
        memory=memory,
        prefix=prefix,
        gauge=_gauge(evidence),
        walls=walls,
        reasons=_reasons_to_refuse(evidence, walls),
    )


def _memory_wall(
    evidence: Evidence, rng: np.random.Generator, on_step: Callable[[int], None], *, quick: bool
) -> MemoryWall | None:
    if evidence.pairs is None or evidence.pool is None:
        return None
    return memory_wall(
        evidence.pairs,
        evidence.pool,
        evidence.levels,
        evidence.slo,
        thinking=evidence.thinking,
        pace=None if quick else evidence.pace,
        max_num_seqs=evidence.max_num_seqs,
        replay=not quick,
        resamples=QUICK_RESAMPLES if quick else RESAMPLES,
        rng=rng,
        on_step=on_step,
    )


def _prefix_wall(evidence: Evidence, rng: np.random.Generator) -> PrefixWall | None:
    if evidence.pairs is None or evidence.pool is None:
        return None
    return prefix_wall(
        evidence.runs,
        evidence.levels,
        evidence.pool,
        shared_prefix=evidence.pairs.shared_prefix,
        resamples=RESAMPLES,
        rng=rng,
    )


def _gauge(evidence: Evidence) -> Gauge | None:
    if evidence.pool is None or evidence.pairs is None:
        return None
    return gauge_of(evidence.runs, evidence.levels, evidence.pool, shared_prefix=evidence.pairs.shared_prefix)


def _placed_walls(
    evidence: Evidence, memory: MemoryWall | None, prefix: PrefixWall | None, rng: np.random.Generator
) -> list[PlacedWall]:
    """Every wall that was met, or that a model places."""
    found = []
    if memory is not None:
        found.append(
            placed_by_draws("kv_cache", evidence, memory.x, memory.draws, measured=memory.shift.levels > 0)
        )
    if prefix is not None:
        found.append(
            placed_by_draws("prefix_cache", evidence, prefix.x, prefix.draws, measured=prefix.measured)
        )
    found += _objective_walls(evidence, rng)
    fall = throughput_fall(evidence.levels)
    if fall is not None:
        found.append(placed_between("throughput", evidence, fall, rng))
    if evidence.max_num_seqs is not None:
        found.append(placed_max_num_seqs(evidence, evidence.max_num_seqs, rng))
    return found


def _objective_walls(evidence: Evidence, rng: np.random.Generator) -> list[PlacedWall]:
    slo, levels = evidence.slo, evidence.levels
    crossings: dict[WallName, Crossing | None] = {
        "ttft": p95_crossing(
            load_points(
                levels, lambda level: level.requests.ttft_miss, lambda level: level.requests.ttft_s.p95
            ),
            objective=slo.ttft_p95_s,
        ),
        "tpot": p95_crossing(
            load_points(
                levels, lambda level: level.requests.tpot_miss, lambda level: level.requests.tpot_s.p95
            ),
            objective=slo.tpot_p95_s,
        ),
        "errors": miss_crossing(
            load_points(levels, lambda level: level.requests.overload), limit=OVERLOAD_LIMIT
        ),
    }
    return [
        placed_at_crossing(name, evidence, crossing, rng)
        for name, crossing in crossings.items()
        if crossing is not None
    ]


def _reasons_to_refuse(evidence: Evidence, walls: Sequence[PlacedWall]) -> list[Note]:
    """Why the data cannot carry an answer; empty when they can."""
    if not any(len(run.requests) for run in evidence.runs):
        return [NoRequests()]
    if not any(run.requests.ok.any() for run in evidence.runs):
        return [NoSuccess()]
    if evidence.open_loop:
        return [OpenLoop()]
    if not evidence.levels:
        return [NoLevels()]
    trusted = evidence.trusted
    if not trusted:
        doubts = [note for level in evidence.levels for note in level.why_not]
        return [NoTrustedLevel(why=[note for at, note in enumerate(doubts) if note not in doubts[:at]])]
    return [
        PastWallAtLowest(users=trusted[0], wall=wall.name)
        for wall in walls
        if wall.name in ("ttft", "tpot", "errors") and wall.x < trusted[0] and trusted[0] > 1
    ]
