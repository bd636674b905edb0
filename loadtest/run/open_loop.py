"""An open loop in one process: which requests it sends, and when. Each request is sent when it is due,
whether or not the server has answered earlier ones."""

import asyncio
from collections.abc import Iterator

from loadtest.client.stream import StreamRequest
from loadtest.clock import unix_now
from loadtest.errors import InputError
from loadtest.record import RequestRecord
from loadtest.run.messages import ArrivalAssignments
from loadtest.run.request_runner import RequestRunner
from loadtest.run.shipping import LeaderClock
from loadtest.settings import Settings
from loadtest.workload.arrivals import Arrival, ArrivalProcess, WorkerAssignment, is_assigned
from loadtest.workload.traces import read_trace

LOOKAHEAD_S = 2.0
"""Seconds before a request is due at which its body is made and handed to the event loop."""
UVLOOP_TICK_S = 0.001
"""Seconds added to each timer: uvloop rounds timers to milliseconds, and no request may begin early."""


def planned_arrivals(settings: Settings) -> Iterator[Arrival]:
    """Returns an iterator over the arrivals of an open loop (number and due time of each request), the same
    in every process. The iterator is empty if the run is no open loop. Raises InputError."""
    if settings.sessions is not None:
        return iter(())  # the leader hands sessions out
    if settings.trace is not None:
        try:
            return iter(read_trace(settings.trace, speed=settings.trace_speed))
        except (ValueError, OSError) as error:
            raise InputError(f"--trace: {error}") from None
    if settings.arrivals is not None:
        law = ArrivalProcess.parse(settings.arrivals)
        return law.arrivals(seed=settings.seed, duration_s=settings.level_s)
    return iter(())


class DueArrivals:
    """Hands out the arrivals that this worker sends, each shortly before it is due. Its methods must be
    called from greenlets of the main thread."""

    def __init__(self, arrivals: Iterator[Arrival], *, worker: str, clock: LeaderClock) -> None:
        self._arrivals = arrivals
        self._next = next(arrivals, None)
        self._worker = worker
        self._clock = clock
        self._start_unix_s = 0.0
        self._assignments: list[WorkerAssignment] = []

    def take_assignments(self, message: ArrivalAssignments) -> None:
        self._start_unix_s, self._assignments = message.start_unix_s, message.assignments

    @property
    def left(self) -> bool:
        """Whether some arrivals have not been handed out yet."""
        return self._next is not None

    def due_soon(self) -> Iterator[tuple[Arrival, float]]:
        """Yields pairs of an arrival and its due time (Unix seconds by this machine's clock). Yields the
        arrivals of this worker that are due within LOOKAHEAD_S, each only once."""
        while self._assignments and (arrival := self._next) is not None:
            if self._clock.offset_s is None:
                return
            due_unix_s = self._start_unix_s + arrival.due_s + self._clock.offset_s
            if due_unix_s > unix_now() + LOOKAHEAD_S:
                return
            self._next = next(self._arrivals, None)
            if is_assigned(arrival, self._worker, self._assignments):
                yield arrival, due_unix_s


class PunctualStarts:
    """Begins requests when they are due. Methods run on the event loop's thread; other threads may read
    `begun`."""

    def __init__(self, request_runner: RequestRunner) -> None:
        self.begun = 0
        self._request_runner = request_runner

    def begin_when_due(self, stream: StreamRequest) -> None:
        assert stream.scheduled_unix_s is not None
        wait_s = stream.scheduled_unix_s - unix_now()
        loop = asyncio.get_running_loop()
        loop.call_later(max(0.0, wait_s) + UVLOOP_TICK_S, self._begin, stream)

    async def measure_when_due(self, stream: StreamRequest) -> tuple[RequestRecord, str] | None:
        """Sends a request when it is due, or at once if that has passed, and follows it to its end. Returns
        None if the run ends before."""
        assert stream.scheduled_unix_s is not None
        wait_s = stream.scheduled_unix_s - unix_now()
        if wait_s > 0:
            await asyncio.sleep(wait_s + UVLOOP_TICK_S)
        return None if self._request_runner.closing else await self._request_runner.measure(stream)

    def _begin(self, stream: StreamRequest) -> None:
        self.begun += 1
        self._request_runner.begin(stream)
