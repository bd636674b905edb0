"""stream_chat: one streamed chat completion -> one RequestRecord. A failure becomes an Outcome, never an
exception. Knows no Locust and no statistics."""

import asyncio
import collections
import contextlib
import contextvars
import functools
import json
import os
import re
import ssl
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, cast

import aiohttp
import msgspec
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from loadtest.record import Outcome, RequestRecord
from loadtest.sse import SseDecoder, SseEvent

SLICE_BYTES = 32 * 1024
"""Unparsed bytes of one stream at which it is parsed without waiting for its end."""
_ERROR_CHARS = 300


class ByteTimes:
    """When the bytes of one exchange went and came (perf_counter): at `times[i]` the body was `ends[i]` bytes
    long."""

    __slots__ = ("ends", "times", "written_at")

    def __init__(self) -> None:
        self.times: list[float] = []
        self.ends: list[int] = []
        self.written_at: float | None = None
        """The kernel took the last byte of the request; None where only the transport knows."""


_byte_times: contextvars.ContextVar[ByteTimes | None] = contextvars.ContextVar("byte_times", default=None)


_now = time.perf_counter
_parse = ResponseHandler.data_received


class StampingHandler(ResponseHandler):
    """aiohttp's client protocol, which also notes when bytes go and come: when the kernel has taken them, and
    in the read callback, before they are parsed and before any task wakes. Its reader is woken at the end of
    the body only, or when a slice is full. Uses aiohttp's internals (`_payload`, `_eof_waiter`): the version
    is pinned, a test guards it."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop)
        self._log: ByteTimes | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        if self.transport is not None and self.transport.get_extra_info("sslcontext") is None:
            self.transport = cast("asyncio.Transport", _PromptTransport(self.transport, self._note_written))

    def _note_written(self) -> None:
        if self._log is not None:
            self._log.written_at = _now()

    def set_response_params(self, **params: Any) -> None:
        # Runs in the requesting task, before the response can come.
        self._log = _byte_times.get()
        self._payload = None
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        now = _now()
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
    """A TCP transport that hands writes to the kernel at once: uvloop would do it at the end of the loop's
    turn, after whatever else that turn has to do, and nobody would know when."""

    __slots__ = ("_descriptor", "_note_written", "_transport")

    def __init__(self, transport: asyncio.Transport, note_written: Callable[[], None]) -> None:
        self._transport = transport
        self._descriptor: int = transport.get_extra_info("socket").fileno()
        self._note_written = note_written

    def write(self, data: bytes) -> None:
        """aiohttp has made sure that the transport is open. What does not fit goes the usual way, and so does
        what fails: the transport finds out why."""
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


class _Turns:
    """Parsing in turns: one slice in each turn of the loop, first come, first served. Many streams that end
    together would otherwise keep the loop from stamping the others until all of them are parsed."""

    def __init__(self) -> None:
        self._waiting: collections.deque[asyncio.Future[None]] = collections.deque()
        self._taken = False

    async def mine(self) -> None:
        """Returns when it is the caller's turn."""
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
    """aiohttp's connector, without its default limit of 100 connections, making `StampingHandler`s."""

    def __init__(self, **params: Any) -> None:
        super().__init__(limit=0, **params)
        self.turns = _Turns()
        self._factory = functools.partial(StampingHandler, self._loop)  # type: ignore[assignment]


def open_session(*, headers: Mapping[str, str], tls: ssl.SSLContext | None) -> aiohttp.ClientSession:
    """The one session of a process. Must be called on the loop that uses it. Limits in time are the
    caller's: `stream_chat` has one for the whole request."""
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
    # uvloop hands writes to the kernel at the end of the loop's turn: the next turn is the honest moment.
    clock = context.trace_request_ctx
    if isinstance(clock, _Clock):
        asyncio.get_running_loop().call_soon(clock.stamp_sent)


class _Clock:
    """Seconds since the start of one request."""

    def __init__(self) -> None:
        self.start_unix_s = time.time()
        self.zero = time.perf_counter()
        self.sent_s: float | None = None
        self.headers_s: float | None = None
        self.end_s: float | None = None

    def now(self) -> float:
        return time.perf_counter() - self.zero

    def stamp_sent(self) -> None:
        if self.sent_s is None:
            self.sent_s = self.now()

    def end(self, byte_times: ByteTimes) -> None:
        """The stream is over since its last byte came, however long its parsing waited."""
        self.end_s = byte_times.times[-1] - self.zero if byte_times.times else None


