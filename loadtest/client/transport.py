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
KEEP_ALIVE_S = 1.5
"""Seconds after which an idle connection is not used again. Servers close idle connections too, and a request
that meets such a close is lost, so this is shorter than their defaults: gunicorn 2 s, uvicorn (vLLM, SGLang),
Node.js and llama.cpp 5 s."""
CONNECT_LIMIT_S = 10.0
"""Seconds that a connection may take. Linux asks again after 1, 3 and 7 s (RFC 6298): a server that has not
accepted by then has let four attempts pass."""
DONE_GRACE_S = 0.25
"""Seconds after `[DONE]` in which the body may end properly, so that the connection can be used again."""


class ByteTimes:
    """Records when the bytes of one request were sent and when the bytes of its answer arrived, by
    perf_counter. By the time `times[i]`, the first `ends[i]` bytes of the answer's body had arrived."""

    __slots__ = ("ends", "heard", "needs_new_connection", "times", "used_before", "written_at")

    def __init__(self, *, needs_new_connection: bool = False) -> None:
        self.times: list[float] = []
        self.ends: list[int] = []
        self.written_at: float | None = None
        """When the kernel took the last byte of the request; None with TLS or a full socket buffer."""
        self.heard = False
        """Whether any byte of the answer has come."""
        self.used_before = False
        """Whether the request was sent on a connection that had served another one."""
        self.needs_new_connection = needs_new_connection
        """Whether no connection that has served another request may be used."""


current_byte_times: contextvars.ContextVar[ByteTimes | None] = contextvars.ContextVar(
    "byte_times", default=None
)


_perf_counter = time.perf_counter
_parse = ResponseHandler.data_received


class StampingHandler(ResponseHandler):
    """aiohttp's client protocol, extended: it notes when the kernel took a request and when bytes of the
    answer arrived.

    The arrival is timed in the read callback, before the bytes are parsed and before any task wakes. The task
    that reads the body is woken when the body has ended or failed, earlier if more than SLICE_BYTES are
    unparsed, and at the latest DONE_GRACE_S after `[DONE]`. Uses aiohttp's internals `_payload`, `_eof` and
    `_eof_waiter`.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._log: ByteTimes | None = None
        self._has_served = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.transport is not None and self.transport.get_extra_info("sslcontext") is None:
            self.transport = cast("asyncio.Transport", _PromptTransport(self.transport, self._note_written))

    def _note_written(self) -> None:
        if self._log is not None:
            self._log.written_at = _perf_counter()

    def set_response_params(self, **params: Any) -> None:
        # Runs in the requesting task, before the answer can arrive.
        log = self._log = current_byte_times.get()
        if log is not None:
            log.used_before = self._has_served
        self._has_served = True
        self._payload = None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        now = _perf_counter()
        _parse(self, data)
        payload, log = self._payload, self._log
        if log is None:
            return
        log.heard = True
        if payload is None:
            return
        log.times.append(now)
        log.ends.append(payload.total_bytes)
        if payload._size > SLICE_BYTES:
            _wake(payload)
        elif b"E]" in data and not payload._eof:  # the end of `[DONE]`, also where a packet cuts it
            self._loop.call_later(DONE_GRACE_S, _wake, payload)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        # aiohttp does not tell the body of an answer that its bytes could not be parsed.
        payload = self._payload
        super().set_exception(exc, *cause)
        if payload is not None and not payload.is_eof() and payload.exception() is None:
            payload.set_exception(exc, *cause)


def _wake(payload: aiohttp.StreamReader) -> None:
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
        super().__init__(limit=0, keepalive_timeout=KEEP_ALIVE_S, **params)
        self.parse_queue = ParseQueue()
        self._factory = functools.partial(StampingHandler, self._loop)  # type: ignore[assignment]

    async def _get(self, key: Any, traces: Any) -> Any:
        log = current_byte_times.get()
        if log is not None and log.needs_new_connection:
            return None
        return await super()._get(key, traces)


def open_session(*, headers: Mapping[str, str], tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    """Opens an aiohttp session. Must be called on the event loop that will use the session. The session has
    no time limit except for connecting, because `stream_chat` sets one for the whole request.

    Asks for uncompressed answers, because gateways gather the events of a stream to compress them.
    """
    trace = aiohttp.TraceConfig()
    trace.on_request_chunk_sent.append(_stamp_sent)
    trace.on_dns_resolvehost_start.append(_begin_resolving)
    trace.on_dns_resolvehost_end.append(_end_resolving)
    if not any(name.lower() == "accept-encoding" for name in headers):
        headers = {**headers, "Accept-Encoding": "identity"}
    return aiohttp.ClientSession(
        cookie_jar=aiohttp.DummyCookieJar(),
        connector=StampingConnector(ssl=tls if tls is not None else True),
        headers=headers,
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_LIMIT_S, sock_connect=None),
        trace_configs=[trace],
        read_bufsize=2 * SLICE_BYTES,
    )


async def _stamp_sent(_session: object, context: Any, _params: object) -> None:
    # uvloop hands writes to the kernel at the end of the loop's iteration: they are sent when the next
    # begins.
    clock = context.trace_request_ctx
    if isinstance(clock, RequestClock):
        asyncio.get_running_loop().call_soon(clock.stamp_sent)


async def _begin_resolving(_session: object, context: Any, _params: object) -> None:
    if isinstance(context.trace_request_ctx, RequestClock):
        context.trace_request_ctx.resolving = True


async def _end_resolving(_session: object, context: Any, _params: object) -> None:
    if isinstance(context.trace_request_ctx, RequestClock):
        context.trace_request_ctx.resolving = False


class RequestClock:
    """Notes when one request started, was sent and ended. Times are in seconds since its start; `zero` is the
    start by perf_counter."""

    def __init__(self) -> None:
        self.start_unix_s = unix_now()
        self.zero = time.perf_counter()
        self.sent_s: float | None = None
        self.headers_s: float | None = None
        self.end_s: float | None = None
        self.resolving = False
        """Whether the address of the host is being looked up."""

    def now(self) -> float:
        """Returns the seconds since the start of the request."""
        return time.perf_counter() - self.zero

    def stamp_sent(self) -> None:
        """Notes that the request is sent now. Only the first call counts."""
        if self.sent_s is None:
            self.sent_s = self.now()
