"""Joins what is known of a deployment's walls into the answer of the command."""

import math
from typing import Literal

import numpy as np

from analysis.answers.production import (
    AutoscalerTarget,
    HeadroomAnswer,
    OpenInterval,
    SeenConcurrency,
    SeenMemory,
    SeenWall,
)
from analysis.cli import RefusedError
from analysis.headroom.memory_wall import FULL_POOL, MemoryWall, memory_wall, preempted_in
from analysis.headroom.seen_loads import SeenCrossing, WindowMisses, seen_crossing
from analysis.production.engines import EngineHistory, Production
from analysis.production.traffic import MIN_FINISHED, seen_concurrency
from analysis.statistics.crossings import MISS_LIMIT
from loadtest.errors import InputError
from loadtest.record import Slo

SEEN_LATENCIES: tuple[Literal["ttft"], Literal["tpot"]] = ("ttft", "tpot")
FAR = 2.0
"""A wall that lies this many times above the highest load that was seen is called far from it."""
PAIRING_SLACK = 0.05
"""Share by which the measured blocks of a request may leave the range of all pairings unremarked."""
SLOT_SCRAPES, SLOT_SHARE = 5, 0.9
"""So many scrapes with waiting requests and free memory, of which this share has the same number running,
look like max_num_seqs."""


def headroom_answer(production: Production, slo: Slo, *, max_num_seqs: int | None) -> HeadroomAnswer:
    """Returns how far a deployment is from its walls. Raises RefusedError where too few requests finished."""
    concurrency = seen_concurrency(production)
    prompt, output = (production.histogram(name) for name in ("prompt_tokens", "output_tokens"))
    if prompt is None or output is None or min(prompt.n, output.n) < MIN_FINISHED:
        raise RefusedError(
            f"{production.source} counts fewer than {MIN_FINISHED} finished requests of {production.model}: "
            "look further back, or wait."
        )
    memory = memory_wall(production, prompt, output, slo)
    walls = [*_memory_walls(production, memory, slo), *_slot_walls(concurrency, production, max_num_seqs)]
    walls += [_latency_wall(production, slo, name) for name in SEEN_LATENCIES]
    walls.sort(key=lambda wall: math.inf if wall.x is None else wall.x)
    target = _target(walls)
    return HeadroomAnswer(
        source=production.source,
        model=production.model,
        simulated=production.simulated,
        from_unix_s=production.start_unix_s,
        to_unix_s=production.end_unix_s,
        times_known=production.times_known,
        slo=slo,
        concurrency=concurrency,
        memory=_seen_memory(production, memory) if memory is not None else None,
        walls=walls,
        growth=_growth(walls, concurrency.busiest_replica_peak),
        target=target,
        rule=None,
        warnings=[
            *production.warnings,
            *_memory_doubts(production, memory, concurrency),
            *(_slot_doubts(production) if max_num_seqs is None else []),
            *_latency_doubts(production),
        ],
    )


def _memory_walls(production: Production, memory: MemoryWall | None, slo: Slo) -> list[SeenWall]:
    """Returns the memory wall, and the highest load at which preemptions surely were within their limit."""
    preempted = seen_crossing(production, preempted_in, limit=slo.preempted_fraction)
    held = preempted.held if preempted else None
    if memory is None:
        how = "the server does not tell its KV pool, or its requests hold next to nothing"
        return [_wall("kv_cache", None, None, held, how)]
    low, x, high = memory.best
    how = "the pool, over what prompts and answers of such lengths hold, whichever go together"
    if memory.by_usage is not None:
        how = "the pool, over what a running request uses"
    if memory.near:
        how += "; moved by preemptions, or their absence, from half of it on"
    return [_wall("kv_cache", x, (low, high), None, how)]


def _slot_walls(
    concurrency: SeenConcurrency, production: Production, max_num_seqs: int | None
) -> list[SeenWall]:
    if max_num_seqs is None:
        return []
    most = max(float(np.nanmax(engine.running)) for engine in production.engines)
    if most > max_num_seqs:
        raise InputError(
            f"--max-num-seqs {max_num_seqs} is not that of this server: {most:.0f} requests ran at once."
        )
    how = "more requests than --max-num-seqs wait for a slot"
    return [_wall("max_num_seqs", float(max_num_seqs), (float(max_num_seqs), float(max_num_seqs)), None, how)]


def _latency_wall(production: Production, slo: Slo, name: Literal["ttft", "tpot"]) -> SeenWall:
    """Returns the wall of a latency objective as far as loads were seen. It is not extrapolated."""
    limit_s = slo.ttft_p95_s if name == "ttft" else slo.tpot_p95_s
    curves = [
        seen_crossing(production, _missed(f"{name}_s", limit_s, part), limit=MISS_LIMIT) for part in range(3)
    ]
    least, likely, most = curves
    if least is None or likely is None or most is None:
        return _wall(name, None, None, None, "the server has no histogram of it, or too few requests")
    if least.broken:
        how = f"missed at every load that was seen, from {least.lowest:.1f} in flight on"
        return _wall(name, least.lowest, (0.0, least.lowest), None, how)
    if likely.x is None:
        return _wall(name, None, None, most.held, _not_crossed(likely, most))
    low = min(one for one in (most.low, likely.low, likely.x) if one is not None)
    high = None if least.high is None or likely.high is None else max(least.high, likely.high)
    how = f"more than 5 % of {likely.requests:,} requests miss it above, by the server's own histogram"
    return _wall(name, likely.x, (low, high), None, how)


