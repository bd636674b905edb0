"""Runs engines in virtual time: one engine, or several replicas behind a router. `real_time` runs an engine
in real time."""

import gc
import heapq
import math
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice

from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request, RequestState
from loadtest.simulator.engine.scheduler import Engine
from loadtest.simulator.engine.steps import Counters, Shortage, Step
from loadtest.simulator.gateway import Gate, GatewayLimits
from loadtest.simulator.routers import Route, first_replica

TimedRequest = tuple[float, Request]
"""The instant of an arrival in seconds, and the request that arrives."""
OnEnd = Callable[[Request, float], TimedRequest | None]
"""Called with an ended request and its end; returns the request that follows (closed loop), or None. A
request that was refused, or that ran into its time limit, has ended too."""
QUEUE_LIMIT_STATUS = 503
"""HTTP status by which vLLM refuses a request because of its queue limits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineTrace:
    """The record of one engine's virtual run. Each array has one entry per step, taken at the end of the
    step."""

    requests: list[Request] = field(default_factory=list)
    """Finished requests, in the order in which they ended."""
    failed: list[Request] = field(default_factory=list)
    """Requests that were refused or ran into their time limit, in the order in which they ended."""
    counters: Counters
    pool_blocks: int
    step_end_s: "array[float]" = field(default_factory=lambda: array("d"))
    running: "array[int]" = field(default_factory=lambda: array("q"))
    waiting: "array[int]" = field(default_factory=lambda: array("q"))
    used_blocks: "array[int]" = field(default_factory=lambda: array("q"))
    shortages: "array[int]" = field(default_factory=lambda: array("b"))
    """The `Shortage` of each step, as its integer."""

    def token_times_s(self, request: Request) -> "array[float]":
        """Returns the instants at which the request's output tokens were made, ascending. Those after the
        request's end, when it was aborted within a step, are left out."""
        times_s = array("d")
        for first, stop in request.step_runs:
            times_s.extend(self.step_end_s[first:stop])
        while request.state is RequestState.ABORTED and times_s and times_s[-1] > (request.end_s or 0.0):
            times_s.pop()
        return times_s

    def note(self, end_s: float, running: int, waiting: int, used_blocks: int, shortage: Shortage) -> None:
        """Records the end of one step."""
        self.step_end_s.append(end_s)
        self.running.append(running)
        self.waiting.append(waiting)
        self.used_blocks.append(used_blocks)
        self.shortages.append(shortage)

    def empty(self) -> None:
        """Corrects the last step's record: the engine has no request any more."""
        self.running[-1] = self.waiting[-1] = self.used_blocks[-1] = 0
        self.shortages[-1] = Shortage.NOTHING