class StreamRequest(msgspec.Struct, kw_only=True, frozen=True):
    """One request, ready to send: the body is serialised before the clock starts."""

    url: str
    body: bytes
    request_id: str
    model: str
    scenario: str
    worker: str
    user: int
    turn: int
    level_users: int | None
    max_tokens: int
    timeout_s: float
    scheduled_unix_s: float | None = None
    keep_text: bool = False


class _Delta(msgspec.Struct, gc=False):
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None
    tool_calls: list[object] | None = None


class _Choice(msgspec.Struct):
    delta: _Delta | None = None
    finish_reason: str | None = None


class _OutputDetails(msgspec.Struct, gc=False):
    reasoning_tokens: int | None = None


class _PromptDetails(msgspec.Struct, gc=False):
    cached_tokens: int | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    completion_tokens_details: _OutputDetails | None = None
    prompt_tokens_details: _PromptDetails | None = None


class _Chunk(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: object = None


_decode_chunk = msgspec.json.Decoder(_Chunk).decode
_decode_text = msgspec.json.Decoder(str).decode
_TEXT_KEY = rb'("(?:content|reasoning|reasoning_content)"\s*:\s*)'


class _Pattern(msgspec.Struct, frozen=True):
    """What the events of one stream are but for their text. Servers repeat everything else with each token,
    so most events can be understood without being decoded as JSON, at a fraction of the cost."""

    kind: str
    before: bytes
    after: bytes

    @classmethod
    def of(cls, data: bytes, kind: str, text: str) -> "_Pattern | None":
        """From one event that was decoded; None where its text does not stand in it in one place, as such."""
        found = list(re.finditer(_TEXT_KEY + re.escape(msgspec.json.encode(text)), data))
        if len(found) != 1:
            return None
        return cls(kind, data[: found[0].end(1) + 1], data[found[0].end() - 1 :])

    def text(self, data: bytes) -> bytes:
        """The text of an event that differs in nothing else, as JSON without its quotes; empty where that is
        not certain. Without a quote inside and a backslash at its end, it ends where `after` begins."""
        before, after = self.before, self.after
        if not (data.startswith(before) and data.endswith(after)):
            return b""
        text = data[len(before) : -len(after)]
        return b"" if b'"' in text or text.endswith(b"\\") else text


class _Transcript:
    """What the events of one stream say, with the time of each."""

    def __init__(self, byte_times: ByteTimes, *, keep_text: bool) -> None:
        self._decoder = SseDecoder()
        self._byte_times = byte_times
        self._at = 0
        self._text: list[str] | None = [] if keep_text else None
        self.chunk_at: list[float] = []
        self.kinds: list[str] = []
        self.running_tokens: list[int | None] = []
        self.usage: _Usage | None = None
        self.finish_reason: str | None = None
        self.done = False
        self.error: str | None = None
        self._pattern: _Pattern | None = None
        self._patterns_tried = 0

    @property
    def text(self) -> str:
        return "".join(self._text or ())

    def feed(self, piece: bytes) -> None:
        for event in self._decoder.feed(piece):
            self._event(event)

    def finish(self) -> None:
        for event in self._decoder.flush():
            self._event(event)

    def _event(self, event: SseEvent) -> None:
        pattern = self._pattern
        if pattern is not None and (text := pattern.text(event.data)):
            self._chunk(pattern.kind, None, event.end)
            if self._text is not None and pattern.kind == "c":
                self._text.append(_decode_text(b'"' + text + b'"'))
            return
        if event.data == b"[DONE]":
            self.done = True
            return
        self._decode(event)

    def _decode(self, event: SseEvent) -> None:
        try:
            chunk = _decode_chunk(event.data)
        except msgspec.MsgspecError as error:
            self.error = self.error or f"an event could not be read: {error}"
            return
        if chunk.error is not None:
            self.error = self.error or _message(chunk.error)
        if chunk.usage is not None:
            self.usage = chunk.usage
        for choice in chunk.choices[:1]:
            self._choice(choice, chunk.usage, event)

    def _choice(self, choice: _Choice, usage: _Usage | None, event: SseEvent) -> None:
        self.finish_reason = choice.finish_reason or self.finish_reason
        delta = choice.delta
        if delta is None:
            return
        text = delta.content or delta.reasoning or delta.reasoning_content
        kind = "c" if delta.content else "r" if text else "t" if delta.tool_calls else ""
        if not kind:
            return
        self._chunk(kind, usage.completion_tokens if usage else None, event.end)
        if self._text is not None and delta.content:
            self._text.append(delta.content)
        if text and not (delta.tool_calls or usage or choice.finish_reason) and self._patterns_tried < 8:
            self._patterns_tried += 1
            self._pattern = _Pattern.of(event.data, kind, text)

    def _chunk(self, kind: str, tokens: int | None, end: int) -> None:
        self.kinds.append(kind)
        self.chunk_at.append(self._arrival(end))
        self.running_tokens.append(tokens)

    @property
    def written_at(self) -> float | None:
        return self._byte_times.written_at

    def _arrival(self, end: int) -> float:
        ends = self._byte_times.ends
        while self._at < len(ends) - 1 and ends[self._at] < end:
            self._at += 1
        return self._byte_times.times[self._at]

    def chunk_tokens(self) -> list[int] | None:
        """Tokens of each chunk, where every one came with running usage."""
        running = [n for n in self.running_tokens if n is not None]
        if not running or len(running) != len(self.running_tokens):
            return None
        return [now - before for before, now in zip([0, *running], running, strict=False)]


async def stream_chat(
    session: aiohttp.ClientSession, request: StreamRequest
) -> tuple[RequestRecord, str, asyncio.CancelledError | None]:
    """Sends one streamed chat completion, over a session of `open_session`, and follows it to its end.

    Returns the row, the answer's text (empty unless `keep_text`) and, when the task was cancelled, the
    cancellation to re-raise once the row is safe.
    """
    byte_times = ByteTimes()
    _byte_times.set(byte_times)
    transcript = _Transcript(byte_times, keep_text=request.keep_text)
    clock = _Clock()
    status: int | None = None
    error: str | None = None
    cancelled: asyncio.CancelledError | None = None
    outcome = Outcome.OK
    try:
        async with asyncio.timeout(request.timeout_s):
            async with session.post(
                request.url,
                data=request.body,
                headers={"X-Request-Id": request.request_id},
                allow_redirects=False,
                trace_request_ctx=clock,
            ) as response:
                clock.headers_s = clock.now()
                status = response.status
                if status == 200:
                    await _follow(response, transcript, cast("StampingConnector", session.connector).turns)
                    clock.end(byte_times)
                    outcome, error = _judge(transcript, response.content_type)
                else:
                    outcome, error = Outcome.HTTP_ERROR, await _read_error(response)
    except TimeoutError:
        outcome, error = Outcome.TIMEOUT, f"not finished after {request.timeout_s:g} s"
    except asyncio.CancelledError as cancellation:
        outcome, cancelled = Outcome.CANCELLED, cancellation
    except (aiohttp.ClientError, HttpProcessingError, OSError, ValueError) as failure:
        outcome, error = _fail(failure, status, transcript)
    record = _record(request, clock, transcript, outcome=outcome, status=status, error=error)
    return record, transcript.text, cancelled


async def _follow(response: aiohttp.ClientResponse, transcript: _Transcript, turns: _Turns) -> None:
    content = response.content
    try:
        while not content.is_eof():
            await content.wait_eof()
            await turns.mine()
            if not content.is_eof():
                transcript.feed(content.read_nowait())
    finally:
        # After a failure the reader refuses to hand out what had come before it.
        transcript.feed(b"".join(content._buffer))
        content._buffer.clear()
        content._size = 0
        transcript.finish()


def _judge(transcript: _Transcript, content_type: str) -> tuple[Outcome, str | None]:
    if transcript.error is not None:
        return Outcome.STREAM_ERROR, transcript.error
    if not (transcript.done or transcript.finish_reason or transcript.chunk_at):
        if content_type != "text/event-stream":
            return Outcome.STREAM_ERROR, f"answered {content_type}, not an event stream"
        return Outcome.TRUNCATED, "the stream ended before any event"
    if not (transcript.done or transcript.finish_reason):
        return Outcome.TRUNCATED, "the stream ended without [DONE] and without a finish reason"
    if not transcript.chunk_at:
        return Outcome.EMPTY, None
    return Outcome.OK, None


def _fail(failure: Exception, status: int | None, transcript: _Transcript) -> tuple[Outcome, str | None]:
    text = _describe(failure)
    if status is None:
        refused = isinstance(failure, aiohttp.ClientConnectorError | aiohttp.ConnectionTimeoutError)
        return (Outcome.CONNECT_ERROR if refused else Outcome.DISCONNECTED), text
    if status != 200:
        return Outcome.HTTP_ERROR, text
    if transcript.error is not None:
        return Outcome.STREAM_ERROR, transcript.error
    if transcript.done or transcript.finish_reason:
        return _judge(transcript, "text/event-stream")
    ended_early = isinstance(failure, aiohttp.ClientPayloadError) and not _was_reset(failure)
    return (Outcome.TRUNCATED if ended_early else Outcome.STREAM_ERROR), text


def _was_reset(failure: BaseException) -> bool:
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, ConnectionError) or "Connection reset" in str(cause):
            return True
        cause = cause.__cause__
    return False


