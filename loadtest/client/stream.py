"""Sends one streamed chat completion and records it as one RequestRecord. A failure becomes an Outcome, never
an exception. Knows no Locust and no statistics."""

import asyncio
import time
from collections.abc import Callable
from typing import NamedTuple, cast

import aiohttp
import msgspec
from aiohttp.http_exceptions import HttpProcessingError

from loadtest.client.failures import outcome_of_answer, outcome_of_failure, outcome_without_answer
from loadtest.client.refusal import RefusedAnswer, read_refusal
from loadtest.client.transcript import ServerUsage, Transcript
from loadtest.client.transport import (
    ByteTimes,
    ParseQueue,
    RequestClock,
    StampingConnector,
    current_byte_times,
)
from loadtest.record import Outcome, RecordedFacts, RequestRecord

REUSE_RACE_S = 0.5
"""Seconds after sending within which the end of a reused connection means that the server had closed it
before it saw the request. A close that was on its way arrives within one round trip, less than 0.4 s around
the earth. A connection that dies later may have carried the request to the server."""


class StreamRequest(msgspec.Struct, kw_only=True, frozen=True):
    """One request that is ready to be sent: its body is serialised before the clock starts."""

    url: str
    body: bytes
    request_id: str
    model: str
    scenario: str
    worker: str
    user: int
    user_class: str | None = None
    turn: int
    step: int = 0
    level_users: int | None
    max_tokens: int
    timeout_s: float
    scheduled_unix_s: float | None = None
    session: str | None = None
    late_s: float | None = None
    recorded: RecordedFacts | None = None
    keep_text: bool = False
    """Whether to return the text of the answer."""


class Exchange(NamedTuple):
    """One attempted request and what came of it."""

    record: RequestRecord
    text: str
    """Text of the answer; empty unless `keep_text`."""
    cancelled: asyncio.CancelledError | None
    """The error that cancelled the task, else None. The caller raises it again after storing the row."""
    retry_after_s: float | None
    """Seconds after which a refusing server wants to be asked again; None if it does not say."""


async def stream_chat(
    session: aiohttp.ClientSession,
    request: StreamRequest,
    *,
    note_times: Callable[[ByteTimes], object] = lambda _: None,
) -> Exchange:
    """Sends one streamed chat completion over a session from `open_session` and reads the answer to its end.

    A server may close an idle connection just when it is used again. Such a request is sent once more, on a
    new connection, if the server cannot have begun it: the connection had served another request, no byte of
    an answer had come, and the connection ended within REUSE_RACE_S after sending. Browsers do the same
    (without the limit of time).

    note_times: called with the record of the times of the bytes, before the first byte. The record can be
    read while the request runs. Called again if the request is sent once more.
    """
    attempt = _Attempt(request, note_times)
    failure: BaseException | None = None
    try:
        async with asyncio.timeout(request.timeout_s):
            try:
                await attempt.send(session)
            except (aiohttp.ClientOSError, aiohttp.ServerDisconnectedError):
                if not attempt.met_a_closing_connection():
                    raise
                attempt.renew()
                await attempt.send(session)
    except (
        TimeoutError,
        asyncio.CancelledError,
        aiohttp.ClientError,
        HttpProcessingError,
        OSError,
        ValueError,
    ) as error:
        failure = error
    return Exchange(
        attempt.record(failure),
        attempt.transcript.text,
        failure if isinstance(failure, asyncio.CancelledError) else None,
        attempt.refusal.retry_after_s,
    )


