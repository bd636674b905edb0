"""An aiohttp session that notes when bytes go and come. Knows neither events nor rows.

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

SLICE_BYTES = 32 * 1024
"""Number of unparsed bytes of one stream from which on it is parsed before its end."""


class ByteTimes:
    """When the bytes of one exchange were sent and received (perf_counter): at `times[i]` the body was
    `ends[i]` bytes long."""

    __slots__ = ("ends", "times", "written_at")

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ends: list[int] = []
        self.written_at: float | None = None
        """When the kernel took the last byte of the request; None where only the transport knows."""


current_byte_times: contextvars.ContextVar[ByteTimes | None] = contextvars.ContextVar(
    "byte_times", default=None
)


_perf_counter = time.perf_counter
_parse = ResponseHandler.data_received


class StampingHandler(ResponseHandler):
    """aiohttp's client protocol, which also notes when the kernel has taken a request and when the bytes of
    the response come: in the read callback, before they are parsed and before any task wakes. The reader of
    the body wakes only at its end or when a slice is full. Uses aiohttp's `_payload` and `_eof_waiter`."""

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
        # Runs in the requesting task, before the response can come.
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
    """A TCP transport that hands writes to the kernel at once. uvloop would do so at the end of the loop's
    iteration, after all other work of that iteration, at an unknown time."""

    __slots__ = ("_descriptor", "_note_written", "_transport")

    def __init__(self, transport: asyncio.Transport, note_written: Callable[[], None]) -> None:
        self._transport = transport
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        self._note_written = note_written

    def write(self, data: bytes) -> None:
        """Writes to the socket; aiohttp has checked that the transport is open. What does not fit, and what
        fails, is left to the transport, which handles the error."""
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
    """Lets one stream parse in each iteration of the loop, first come, first served. Otherwise many streams
    that end together would delay the time stamps of the others until all of them are parsed."""

    def __init__(self) -> None:
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._taken = False

    async def wait(self) -> None:
        """Waits until it is the caller's turn."""
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
    """aiohttp's connector with `StampingHandler` as protocol and without the default limit of 100
    connections."""

    def __init__(self, **params: Any) -> None:
        super().__init__(limit=0, **params)
        self.parse_queue = ParseQueue()
        self._factory = functools.partial(StampingHandler, self._loop)  # type: ignore[assignment]


def open_session(*, headers: Mapping[str, str], tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    """Opens a session; must be called on the loop that uses it. The session has no time limits: `stream_chat`
    sets one for the whole request."""
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
    """Seconds since the start of one request."""

    def __init__(self) -> None:
        self.start_unix_s = time.time()
        self.zero = time.perf_counter()
        self.sent_s: float | None = None
        self.headers_s: float | None = None
        self.end_s: float | None = None

    def now(self) -> float:
        """Seconds since the start."""
        return time.perf_counter() - self.zero

    def stamp_sent(self) -> None:
        """Notes the current time as the sending of the request, the first time it is called."""
        if self.sent_s is None:
            self.sent_s = self.now()

    def end(self, byte_times: ByteTimes) -> None:
        """Sets the end to the arrival of the last byte, however long its parsing waited."""
        self.end_s = byte_times.times[-1] - self.zero if byte_times.times else None