def _describe(failure: Exception) -> str:
    return f"{type(failure).__name__}: {failure}"[:_ERROR_CHARS]


async def _read_error(response: aiohttp.ClientResponse) -> str | None:
    body = await response.content.read(16 * 1024)
    retry = response.headers.get("Retry-After")
    place = response.headers.get("Location")
    notes = [
        f"redirects to {place}" if place else "",
        f"Retry-After: {retry}" if retry else "",
        _excerpt(body),
    ]
    return "; ".join(note for note in notes if note)[:_ERROR_CHARS] or None


def _excerpt(body: bytes) -> str:
    """The server's own words: the `message` of an OpenAI-shaped error, else the beginning of the body."""
    try:
        parsed = json.loads(body)
    except ValueError:
        return " ".join(body.decode("utf-8", "replace").split())[:_ERROR_CHARS]
    return _message(parsed.get("error", parsed) if isinstance(parsed, dict) else parsed)


def _message(inner: object) -> str:
    message = inner.get("message", inner) if isinstance(inner, dict) else inner
    return str(message)[:_ERROR_CHARS]


def _record(
    request: StreamRequest,
    clock: _Clock,
    transcript: _Transcript,
    *,
    outcome: Outcome,
    status: int | None,
    error: str | None,
) -> RequestRecord:
    written_at = transcript.written_at
    chunk_s = [round(at - clock.zero, 7) for at in transcript.chunk_at]
    kinds = "".join(transcript.kinds)
    answer = next((i for i, kind in enumerate(kinds) if kind != "r"), None)
    usage = transcript.usage or _Usage()
    return RequestRecord(
        request_id=request.request_id,
        model=request.model,
        scenario=request.scenario,
        worker=request.worker,
        user=request.user,
        turn=request.turn,
        level_users=request.level_users,
        scheduled_unix_s=request.scheduled_unix_s,
        start_unix_s=clock.start_unix_s,
        sent_s=clock.sent_s if written_at is None else written_at - clock.zero,
        headers_s=clock.headers_s,
        chunk_s=chunk_s,
        first_answer_s=None if answer is None else chunk_s[answer],
        end_s=clock.now() if clock.end_s is None else clock.end_s,
        chunk_kinds=kinds,
        chunk_tokens=transcript.chunk_tokens(),
        prompt_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        reasoning_tokens=usage.completion_tokens_details.reasoning_tokens
        if usage.completion_tokens_details
        else None,
        cached_tokens=usage.prompt_tokens_details.cached_tokens if usage.prompt_tokens_details else None,
        max_tokens=request.max_tokens,
        finish_reason=transcript.finish_reason,
        outcome=outcome,
        http_status=status,
        error=error,
    )
