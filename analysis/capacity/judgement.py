"""Finds at how many users each wall (limit) lies, and whether the data support an answer."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.evidence import Evidence, gather_evidence
from analysis.evidence.gauge import Gauge, gauge_of
from analysis.notes import NoLevels, NoRequests, NoSuccess, Note, NoTrustedLevel, OpenLoop, PastWallAtLowest
from analysis.reading.runs import Run
from analysis.walls.errors import place_errors
from analysis.walls.kv_cache import KvCacheWall, kv_cache_wall, place_kv_cache
from analysis.walls.latency import place_stall, place_tpot, place_ttft
from analysis.walls.max_num_seqs import place_max_num_seqs
from analysis.walls.placed import QUICK_RESAMPLES, RESAMPLES, PlacedWall
from analysis.walls.prefix_cache import PrefixWall, place_prefix_cache, prefix_wall
from analysis.walls.throughput import place_throughput
from loadtest.record import Slo


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judgement:
    """All that an answer needs, whatever its confidence: the evidence, the walls, and the reasons to refuse.

    A wall is a limit of the deployment, at a number of users.
    """

    evidence: Evidence
    memory: KvCacheWall | None
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
    """Estimates at how many users each wall lies, from runs that may be pooled (`analysis.reading.pooling`).

    Equal seeds give equal results. on_step: called with 1 after each bootstrap resample, for a progress bar.
    quick: less exact but faster, for a run in progress. The KV-cache wall is then estimated without a
    simulation of the engine, and from fewer resamples (QUICK_RESAMPLES).
    """
    rng = np.random.default_rng(seed)
    evidence = gather_evidence(runs, slo=slo)
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
) -> KvCacheWall | None:
    if evidence.pairs is None or evidence.pool is None:
        return None
    return kv_cache_wall(
        evidence.pairs,
        evidence.pool,
        evidence.levels,
        evidence.slo,
        thinking=evidence.thinking,
        step_cost=None if quick else evidence.step_cost,
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
        limit=evidence.slo.prefix_hit_fraction,
        rng=rng,
    )


def _gauge(evidence: Evidence) -> Gauge | None:
    if evidence.pool is None or evidence.pairs is None or evidence.gathered:
        return None
    return gauge_of(evidence.runs, evidence.levels, evidence.pool, evidence.pairs)


def _placed_walls(
    evidence: Evidence, memory: KvCacheWall | None, prefix: PrefixWall | None, rng: np.random.Generator
) -> list[PlacedWall]:
    """Returns every wall that was met in the load test or that a model predicts.

    The prefix cache is a wall only where an objective for its hits is set. To add a kind of wall, write a
    module in `analysis.walls` and add a line here.
    """
    hits_bind = evidence.slo.prefix_hit_fraction is not None
    found = [
        place_kv_cache(evidence, memory) if memory is not None else None,
        place_prefix_cache(evidence, prefix) if prefix is not None and hits_bind else None,
        place_ttft(evidence, rng),
        place_tpot(evidence, rng),
        place_stall(evidence, rng),
        place_errors(evidence, rng),
        place_throughput(evidence, rng),
        place_max_num_seqs(evidence, rng),
    ]
    return [wall for wall in found if wall is not None]


def _reasons_to_refuse(evidence: Evidence, walls: Sequence[PlacedWall]) -> list[Note]:
    """Returns the reasons why the data cannot support an answer; empty when they can."""
    if not any(len(run.requests) for run in evidence.runs):
        return [NoRequests()]
    succeeded = any(run.requests.ok.any() for run in evidence.runs)
    refused_by_load = any(one.cause == "load" for one in evidence.failures) and evidence.trusted
    if not succeeded and not (refused_by_load and any(wall.name == "errors" for wall in walls)):
        return [NoSuccess()]
    if evidence.open_loop:
        return [OpenLoop()]
    if not evidence.levels:
        return [NoLevels(scenario=evidence.runs[-1].info.scenario)]
    trusted = evidence.trusted
    if not trusted:
        doubts = [note for level in evidence.levels for note in level.why_not]
        return [NoTrustedLevel(why=[note for at, note in enumerate(doubts) if note not in doubts[:at]])]
    return [
        PastWallAtLowest(users=trusted[0], wall=wall.name)
        for wall in walls
        if wall.name in ("ttft", "tpot", "stall", "errors") and wall.x < trusted[0] and trusted[0] > 1
    ]
