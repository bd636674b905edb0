"""Sends one streamed chat completion and records it as one RequestRecord. A failure becomes an Outcome, never
an exception. Knows no Locust and no statistics."""

import asyncio
from typing import cast

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from loadtest.client.transcript import MAX_ERROR_CHARS, ServerUsage, Transcript, error_excerpt
from loadtest.client.transport import (
    ByteTimes,
    ParseQueue,
    RequestClock,
    StampingConnector,
    current_byte_times,
)
from loadtest.record import Outcome, RequestRecord


class StreamRequest(msgspec.Struct, kw_only=True, frozen=True):
    """One request that is ready to be sent: its body is serialised before the clock starts."""

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
    """Whether to return the text of the answer."""


async def stream_chat(
    session: aiohttp.ClientSession, request: StreamRequest
) -> tuple[RequestRecord, str, asyncio.CancelledError | None]:
    """Sends one streamed chat completion over a session from `open_session` and reads the answer to its end.

    Returns three values:
    - the row of the request,
    - the text of the answer; empty unless `keep_text`,
    - the CancelledError if the task was cancelled, else None. The caller raises it again after storing the
      row.
    """
    byte_times = ByteTimes()
    current_byte_times.set(byte_times)
    transcript = Transcript(byte_times, keep_text=request.keep_text)
    clock = RequestClock()
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
                    await _follow(
                        response, transcript, cast("StampingConnector", session.connector).parse_queue
                    )
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


async def _follow(response: aiohttp.ClientResponse, transcript: Transcript, queue: ParseQueue) -> None:
    content = response.content
    try:
        while not content.is_eof():
            await content.wait_eof()
            await queue.wait()
            if not content.is_eof():
                transcript.feed(content.read_nowait())
    finally:
        # After a failure the reader does not return the bytes that arrived before it.
        transcript.feed(b"".join(content._buffer))
        content._buffer.clear()
        content._size = 0
        transcript.finish()


def _judge(transcript: Transcript, content_type: str) -> tuple[Outcome, str | None]:
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


def _fail(failure: Exception, status: int | None, transcript: Transcript) -> tuple[Outcome, str | None]:
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
    return f"{type(failure).__name__}: {failure}"[:MAX_ERROR_CHARS]


async def _read_error(response: aiohttp.ClientResponse) -> str | None:
    body = await response.content.read(16 * 1024)
    retry = response.headers.get("Retry-After")
    location = response.headers.get("Location")
    notes = [
        f"redirects to {location}" if location else "",
        f"Retry-After: {retry}" if retry else "",
        error_excerpt(body),
    ]
    return "; ".join(note for note in notes if note)[:MAX_ERROR_CHARS] or None


def _record(
    request: StreamRequest,
    clock: RequestClock,
    transcript: Transcript,
    *,
    outcome: Outcome,
    status: int | None,
    error: str | None,
) -> RequestRecord:
    written_at = transcript.written_at
    chunk_s = [round(at - clock.zero, 7) for at in transcript.chunk_at]
    kinds = "".join(transcript.kinds)
    answer = next((i for i, kind in enumerate(kinds) if kind != "r"), None)
    usage = transcript.usage or ServerUsage()
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