def _not_crossed(likely: SeenCrossing, most: SeenCrossing) -> str:
    if most.held is not None and most.held >= likely.highest:
        return f"met at every load that was seen, up to {likely.highest:.1f} in flight"
    if most.held is not None:
        return f"surely met up to {most.held:.1f} in flight, not shown up to {likely.highest:.1f}"
    return "the histogram's bounds do not tell whether it was met at any load that was seen"


def _wall(
    name: Literal["kv_cache", "max_num_seqs", "ttft", "tpot"],
    x: float | None,
    interval: OpenInterval | None,
    held: float | None,
    how: str,
) -> SeenWall:
    return SeenWall(name=name, x=x, interval=interval, at_least=held, how=how)


def _missed(name: str, limit_s: float, part: int) -> WindowMisses:
    def missed(engine: EngineHistory, window: int) -> tuple[float, float] | None:
        histogram = engine.histograms.get(name)
        counted = histogram.of(window) if histogram is not None else None
        return (counted.above(limit_s)[part], counted.n) if counted is not None else None

    return missed


def _growth(walls: list[SeenWall], peak: float) -> tuple[float, float, float | None] | None:
    known = [wall for wall in walls if wall.x is not None and wall.interval is not None]
    if not known or not peak > 0:
        return None
    nearest = known[0]
    low = min(wall.interval[0] for wall in known if wall.interval is not None)
    high = nearest.interval[1] if nearest.interval is not None else None
    return low / peak, (nearest.x or 0.0) / peak, None if high is None else high / peak


def _target(walls: list[SeenWall]) -> AutoscalerTarget | None:
    """Returns the lowest of the lower ends of all walls, and of the loads at which objectives that were never
    missed are shown to hold: what lies above is not known. None where an objective is shown to hold
    nowhere."""
    ends = [(wall.interval[0], str(wall.name)) for wall in walls if wall.interval is not None]
    unseen = [wall.at_least for wall in walls if wall.interval is None and wall.name != "kv_cache"]
    ends += [(0.0 if held is None else held, "seen") for held in unseen]
    most, basis = min(ends)
    return AutoscalerTarget(in_flight_per_replica=math.floor(most), basis=basis) if most >= 1 else None


def _seen_memory(production: Production, memory: MemoryWall) -> SeenMemory:
    size = memory.block_size
    usage = [one.kv_cache_usage[~np.isnan(one.kv_cache_usage)] for one in production.engines]
    preemptions = production.counted("preemptions_total")
    low, middle, high = (size * blocks for blocks in memory.blocks_by_lengths)
    return SeenMemory(
        pool_tokens=memory.blocks * size,
        tokens_per_request=size * memory.used.mean if memory.used else None,
        tokens_by_lengths=(low, middle, high),
        users_by_lengths=memory.by_lengths,
        kv_usage_peak=max((float(one.max()) for one in usage if len(one)), default=None),
        preemptions=None if preemptions is None else round(preemptions),
    )


def _memory_doubts(
    production: Production, memory: MemoryWall | None, concurrency: SeenConcurrency
) -> list[str]:
    if memory is None:
        return []
    doubts = []
    used, (low, _, high) = memory.used, memory.blocks_by_lengths
    if used is None:
        doubts.append(
            "KV usage was seen in too few scrapes with requests, so the memory wall is by lengths alone."
        )
    elif used.mean < (1.0 - PAIRING_SLACK) * low:
        doubts.append(
            "Requests hold fewer KV blocks than their lengths say: prompts share blocks in the prefix cache, "
            "or the model keeps less of a long context. The wall moves if that changes."
        )
    elif used.mean > (1.0 + PAIRING_SLACK) * high:
        doubts.append(
            "Requests hold more KV blocks than their lengths say, as where one asks for several answers; "
            "lengths alone would promise too much."
        )
    if memory.best[1] > FAR * concurrency.busiest_replica_peak:
        doubts.append(
            f"The memory wall lies far above the highest load that was seen in a replica "
            f"({concurrency.busiest_replica_peak:.0f} in flight). Whether latency allows it is not seen: "
            "a load test of a copy tells."
        )
    return doubts


def _slot_doubts(production: Production) -> list[str]:
    """Returns a sentence where requests waited, with memory free, at one number of running requests."""
    for engine in production.engines:
        waits = (engine.waiting >= 1) & (engine.kv_cache_usage < FULL_POOL)
        most = float(np.nanmax(engine.running))
        if waits.sum() >= SLOT_SCRAPES and float((engine.running[waits] == most).mean()) >= SLOT_SHARE:
            return [
                f"Requests waited with memory free whenever {most:.0f} ran: this looks like --max-num-seqs "
                f"{most:.0f}, which /metrics does not tell. State it."
            ]
    return []


def _latency_doubts(production: Production) -> list[str]:
    doubts = ["TTFT and TPOT are the engine's own: the way from there to the users adds to them."]
    names = {one.histogram_names.get("tpot_s") for one in production.engines} - {None}
    if names and names != {"request_time_per_output_token_seconds"}:
        doubts.append(
            "This version of vLLM has a histogram of the gaps between tokens and none of requests' TPOT: 5 % "
            "of gaps above it are fewer than 5 % of requests, or more."
        )
    return doubts