class _Attempt:
    """What is known of one request while it runs."""

    def __init__(self, request: StreamRequest, note_times: Callable[[ByteTimes], object]) -> None:
        self.request = request
        self._note_times = note_times
        self.clock = RequestClock()
        self.status: int | None = None
        self.content_type = ""
        self.refusal = RefusedAnswer(None, None)
        self.replaced_connections = 0
        self._begin(ByteTimes())

    def _begin(self, byte_times: ByteTimes) -> None:
        self.byte_times = byte_times
        current_byte_times.set(byte_times)
        self._note_times(byte_times)
        self.transcript = Transcript(byte_times, keep_text=self.request.keep_text)

    def renew(self) -> None:
        """Begins anew on a new connection. The times still count from the first start."""
        self.replaced_connections += 1
        self.clock.sent_s = None
        self._begin(ByteTimes(needs_new_connection=True))

    async def send(self, session: aiohttp.ClientSession) -> None:
        """Sends the request and reads the answer. Raises what aiohttp raises."""
        request = self.request
        async with session.post(
            request.url,
            data=request.body,
            headers={"X-Request-Id": request.request_id},
            allow_redirects=False,
            trace_request_ctx=self.clock,
        ) as response:
            self.clock.headers_s = self.clock.now()
            self.status = response.status
            if response.status == 200:
                self.content_type = response.content_type
                queue = cast("StampingConnector", session.connector).parse_queue
                await _follow(response, self.transcript, queue)
            else:
                self.refusal = await read_refusal(response)

    def met_a_closing_connection(self) -> bool:
        """Whether the request was lost because the server was closing the connection, unseen by the server.
        `stream_chat` says how this is known."""
        if not self.byte_times.used_before or self.byte_times.heard:
            return False
        sent_s = self._sent_s()
        return sent_s is None or self.clock.now() - sent_s < REUSE_RACE_S

    def _sent_s(self) -> float | None:
        written_at = self.byte_times.written_at
        return self.clock.sent_s if written_at is None else written_at - self.clock.zero

    def _end_s(self, failure: BaseException | None) -> float:
        """Returns when the answer was complete: at `[DONE]`, else when its last byte arrived. If it never
        was, returns when the request failed, which is now."""
        done_at = self.transcript.done_at
        if done_at is None and failure is None and self.status == 200 and self.byte_times.times:
            done_at = self.byte_times.times[-1]
        return (time.perf_counter() if done_at is None else done_at) - self.clock.zero

    def _outcome(self, failure: BaseException | None) -> tuple[Outcome, str | None]:
        transcript = self.transcript
        if transcript.done_at is not None or (failure is None and self.status == 200):
            return outcome_of_answer(transcript, self.content_type)
        if isinstance(failure, asyncio.CancelledError):
            return Outcome.CANCELLED, None
        if self.status is not None and self.status != 200:
            return Outcome.HTTP_ERROR, self.refusal.words
        assert failure is not None
        if isinstance(failure, TimeoutError) and transcript.error is None:
            return self._outcome_of_time_limit()
        if self.status is None:
            return outcome_without_answer(failure)
        return outcome_of_failure(failure, transcript)

    def _outcome_of_time_limit(self) -> tuple[Outcome, str]:
        if self._sent_s() is not None:
            return Outcome.TIMEOUT, f"not finished after {self.request.timeout_s:g} s"
        if self.clock.resolving:
            return Outcome.NOT_SENT, "the host's name was not resolved in time"
        return Outcome.CONNECT_ERROR, f"no connection after {self.clock.now():.1f} s"

    def record(self, failure: BaseException | None) -> RequestRecord:
        """Builds the row. failure: what ended the request; None if nothing did."""
        end_s = self._end_s(failure)
        outcome, error = self._outcome(failure)
        request, clock, transcript = self.request, self.clock, self.transcript
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
            user_class=request.user_class,
            turn=request.turn,
            step=request.step,
            session=request.session,
            late_s=request.late_s,
            recorded=request.recorded,
            level_users=request.level_users,
            scheduled_unix_s=request.scheduled_unix_s,
            start_unix_s=clock.start_unix_s,
            sent_s=self._sent_s(),
            headers_s=clock.headers_s,
            chunk_s=chunk_s,
            first_answer_s=None if answer is None else chunk_s[answer],
            end_s=end_s,
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
            http_status=self.status,
            error=error,
            replaced_connections=self.replaced_connections,
        )


async def _follow(response: aiohttp.ClientResponse, transcript: Transcript, queue: ParseQueue) -> None:
    content = response.content
    try:
        while not (content.is_eof() or transcript.done_at is not None):
            if (failure := content.exception()) is not None:
                raise failure
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