class Simulation:
    """Simulates replicas behind a router, in virtual time. Each call of `run` continues where the last call
    stopped, so that the caller may inspect the traces and push requests between two calls."""

    def __init__(
        self,
        configs: Sequence[EngineConfig],
        arrivals: Iterable[TimedRequest] = (),
        *,
        route: Route,
        on_end: OnEnd | None = None,
        gateway: GatewayLimits | None = None,
        timeout_s: float = math.inf,
        refusal_s: float = 0.001,
    ) -> None:
        """arrivals: requests with their times, in ascending order of time.

        - on_end: called for each ended request, however it ended.
        - gateway: limits before the engines; None: none.
        - timeout_s: seconds after its arrival at which a request is aborted.
        - refusal_s: seconds until the refusal by an engine's queue limit is known.
        """
        self._replicas = [_Replica(Engine(config)) for config in configs]
        self._engines = [replica.engine for replica in self._replicas]
        self._arriving = _Arrivals(arrivals)
        self._route, self._on_end = route, on_end
        self._gateway, self._gate = gateway, Gate(gateway) if gateway else None
        self._timeout_s, self._refusal_s = timeout_s, refusal_s
        self._due: deque[tuple[float, Request, _Replica]] = deque()  # ends of time limits, ascending
        self._ends: list[tuple[float, int]] = []  # instants and replicas: ends of steps and of leaps

    @property
    def traces(self) -> list[EngineTrace]:
        """The trace of each replica so far."""
        return [replica.trace for replica in self._replicas]

    def push(self, at_s: float, request: Request) -> None:
        """Adds an arrival. Its time must not be before the time up to which the simulation has run."""
        self._arriving.push((at_s, request))

    def run(self, until_s: float = math.inf) -> None:
        """Runs the simulation up to `until_s`, by default until no request is left."""
        ends, arriving = self._ends, self._arriving
        while True:
            limit_s = self._next_limit_s()
            now_s = min(arriving.next_s, ends[0][0] if ends else math.inf, limit_s)
            if now_s > until_s or now_s == math.inf:
                return
            ready = []
            if ends and ends[0][0] <= now_s:
                ready.append(heapq.heappop(ends)[1])
                self._replicas[ready[0]].end(arriving, self._on_end)
            if limit_s <= now_s:
                self._abort_late(now_s)
            for at_s, request in arriving.due(now_s):
                index = self._submit(request, at_s)
                if index is not None and self._replicas[index].idle:
                    self._replicas[index].idle = False
                    ready.append(index)
            for index in ready:
                # The end of another replica's step may send a request here: no replica leaps past it.
                others_s = min(ends[0][0] if ends else math.inf, self._next_limit_s())
                end_s = self._replicas[index].go_on(now_s, min(arriving.next_s, others_s, until_s))
                if end_s is not None:
                    heapq.heappush(ends, (end_s, index))

    def _submit(self, request: Request, at_s: float) -> int | None:
        """Hands a request to its replica. Returns the replica's index, or None if the request was refused."""
        index = self._route(request, self._engines)
        replica = self._replicas[index]
        status, refusal_s = 200, self._refusal_s
        if self._gate is not None and self._gateway is not None:
            unfinished = sum(engine.unfinished for engine in self._engines)
            status, refusal_s = self._gate.status(at_s, unfinished), self._gateway.refusal_s
        if status == 200 and replica.engine.submit(request, at_s):
            if self._timeout_s < math.inf:
                self._due.append((at_s + self._timeout_s, request, replica))
            return index
        request.arrival_s, request.end_s = at_s, at_s + refusal_s
        request.state = RequestState.REFUSED
        request.refused_with = status if status != 200 else QUEUE_LIMIT_STATUS
        replica.fail(request, self._arriving, self._on_end)
        return None

    def _next_limit_s(self) -> float:
        """Returns the instant at which the next unfinished request runs into its time limit."""
        due = self._due
        while due and due[0][1].state is RequestState.FINISHED:
            due.popleft()
        return due[0][0] if due else math.inf

    def _abort_late(self, now_s: float) -> None:
        """Aborts the requests whose time limit is over."""
        while self._next_limit_s() <= now_s:
            _, request, replica = self._due.popleft()
            replica.engine.abort(request, now_s)
            replica.fail(request, self._arriving, self._on_end)


def simulate(
    config: EngineConfig, arrivals: Iterable[TimedRequest], *, on_end: OnEnd | None = None
) -> EngineTrace:
    """Runs one engine until no request is left and returns its trace. See `Simulation`."""
    (trace,) = simulate_replicas([config], arrivals, route=first_replica, on_end=on_end)
    return trace


def simulate_replicas(
    configs: Sequence[EngineConfig],
    arrivals: Iterable[TimedRequest],
    *,
    route: Route,
    on_end: OnEnd | None = None,
    gateway: GatewayLimits | None = None,
    timeout_s: float = math.inf,
) -> list[EngineTrace]:
    """Runs replicas behind a router until no request is left. Returns one trace per replica. See
    `Simulation`."""
    simulation = Simulation(
        configs, arrivals, route=route, on_end=on_end, gateway=gateway, timeout_s=timeout_s
    )
    with _without_garbage_collection():
        simulation.run()
    return simulation.traces


