"""Simulates users or an open loop on a service.

Computes the figures of the steady window: the time in which the load is neither rising nor running out.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import NamedTuple

import numpy as np

from analysis.statistics.arrays import Bools, Floats, Ints
from analysis.virtual.crowd import Crowd, DueRequest, RequestMaker
from analysis.virtual.service import Service
from loadtest.record import OVERLOAD_STATUSES, Slo
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request, RequestState
from loadtest.simulator.engine.steps import Shortage
from loadtest.simulator.routers import Route, first_replica
from loadtest.simulator.virtual import EngineTrace, simulate_replicas

REQUESTS_PER_USER = 60  # default number of requests to simulate for each user
ITL_REQUESTS = 2000  # inter-token latencies are taken from about so many requests


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualFigures:
    """Figures that the client and the server would measure within the steady window.

    A failed request is among those of TTFT where its first token came, or where it had waited longer than the
    objective by its end; its waiting time is then a lower bound. It is among those of TPOT where it got two
    tokens. Quantiles and shares of requests are nan if there were no requests. The figures of the server (KV
    usage, running, waiting, blocked, queue) are means over time and over replicas.
    """

    users: int
    requests: int
    """Requests that ended, failed ones included."""
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
    """Share of prompt tokens that were found in the prefix cache."""
    ttft_miss: float
    """Share of requests whose TTFT is over the objective; in a mix that of the class with the largest."""
    tpot_miss: float
    """The same for TPOT."""
    stall_p95_s: float
    """95th percentile of the longest gap between two tokens of a request; nan without an objective for it."""
    stall_miss: float
    """The same as `ttft_miss`, for the longest gap between two tokens; nan without an objective."""
    error_share: float
    """Share of requests that failed in a way that load can cause: refusals of overload, and time limits. A
    failure counts once for each first pause that fits into the user's pause after it, because users who wait
    longer ask less often."""
    classes: "Sequence[VirtualClassFigures]"
    """Figures of each class of users of a mix; empty if there are no classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class VirtualClassFigures:
    """Latency of one class of users of a mix, as in `VirtualFigures`, against its own objectives."""

    name: str
    requests: int
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    stall_p95_s: float
    ttft_miss: float
    tpot_miss: float
    stall_miss: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VirtualTimes:
    """Times of n finished requests as the client sees them, seconds, and their output tokens. Each array has
    shape (n,)."""

    kind: Ints
    """Position of the class of users that each request is of."""
    end_s: Floats
    """Instants of the ends, virtual seconds."""
    ttft_s: Floats
    tpot_s: Floats
    """TPOT; nan for a request with a single token."""
    duration_s: Floats
    output: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VirtualRun:
    """Result of a simulation: the trace of each replica, and the window in which the load is steady."""

    service: Service
    users: int
    """Number of users; 0 in an open loop."""
    traces: Sequence[EngineTrace]
    """Traces of the engines, one for each replica."""
    window: tuple[float, float]
    """Begin and end of the window, virtual seconds."""
    kinds: Sequence[int]
    """Position of the class of each user, or of each request of an open loop, by `Request.user`."""

    def times(self, begin_s: float, end_s: float) -> VirtualTimes:
        """Returns the times of the requests that finished between two instants, in no order."""
        overhead_s = self.service.overhead_at(self.users / len(self.traces))
        rows = [
            (one.arrival_s, one.first_token_s, one.end_s, one.output_tokens, self.kinds[one.user])
            for trace in self.traces
            for one in _ended_inside(trace.requests, begin_s, end_s)
        ]
        arrival_s, first_s, ended_s, output, kind = np.array(rows, dtype=np.float64).reshape(-1, 5).T
        many = np.where(output > 1, output - 1, np.nan)
        return VirtualTimes(
            kind=kind.astype(np.int64),
            end_s=ended_s,
            ttft_s=first_s - arrival_s + overhead_s,
            tpot_s=(ended_s - first_s) / many,
            duration_s=ended_s - arrival_s + overhead_s,
            output=output,
        )

    def stalls_s(self, begin_s: float, end_s: float) -> tuple[Floats, Ints]:
        """Returns the longest gap between two tokens of each request that ended between two instants, in
        seconds, and the position of its class. Requests with fewer than two tokens are left out. Shape (m,).
        """
        found = [
            (float(np.diff(at_s).max()), self.kinds[one.user])
            for trace in self.traces
            for one in _ended_inside([*trace.requests, *trace.failed], begin_s, end_s)
            if len(at_s := np.asarray(trace.token_times_s(one))) > 1
        ]
        longest_s, kind = np.array(found, dtype=np.float64).reshape(-1, 2).T
        return longest_s, kind.astype(np.int64)

    def figures(self, slo: Slo) -> VirtualFigures:
        """Computes the figures of the window. slo: the objectives whose misses are counted."""
        begin_s, end_s = self.window
        inside = [_ended_inside(trace.requests, begin_s, end_s) for trace in self.traces]
        failed = [_ended_inside(trace.failed, begin_s, end_s) for trace in self.traces]
        rows = [one for requests in inside for one in requests]
        lost = [one for requests in failed for one in requests]
        overload = [one for one in lost if _is_overload(one)]
        classes = self._classes(slo)
        times = _Times.joined([each for each, _ in classes])
        figures = [each for _, each in classes]
        gauges = [_gauges(trace, begin_s, end_s) for trace in self.traces]
        usage, running, waiting, blocked, queue = np.mean(np.array(gauges), axis=0)
        itl = _inter_token_latencies(self.traces, inside)
        window_s = max(end_s - begin_s, 1e-9)
        return VirtualFigures(
            users=self.users,
            requests=len(times.duration_s),
            in_flight=float(np.sum(times.duration_s)) / window_s,
            ttft_p50_s=_quantile(times.ttft_s, 0.5),
            ttft_p95_s=_quantile(times.ttft_s, 0.95),
            tpot_p50_s=_quantile(times.tpot_s, 0.5),
            tpot_p95_s=_quantile(times.tpot_s, 0.95),
            itl_p50_s=_quantile(itl, 0.5),
            itl_p95_s=_quantile(itl, 0.95),
            output_tok_s=float(times.output.sum()) / window_s,
            kv_usage=float(usage),
            running=float(running),
            waiting=float(waiting),
            preempted_fraction=sum(one.preemptions for one in (*rows, *lost)) / max(len(rows), 1),
            blocked_fraction=float(blocked),
            queue_fraction=float(queue),
            prefix_hit_rate=_hit_rate(self.service, rows),
            ttft_miss=_largest([one.ttft_miss for one in figures]),
            tpot_miss=_largest([one.tpot_miss for one in figures]),
            stall_p95_s=_quantile(times.stall_s, 0.95),
            stall_miss=_largest([one.stall_miss for one in figures]),
            error_share=self._error_share(len(rows), overload),
            classes=figures if self.service.chatting.classes else [],
        )

    def _classes(self, slo: Slo) -> "list[tuple[_Times, VirtualClassFigures]]":
        """Returns the times and the figures of each class in the window; one pair if there are no classes."""
        begin_s, end_s = self.window
        overhead_s = self.service.overhead_at(self.users / len(self.traces))
        answers: list[list[_Answer]] = [[] for _ in self.service.chatting.kinds]
        for trace in self.traces:
            for one in _ended_inside([*trace.requests, *trace.failed], begin_s, end_s):
                answers[self.kinds[one.user]].append(_Answer.of(one, trace))
        stalls_s, of_kind = np.empty(0), np.empty(0, dtype=np.int64)
        if slo.stall_p95_s is not None:
            stalls_s, of_kind = self.stalls_s(begin_s, end_s)
        names = [one.name for one in self.service.chatting.classes] or [""]
        objectives = self.service.chatting.objectives(slo)
        found = []
        for kind, (name, own) in enumerate(zip(names, objectives, strict=True)):
            times = _Times.of(
                answers[kind], overhead_s, stalls_s[of_kind == kind], ttft_limit_s=own.ttft_p95_s
            )
            found.append((times, times.figures(name, own)))
        return found

    def _error_share(self, finished: int, overload: Sequence[Request]) -> float:
        first_s = self.service.chatting.error_pause_s
        weight = sum(max((one.pause_s or 0.0) / first_s, 1.0) if first_s else 1.0 for one in overload)
        return weight / max(weight + finished, 1.0)


