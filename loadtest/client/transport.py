"""An aiohttp session that notes when bytes are sent and received. Knows neither events nor rows.

Uses aiohttp's internals (the version is pinned, and a test guards it)."""

import asyncio
import collections
import contextlib
import contextvars
import functools
import os
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import aiohttp
from aiohttp.client_proto import ResponseHandler

from loadtest.clock import unix_now

SLICE_BYTES = 32 * 1024
"""If a stream has more unparsed bytes than this, they are parsed before the stream ends."""


class ByteTimes:
    """Records when the bytes of one request were sent and when the bytes of its answer arrived, by
    perf_counter. By the time `times[i]`, the first `ends[i]` bytes of the answer's body had arrived."""

    __slots__ = ("ends", "times", "written_at")

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ends: list[int] = []
        self.written_at: float | None = None
        """When the kernel took the last byte of the request; None with TLS or a full socket buffer."""


current_byte_times: contextvars.ContextVar[ByteTimes | None] = contextvars.ContextVar(
    "byte_times", default=None
)


_perf_counter = time.perf_counter
_parse = ResponseHandler.data_received


class StampingHandler(ResponseHandler):
    """aiohttp's client protocol, extended: it notes when the kernel took a request and when bytes of the
    answer arrived.

    The arrival is timed in the read callback, before the bytes are parsed and before any task wakes. The task
    that reads the body is woken when the body has ended, or earlier if more than SLICE_BYTES are unparsed.
    Uses aiohttp's internals `_payload` and `_eof_waiter`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._log: ByteTimes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.transport is not None and self.transport.get_extra_info("sslcontext") is None:
            self.transport = cast("asyncio.Transport", _PromptTransport(self.transport, self._note_written))

    def _note_written(self) -> None:
        if self._log is not None:
            self._log.written_at = _perf_counter()

    def set_response_params(self, **params: Any) -> None:
        # Runs in the requesting task, before the answer can arrive.
        self._log = current_byte_times.get()
        self._payload = None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        now = _perf_counter()
        _parse(self, data)
        payload, log = self._payload, self._log
        if payload is None or log is None:
            return
        log.times.append(now)
        log.ends.append(payload.total_bytes)
        if payload._size > SLICE_BYTES:
            waiter = payload._eof_waiter
            if waiter is not None and not waiter.done():
                waiter.set_result(None)


class _PromptTransport:
    """A TCP transport that hands each write to the kernel at once, so that the time of sending is known.
    uvloop's own transport would wait until all other work of the event loop's iteration is done."""

    __slots__ = ("_descriptor", "_note_written", "_transport")

    def __init__(self, transport: asyncio.Transport, note_written: Callable[[], None]) -> None:
        self._transport = transport
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        self._note_written = note_written

    def write(self, data: bytes) -> None:
        """Writes `data` directly to the socket. uvloop's transport then sends the bytes that the socket did
        not take, and handles errors. aiohttp has already checked that the transport is open."""
        sent = 0
        if self._transport.get_write_buffer_size() == 0:
            with contextlib.suppress(OSError):
                sent = os.write(self._descriptor, data)
        if sent == len(data):
            self._note_written()
        else:
            self._transport.write(data[sent:])

    def writelines(self, pieces: Iterable[bytes]) -> None:
        self.write(b"".join(pieces))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class ParseQueue:
    """Lets only one stream parse in each iteration of the event loop, first come, first served. Without this
    queue, many streams that end together would be parsed in one iteration, and bytes that arrive meanwhile
    would get their time stamps too late."""

    def __init__(self) -> None:
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._taken = False

    async def wait(self) -> None:
        """Waits until the caller may parse."""
        loop = asyncio.get_running_loop()
        if not self._taken:
            self._taken = True
            loop.call_soon(self._give, loop)
            return
        turn = loop.create_future()
        self._waiting.append(turn)
        await turn

    def _give(self, loop: asyncio.AbstractEventLoop) -> None:
        while self._waiting:
            turn = self._waiting.popleft()
            if not turn.done():
                turn.set_result(None)
                loop.call_soon(self._give, loop)
                return
        self._taken = False


class StampingConnector(aiohttp.TCPConnector):
    """aiohttp's connector that uses `StampingHandler` as its protocol. It has no limit on connections;
    aiohttp's default is 100."""

    def __init__(self, **params: Any) -> None:
        super().__init__(limit=0, **params)
        self.parse_queue = ParseQueue()
        self._factory = functools.partial(StampingHandler, self._loop)  # type: ignore[assignment]


def open_session(*, headers: Mapping[str, str], tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    """Opens an aiohttp session. Must be called on the event loop that will use the session. The session has
    no time limits, because `stream_chat` sets one for the whole request."""
    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(_stamp_sent)
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=StampingConnector(ssl=tls if tls is not None else True),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=None, sock_connect=None),
        trace_configs=[trace],
        read_bufsize=2 * SLICE_BYTES,
    )


async def _stamp_sent(_session: object, context: Any, _params: object) -> None:
    # uvloop hands writes to the kernel at the end of the loop's iteration: they are sent when the next
    # begins.
    clock = context.trace_request_ctx
    if isinstance(clock, RequestClock):
        asyncio.get_running_loop().call_soon(clock.stamp_sent)


class RequestClock:
    """Notes when one request started, was sent and ended. Times are in seconds since its start; `zero` is the
    start by perf_counter."""

    def __init__(self) -> None:
        self.start_unix_s = unix_now()
        self.zero = time.perf_counter()
        self.sent_s: float | None = None
        self.headers_s: float | None = None
        self.end_s: float | None = None

    def now(self) -> float:
        """Returns the seconds since the start of the request."""
        return time.perf_counter() - self.zero

    def stamp_sent(self) -> None:
        """Notes that the request is sent now. Only the first call counts."""
        if self.sent_s is None:
            self.sent_s = self.now()

    def end(self, byte_times: ByteTimes) -> None:
        """Sets the end of the request to the arrival of the answer's last byte. The time that the answer
        waits to be parsed is left out."""
        self.end_s = byte_times.times[-1] - self.zero if byte_times.times else None