@contextmanager
def _without_garbage_collection() -> Iterator[None]:
    """Pauses Python's search for reference cycles: a simulation makes none, and a quarter of its time would
    go into looking through its requests again and again."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def closed_loop(
    config: EngineConfig,
    requests: Iterable[Request],
    *,
    users: int,
    turn_round_s: float = 1e-3,
    think_s: Callable[[], float] | None = None,
    start_spread_s: float = 0.0,
) -> EngineTrace:
    """Runs one engine under a fixed number of users until no request is left, and returns its trace.

    When a user's request has ended, the user waits for `turn_round_s` plus one draw of `think_s` and then
    sends the next of `requests`. `turn_round_s` is the time that a real client needs between two requests.
    The engine starts a step at the instant at which a request ends; with `turn_round_s` above 0, the user's
    next request comes too late for that step. The users start one after the other, equally spaced over
    `start_spread_s` seconds.
    """
    source = iter(requests)

    def follow(ended: Request, now_s: float) -> TimedRequest | None:
        request = next(source, None)
        if request is None:
            return None
        request.user = ended.user
        return now_s + turn_round_s + (think_s() if think_s else 0.0), request

    first: list[TimedRequest] = []
    for user, request in enumerate(islice(source, users)):
        request.user = user
        first.append((start_spread_s * user / users, request))
    return simulate(config, first, on_end=follow)


class _Replica:
    """An engine, its trace and its current state."""

    __slots__ = ("_stepping", "engine", "idle", "trace")

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.idle = True
        self._stepping = False
        self.trace = EngineTrace(counters=engine.counters, pool_blocks=engine.pool.blocks)

    def go_on(self, now_s: float, until_s: float) -> float | None:
        """Leaps ahead while the batch and the queue cannot change, and then begins the next step.

        Returns the instant at which this step ends, or None if there is nothing to do. If the leap reaches
        `until_s`, begins no step and returns the instant that the leap has reached. In both cases the caller
        calls `end` at the returned instant.
        """
        landed_s = self.engine.leap(now_s, until_s, self.trace.note)
        if now_s < until_s <= landed_s:
            return landed_s
        end_s = self.engine.begin(landed_s)
        self._stepping = end_s is not None
        self.idle = end_s is None
        if self.idle and self.trace.running and self.trace.running[-1] + self.trace.waiting[-1]:
            self.trace.empty()  # the last requests were aborted, and no step will show it
        return end_s

    def end(self, arriving: "_Arrivals", on_end: OnEnd | None) -> None:
        """Ends the step in progress, if there is one. Adds the requests that follow its finished requests."""
        if not self._stepping:
            return
        self._stepping = False
        step: Step = self.engine.end()
        gauges = self.engine.gauges
        self.trace.note(step.end_s, gauges.running, gauges.waiting, gauges.used_blocks, gauges.shortage)
        self.trace.requests.extend(step.finished)
        if on_end is None:
            return
        for request in step.finished:
            if follower := on_end(request, step.end_s):
                arriving.push(follower)

    def fail(self, request: Request, arriving: "_Arrivals", on_end: OnEnd | None) -> None:
        """Notes a request that has failed. Adds the request that follows it."""
        assert request.end_s is not None
        self.trace.failed.append(request)
        if on_end is not None and (follower := on_end(request, request.end_s)):
            arriving.push(follower)


class _Arrivals:
    """Merges two sources of arrivals by time: those given at the start, and those pushed during the run."""

    def __init__(self, given: Iterable[TimedRequest]) -> None:
        self._given = iter(given)
        self._head = next(self._given, None)
        self._followers: list[tuple[float, int, Request]] = []
        self._pushed = 0

    @property
    def next_s(self) -> float:
        """Instant of the next arrival; infinite if there is none."""
        given_s = math.inf if self._head is None else self._head[0]
        return min(given_s, self._followers[0][0]) if self._followers else given_s

    def push(self, arrival: TimedRequest) -> None:
        """Adds an arrival during the run, such as the request that follows a finished one."""
        self._pushed += 1
        heapq.heappush(self._followers, (arrival[0], self._pushed, arrival[1]))

    def due(self, now_s: float) -> Iterator[TimedRequest]:
        """Removes and yields the arrivals up to `now_s`, in order of time."""
        while self.next_s <= now_s:
            if self._followers and (self._head is None or self._followers[0][0] <= self._head[0]):
                at_s, _, request = heapq.heappop(self._followers)
                yield at_s, request
            elif self._head is not None:
                arrival = self._head
                self._head = next(self._given, None)
                yield arrival
