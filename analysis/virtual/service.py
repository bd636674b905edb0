"""A service in virtual time: an engine, what lies between it and its clients, and how people chat with it.

Knows no files: `calibrate` makes one from a run, presets make one from a data sheet.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics.arrays import Floats
from analysis.virtual.crowd import Crowd, DueRequest, RequestMaker, Service, replicas_of
from loadtest.record import Slo
from loadtest.simulator.requests import Request
from loadtest.simulator.steps import Shortage
from loadtest.simulator.virtual import EngineTrace, Route, first_replica, simulate_replicas

REQUESTS_PER_USER = 60  # requests of each user, where nothing else says how long to play
ITL_REQUESTS = 2000  # whose every token is looked at


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualFigures:
    """What a plateau of users, or an open loop, sees and what the server says meanwhile; nan where nothing
    was. Server figures are means over time and replicas, as scrapes see them."""

    users: int
    requests: int
    in_flight: float
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    itl_p50_s: float
    itl_p95_s: float
    output_tok_s: float
    kv_usage: float
    running: float
    waiting: float
    preempted_fraction: float
    """Preemptions for each finished request."""
    blocked_fraction: float
    """Share of time in which a request waits because the pool has no blocks for it."""
    queue_fraction: float
    """Share of time in which a request waits for a slot."""
    prefix_hit_rate: float
    ttft_miss: float
    tpot_miss: float
    """Shares of requests over the objective."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VirtualRun:
    """Virtual traffic and the window in which it is steady."""

    service: Service
    users: int
    traces: Sequence[EngineTrace]
    window: tuple[float, float]
    """Seconds."""

    def figures(self, slo: Slo) -> VirtualFigures:
        """What the window shows."""
        return _seen(self, slo)


def simulate_users(
    service: Service,
    users: int,
    *,
    requests: int | None = None,
    seed: int = 0,
    replicas: int = 1,
    route: Route | None = None,
) -> VirtualRun:
    """A plateau of `users` people, who start at random within one pause and one answer.

    Each person has random numbers of their own, so that two plays of one seed have the same people.
    Deterministic by seed.
    """
    crowd = Crowd(
        service, users=users, wanted=requests or REQUESTS_PER_USER * users, seed=seed, replicas=replicas
    )
    traces = simulate_replicas(
        replicas_of(service.engine, replicas, seed),
        crowd.first(),
        route=route or first_replica,
        on_end=crowd.again,
    )
    return VirtualRun(service=service, users=users, traces=traces, window=crowd.window)


def simulate_arrivals(
    service: Service,
    arrivals: Sequence[DueRequest],
    *,
    seed: int = 0,
    replicas: int = 1,
    route: Route | None = None,
) -> VirtualRun:
    """An open loop: requests of known lengths at known times. The window is from the first to the last."""
    texts = RequestMaker(service)
    timed = [(one.at_s, texts.due(one, chat)) for chat, one in enumerate(arrivals)]
    traces = simulate_replicas(
        replicas_of(service.engine, replicas, seed), timed, route=route or first_replica
    )
    ends = (timed[0][0], timed[-1][0]) if timed else (0.0, 0.0)
    return VirtualRun(service=service, users=0, traces=traces, window=ends)


def _seen(played: VirtualRun, slo: Slo) -> VirtualFigures:
    begin_s, end_s = played.window
    overhead_s = played.service.overhead_at(played.users / len(played.traces))
    inside = [
        [one for one in trace.requests if one.end_s is not None and begin_s <= one.end_s <= end_s]
        for trace in played.traces
    ]
    rows = [one for requests in inside for one in requests]
    first = np.array([one.first_token_s for one in rows], dtype=np.float64)
    last = np.array([one.end_s for one in rows], dtype=np.float64)
    arrival = np.array([one.arrival_s for one in rows], dtype=np.float64)
    output = np.array([one.output_tokens for one in rows], dtype=np.float64)
    ttft = first - arrival + overhead_s
    many = output > 1
    tpot = (last - first)[many] / (output[many] - 1)
    gauges = [_gauges(trace, begin_s, end_s) for trace in played.traces]
    usage, running, waiting, blocked, queue = np.mean(np.array(gauges), axis=0)
    itl = _gaps(played.traces, inside)
    window_s = max(end_s - begin_s, 1e-9)
    return VirtualFigures(
        users=played.users,
        requests=len(rows),
        in_flight=float(np.sum(last - arrival + overhead_s)) / window_s,
        ttft_p50_s=_quantile(ttft, 0.5),
        ttft_p95_s=_quantile(ttft, 0.95),
        tpot_p50_s=_quantile(tpot, 0.5),
        tpot_p95_s=_quantile(tpot, 0.95),
        itl_p50_s=_quantile(itl, 0.5),
        itl_p95_s=_quantile(itl, 0.95),
        output_tok_s=float(output.sum()) / window_s,
        kv_usage=float(usage),
        running=float(running),
        waiting=float(waiting),
        preempted_fraction=sum(one.preemptions for one in rows) / max(len(rows), 1),
        blocked_fraction=float(blocked),
        queue_fraction=float(queue),
        prefix_hit_rate=_hit_rate(played.service, rows),
        ttft_miss=_share(ttft > slo.ttft_p95_s),
        tpot_miss=_share(tpot > slo.tpot_p95_s),
    )


def _quantile(values: Floats, at: float) -> float:
    return float(np.quantile(values, at)) if len(values) else math.nan


def _share(events: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> float:
    return float(events.mean()) if len(events) else math.nan


def _gauges(trace: EngineTrace, begin_s: float, end_s: float) -> tuple[float, ...]:
    """Usage, running, waiting, blocked and queue: each step's gauges stand until the next one's."""
    at = np.asarray(trace.step_end_s)
    stands_s = np.diff(np.clip(at, begin_s, end_s), append=end_s)
    weight = np.maximum(stands_s, 0.0)
    if not weight.sum() > 0:
        return (0.0,) * 5
    shortages = np.asarray(trace.shortages)
    columns = (
        np.asarray(trace.used_blocks) / trace.pool_blocks,
        np.asarray(trace.running),
        np.asarray(trace.waiting),
        shortages == Shortage.BLOCKS,
        shortages == Shortage.SLOTS,
    )
    return tuple(float(np.average(column, weights=weight)) for column in columns)


def _gaps(traces: Sequence[EngineTrace], inside: Sequence[Sequence[Request]]) -> Floats:
    """Inter-token latencies of requests spread over the window, seconds, one after the other."""
    found = [
        np.diff(np.asarray(trace.token_times_s(request)))
        for trace, requests in zip(traces, inside, strict=True)
        for request in requests[:: max(len(requests) // ITL_REQUESTS, 1)]
    ]
    return np.concatenate(found) if found else np.empty(0)


def _hit_rate(service: Service, rows: Sequence[Request]) -> float:
    if not rows or not service.engine.enable_prefix_caching:
        return math.nan
    return sum(one.cached_tokens for one in rows) / sum(one.prompt_tokens for one in rows)