def simulate_users(
    service: Service,
    users: int,
    *,
    requests: int | None = None,
    seed: int = 0,
    replicas: int = 1,
    route: Route | None = None,
    together: bool = False,
) -> VirtualRun:
    """Simulates a constant number of users.

    The users start at random times, as if all had been there for long, or all at once (`together`).
    Equal seeds give equal users, because each user has random numbers of their own. requests: the total
    number of requests of all users; by default REQUESTS_PER_USER times the number of users.
    """
    wanted = requests or REQUESTS_PER_USER * users
    crowd = Crowd(service, users=users, wanted=wanted, seed=seed, replicas=replicas, together=together)
    traces = simulate_replicas(
        _replica_engines(service.engine, replicas, seed),
        crowd.first_requests(),
        route=route or first_replica,
        on_end=crowd.next_request,
        gateway=replace(service.gateway, seed=seed) if service.gateway else None,
        timeout_s=service.timeout_s,
    )
    return VirtualRun(service=service, users=users, traces=traces, window=crowd.window, kinds=crowd.kinds)


def simulate_arrivals(
    service: Service,
    arrivals: Sequence[DueRequest],
    *,
    seed: int = 0,
    replicas: int = 1,
    route: Route | None = None,
) -> VirtualRun:
    """Simulates an open loop: requests of given lengths are sent at given times.

    The window lasts from the first send time to the last.
    """
    makers = [RequestMaker(service, kind) for kind in range(len(service.chatting.kinds))]
    timed = [(due.at_s, makers[due.kind].due_request(due, number)) for number, due in enumerate(arrivals)]
    traces = simulate_replicas(
        _replica_engines(service.engine, replicas, seed),
        timed,
        route=route or first_replica,
        gateway=replace(service.gateway, seed=seed) if service.gateway else None,
        timeout_s=service.timeout_s,
    )
    window = (timed[0][0], timed[-1][0]) if timed else (0.0, 0.0)
    kinds = [due.kind for due in arrivals]
    return VirtualRun(service=service, users=0, traces=traces, window=window, kinds=kinds)


