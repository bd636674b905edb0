"""Runs requests on the event loop's thread; each of them leaves one row. Knows no users and no Locust."""

import asyncio
import collections
import contextlib
import resource
import time

import aiohttp
import msgspec

from loadtest.client.stream import StreamRequest, stream_chat
from loadtest.client.target import Target
from loadtest.client.transport import ByteTimes, open_session
from loadtest.clock import unix_now
from loadtest.record import ClientSample, Outcome, RequestRecord, has_failed
from loadtest.run.health import HealthWatch
from loadtest.run.live.rows import LiveRow, live_row
from loadtest.run.sink import WorkerFiles
from loadtest.workload.pauses import ErrorPauses

HEARD_TOGETHER_S = 1.0
"""Answers whose last bytes came so close together count as equally recent."""
CANCEL_S = 5.0
"""Seconds that cancelled requests may take to end."""


class RequestRunner:
    """Runs requests, and keeps their results until the leader and Locust are told. Methods run on the event
    loop's thread. Other threads may set `closing`, read `in_flight` and empty the two deques."""

    def __init__(self, target: Target, session: aiohttp.ClientSession, files: WorkerFiles) -> None:
        self.closing = False
        """Whether no more requests may begin."""
        self.live: collections.deque[LiveRow] = collections.deque()
        """One entry for each request that has ended."""
        self.unattended: collections.deque[RequestRecord] = collections.deque()
        """Rows of ended requests that nobody waited for (open loop)."""
        self._target = target
        self._session = session
        self._rows = files.requests
        self._health = HealthWatch(files.health)
        self._health.begin()
        self._tasks: set[asyncio.Task[object]] = set()
        self._streams: dict[asyncio.Task[object], ByteTimes] = {}

    @property
    def in_flight(self) -> int:
        return self._health.in_flight

    @property
    def last_second(self) -> ClientSample | None:
        """What this process has last noticed of its own health; None before the first second has passed."""
        return self._health.latest

    def answering(self) -> tuple[float, float] | None:
        """Returns since when and until when (Unix seconds) the server has surely worked on requests that are
        still in flight; None if no byte of their answers has come. May be called from another thread."""
        streams = [stream for stream in list(self._streams.values()) if stream.times]
        heard = [(stream.written_at or stream.times[0], stream.times[-1]) for stream in streams]
        if not heard:
            return None
        last = max(at for _, at in heard)
        first = min(sent for sent, at in heard if at >= last - HEARD_TOGETHER_S)
        ago = unix_now() - time.perf_counter()
        return first + ago, last + ago

    async def measure(
        self, stream: StreamRequest, pauses: ErrorPauses | None = None
    ) -> tuple[RequestRecord, str]:
        """Sends one request and follows it to its end. Returns its row and the answer's text.

        pauses: those of the user who sends it; the row says how long this user pauses if the request fails.
        None if nobody waits for the answer (open loop).
        """
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._health.started += 1
        try:
            record, text, cancelled, retry_after_s = await stream_chat(
                self._session, stream, note_times=lambda times: self._streams.update({task: times})
            )
            if record.error:  # a server may repeat the key in its error
                record = msgspec.structs.replace(record, error=self._target.without_secrets(record.error))
            if pauses is not None:
                record = _with_pause(record, pauses, retry_after_s)
            self._rows.append(record)
            self.live.append(live_row(record))
            self._health.note_delay(record)
        finally:
            self._health.ended += 1
            self._streams.pop(task, None)
            self._tasks.discard(task)
        if cancelled is not None and not self.closing:
            raise cancelled
        return record, text

    def begin(self, stream: StreamRequest) -> None:
        """Begins a request without waiting for its end. Does nothing if `closing` is set."""
        if not self.closing:
            self._tasks.add(asyncio.get_running_loop().create_task(self._measure_unattended(stream)))

    async def _measure_unattended(self, stream: StreamRequest) -> None:
        record, _ = await self.measure(stream)
        self.unattended.append(record)

    async def close(self) -> None:
        """Cancels the requests in flight, waits for their rows and closes the session."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CANCEL_S)
        self._health.end()
        await self._session.close()


def _with_pause(record: RequestRecord, pauses: ErrorPauses, retry_after_s: float | None) -> RequestRecord:
    if has_failed(record.outcome):
        pause_s = pauses.failed(retry_after_s)
        return msgspec.structs.replace(record, pause_s=pause_s or None)
    if record.outcome is Outcome.OK:
        pauses.succeeded()
    return record


async def open_request_runner(target: Target, files: WorkerFiles) -> RequestRunner:
    """Opens a session with the server and returns a RequestRunner that uses it. Runs on the event loop's
    thread. Raises InputError."""
    _allow_many_connections()
    return RequestRunner(target, open_session(headers=target.headers, tls=target.tls()), files)


def _allow_many_connections() -> None:
    """Raises this process's limit of open files to the most that the system allows. Each stream needs one
    open file."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses an unlimited number
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
