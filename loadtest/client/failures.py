"""Tells how a request ended, by what its stream held or by the exception that ended it. Knows no socket."""

import errno

import aiohttp

from loadtest.client.transcript import MAX_ERROR_CHARS, Transcript
from loadtest.record import Outcome

ABORTED_REASONS = frozenset({"abort", "error"})
"""Finish reasons by which a server says that it gave an answer up: vLLM and SGLang write these."""
_OUR_ERRNOS = frozenset(
    {
        errno.EMFILE,  # no file descriptor
        errno.ENFILE,
        errno.EADDRNOTAVAIL,  # no local port
        errno.ENOBUFS,
        errno.ENOMEM,
        errno.ENETDOWN,  # no network here
        errno.ENETUNREACH,
        errno.EACCES,  # forbidden by this machine's firewall
        errno.EPERM,
    }
)
"""Errors of a connection that never left this machine. A host that cannot be reached (EHOSTUNREACH) is not
among them: its network says so."""


def outcome_of_answer(transcript: Transcript, content_type: str) -> tuple[Outcome, str | None]:
    """Returns the outcome of an answer with status 200 that has ended, and what was wrong (else None)."""
    reason = transcript.finish_reason
    if transcript.error is not None:
        return Outcome.STREAM_ERROR, transcript.error
    if reason in ABORTED_REASONS:
        return Outcome.STREAM_ERROR, f"the server gave the answer up (finish_reason {reason})"
    if not (transcript.is_complete or transcript.chunk_at):
        if content_type != "text/event-stream":
            return Outcome.STREAM_ERROR, f"answered {content_type}, not an event stream"
        return Outcome.TRUNCATED, "the stream ended before any event"
    if not transcript.is_complete:
        return Outcome.TRUNCATED, "the stream ended without [DONE] and without a finish reason"
    if not transcript.chunk_at:
        return Outcome.EMPTY, _why_empty(transcript)
    return Outcome.OK, None


def _why_empty(transcript: Transcript) -> str | None:
    if transcript.finish_reason == "content_filter":
        return "the server's content filter withheld the answer (finish_reason content_filter)"
    usage = transcript.usage
    return "tokens were counted, but no text came" if usage and usage.completion_tokens else None


def outcome_of_failure(failure: BaseException, transcript: Transcript) -> tuple[Outcome, str]:
    """Returns the outcome of a request whose answer an exception ended after the status 200, and the reason
    in words. The answer had not come to `[DONE]`."""
    if transcript.error is not None:
        return Outcome.STREAM_ERROR, transcript.error
    if transcript.finish_reason:
        outcome, words = outcome_of_answer(transcript, "text/event-stream")
        return outcome, words or ""
    ended_early = isinstance(failure, aiohttp.ClientPayloadError) and not _was_reset(failure)
    return (Outcome.TRUNCATED if ended_early else Outcome.STREAM_ERROR), describe_failure(failure)


def outcome_without_answer(failure: BaseException) -> tuple[Outcome, str]:
    """Returns the outcome of a request that an exception ended before a status came, and the reason in
    words."""
    if isinstance(failure, aiohttp.ClientConnectorDNSError):
        return Outcome.NOT_SENT, describe_failure(failure)
    if isinstance(failure, aiohttp.ClientConnectorError):
        ours = failure.os_error.errno in _OUR_ERRNOS
        return (Outcome.NOT_SENT if ours else Outcome.CONNECT_ERROR), describe_failure(failure)
    return Outcome.DISCONNECTED, describe_failure(failure)


def _was_reset(failure: BaseException) -> bool:
    cause: BaseException | None = failure
    while cause is not None:
        if isinstance(cause, ConnectionError) or "Connection reset" in str(cause):
            return True
        cause = cause.__cause__
    return False


def describe_failure(failure: BaseException) -> str:
    """Returns in words what went wrong with a connection or an answer."""
    if isinstance(failure, aiohttp.ClientResponseError) and "Expected HTTP/" in failure.message:
        # An HTTP/2 server begins with the frame SETTINGS, whose length has three bytes.
        if "b'\\x00\\x00" in failure.message:
            return "the server answers in HTTP/2, and the load test speaks HTTP/1.1 only"
        return "the server does not speak HTTP"
    return f"{type(failure).__name__}: {failure}"[:MAX_ERROR_CHARS]