def _replica_engines(engine: EngineConfig, replicas: int, seed: int) -> list[EngineConfig]:
    return [replace(engine, seed=seed * 1000 + position) for position in range(replicas)]


def _ended_inside(requests: Sequence[Request], begin_s: float, end_s: float) -> list[Request]:
    return [one for one in requests if one.end_s is not None and begin_s <= one.end_s <= end_s]


def _is_overload(failed: Request) -> bool:
    return failed.refused_with is None or failed.refused_with in OVERLOAD_STATUSES


class _Answer(NamedTuple):
    """Instants of one ended request, nan where they are missing, and the tokens that came."""

    arrival_s: float
    first_s: float
    last_s: float
    end_s: float
    tokens: int

    @classmethod
    def of(cls, request: Request, trace: EngineTrace) -> "_Answer":
        assert request.end_s is not None
        arrival_s, first_s, end_s = request.arrival_s, request.first_token_s, request.end_s
        if first_s is None:
            return cls(arrival_s, math.nan, math.nan, end_s, 0)
        if request.state is RequestState.FINISHED:
            return cls(arrival_s, first_s, end_s, end_s, request.output_tokens)
        tokens_s = trace.token_times_s(request)
        return cls(arrival_s, first_s, tokens_s[-1], end_s, len(tokens_s))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Times:
    """Times of n requests as the client sees them, in seconds, and their output tokens."""

    ttft_s: Floats
    """TTFT of the requests with a first token, and the waiting time of those that had waited longer than the
    limit without one, seconds. Shape (k,), k <= n."""
    tpot_s: Floats
    """TPOT of the requests with two tokens or more, seconds. Shape (m,), m <= n."""
    stall_s: Floats
    """Longest gap between two tokens of these requests; empty where stalls have no objective."""
    duration_s: Floats
    output: Floats

    @classmethod
    def of(
        cls, answers: Sequence[_Answer], overhead_s: float, stall_s: Floats, *, ttft_limit_s: float
    ) -> "_Times":
        arrival, first, last, end, output = np.array(answers, dtype=np.float64).reshape(-1, 5).T
        waited = end - arrival + overhead_s
        ttft = np.where(np.isnan(first), waited, first - arrival + overhead_s)
        many = output > 1
        return cls(
            ttft_s=ttft[~np.isnan(first) | (waited > ttft_limit_s)],
            tpot_s=(last - first)[many] / (output[many] - 1),
            stall_s=stall_s,
            duration_s=waited,
            output=output,
        )

    @classmethod
    def joined(cls, parts: "Sequence[_Times]") -> "_Times":
        """Returns the times of several classes together."""
        names = [field.name for field in fields(cls)]
        return cls(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in names})

    def figures(self, name: str, slo: Slo) -> VirtualClassFigures:
        """Returns the figures of a class. slo: its own objectives."""
        return VirtualClassFigures(
            name=name,
            requests=len(self.duration_s),
            ttft_p50_s=_quantile(self.ttft_s, 0.5),
            ttft_p95_s=_quantile(self.ttft_s, 0.95),
            tpot_p50_s=_quantile(self.tpot_s, 0.5),
            tpot_p95_s=_quantile(self.tpot_s, 0.95),
            stall_p95_s=_quantile(self.stall_s, 0.95),
            ttft_miss=_mean(self.ttft_s > slo.ttft_p95_s),
            tpot_miss=_mean(self.tpot_s > slo.tpot_p95_s),
            stall_miss=_mean(self.stall_s > (slo.stall_p95_s or 0.0)),
        )


def _largest(shares: Sequence[float]) -> float:
    """Returns the largest share; nan if all are nan."""
    known = [share for share in shares if not math.isnan(share)]
    return max(known, default=math.nan)


def _quantile(values: Floats, at: float) -> float:
    return float(np.quantile(values, at)) if len(values) else math.nan


def _mean(events: Bools) -> float:
    return float(events.mean()) if len(events) else math.nan


def _gauges(trace: EngineTrace, begin_s: float, end_s: float) -> tuple[float, ...]:
    """Returns five means over the window's time: KV usage, running, waiting, blocked and queue.

    The values of an engine step are taken to last until the next step ends.
    """
    at = np.asarray(trace.step_end_s)
    lasts_s = np.diff(np.clip(at, begin_s, end_s), append=end_s)
    weight = np.maximum(lasts_s, 0.0)
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


def _inter_token_latencies(traces: Sequence[EngineTrace], inside: Sequence[Sequence[Request]]) -> Floats:
    """Returns inter-token latencies, in seconds, of a subset of the requests. Shape (m,).

    Every k-th request of a replica is taken, so that about ITL_REQUESTS are read.
    """
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
