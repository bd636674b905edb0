"""One test for each Outcome, against real sockets."""

import asyncio
import json
from typing import Any

import pytest

from loadtest.client.stream import Exchange, stream_chat
from loadtest.client.transport import open_session
from loadtest.record import Outcome, RequestRecord
from testing.servers.wire import (
    ANSWER_EVENTS,
    DONE_EVENT,
    ROLE_EVENT,
    STREAM_HEAD,
    USAGE_EVENT,
    WireHandler,
    answering,
    ask_wire,
    http_chunk,
    read_http_request,
    reset_connection,
    sse_event,
    stream_request,
    streaming,
    wire_server,
)


def test_a_whole_answer_is_ok() -> None:
    record = ask_wire(streaming(*ANSWER_EVENTS))
    assert record.outcome is Outcome.OK
    assert (record.prompt_tokens, record.output_tokens, record.finish_reason) == (7, 2, "length")
    assert record.chunk_kinds == "cc"
    assert record.sent_s is not None
    assert record.headers_s is not None
    assert 0 <= record.sent_s <= record.headers_s <= record.chunk_s[0] <= record.chunk_s[1] <= record.end_s


def test_nobody_listening_is_a_connect_error() -> None:
    async def run() -> RequestRecord:
        async with wire_server(reset_connection) as url:
            pass
        async with open_session(headers={}, tls=None) as session:
            return (await stream_chat(session, stream_request(url)))[0]

    record = asyncio.run(run())
    assert record.outcome is Outcome.CONNECT_ERROR
    assert record.http_status is None
    assert record.chunk_s == []


def test_an_unknown_host_is_not_the_servers_fault() -> None:
    async def run() -> RequestRecord:
        async with open_session(headers={}, tls=None) as session:
            return (await stream_chat(session, stream_request("http://no-such-host.invalid/v1")))[0]

    record = asyncio.run(run())
    assert (record.outcome, record.sent_s) == (Outcome.NOT_SENT, None)
    assert "no-such-host.invalid" in (record.error or "")


def test_a_reset_before_the_status_line_is_disconnected() -> None:
    assert ask_wire(reset_connection).outcome is Outcome.DISCONNECTED


def test_a_close_before_the_status_line_is_disconnected() -> None:
    assert ask_wire(answering()).outcome is Outcome.DISCONNECTED


def test_what_is_not_http_is_disconnected() -> None:
    assert ask_wire(answering(b"SSH-2.0-OpenSSH_9.2\r\n")).outcome is Outcome.DISCONNECTED


@pytest.mark.parametrize(
    ("status", "body", "said"),
    [
        (b"400 Bad Request", b'{"error": {"message": "too long", "code": 400}}', "too long"),
        (b"401 Unauthorized", b'{"error": "Unauthorized"}', "Unauthorized"),
        (b"404 Not Found", b'{"object": "error", "message": "no model"}', "no model"),
        (b"500 Internal Server Error", b"<html><h1>Oops</h1></html>", "<html><h1>Oops</h1></html>"),
        (b"503 Service Unavailable", b"", "Retry-After: 3"),
        (b"307 Temporary Redirect", b"", "redirects to http://elsewhere"),
    ],
)
def test_another_status_is_an_http_error(status: bytes, body: bytes, said: str) -> None:
    head = (
        b"HTTP/1.1 %s\r\nContent-Length: %d\r\nRetry-After: 3\r\nLocation: http://elsewhere\r\n\r\n"
        if status.startswith((b"3", b"503"))
        else b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n"
    )
    record = ask_wire(answering(head % (status, len(body)), body))
    assert record.outcome is Outcome.HTTP_ERROR
    assert record.http_status == int(status[:3])
    assert said in (record.error or "")


def test_an_error_object_inside_a_200_is_a_stream_error() -> None:
    error = b'data: {"error": {"message": "engine died", "code": 500}}\n\n'
    record = ask_wire(streaming(ROLE_EVENT, sse_event({"content": "a"}), error, DONE_EVENT))
    assert (record.outcome, record.error) == (Outcome.STREAM_ERROR, "engine died (code 500)")
    assert len(record.chunk_s) == 1


def test_a_reset_in_the_middle_is_a_stream_error_and_keeps_what_came() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_http_request(reader)
        writer.write(STREAM_HEAD + http_chunk(ROLE_EVENT) + http_chunk(sse_event({"content": "a"})))
        await writer.drain()
        await asyncio.sleep(0.05)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SO_LINGER 0: close sends RST
        writer.transport.abort()

    record = ask_wire(handle)
    assert record.outcome is Outcome.STREAM_ERROR
    assert record.chunk_kinds == "c"


def test_an_unreadable_event_is_a_stream_error() -> None:
    record = ask_wire(streaming(ROLE_EVENT, b"data: {oops\n\n", DONE_EVENT))
    assert record.outcome is Outcome.STREAM_ERROR
    assert "could not be read" in (record.error or "")


def test_a_200_that_is_no_stream_is_a_stream_error() -> None:
    body = b"<html>login</html>"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(body)
    record = ask_wire(answering(head, body))
    assert record.outcome is Outcome.STREAM_ERROR
    assert "text/html" in (record.error or "")


def test_stream_without_done_and_finish_reason_is_truncated() -> None:
    assert ask_wire(streaming(ROLE_EVENT, sse_event({"content": "a"}))).outcome is Outcome.TRUNCATED


def test_a_close_in_the_middle_is_truncated_and_keeps_what_came() -> None:
    record = ask_wire(answering(STREAM_HEAD, http_chunk(ROLE_EVENT), http_chunk(sse_event({"content": "a"}))))
    assert record.outcome is Outcome.TRUNCATED
    assert record.chunk_kinds == "c"


def test_a_close_after_the_finish_reason_is_ok() -> None:
    record = ask_wire(answering(STREAM_HEAD, http_chunk(sse_event({"content": "a"}, finish="stop"))))
    assert record.outcome is Outcome.OK


def test_a_finished_answer_without_content_is_empty() -> None:
    assert ask_wire(streaming(ROLE_EVENT, sse_event({}, finish="stop"), DONE_EVENT)).outcome is Outcome.EMPTY


def test_silence_before_the_first_byte_is_a_timeout() -> None:
    record = ask_wire(answering(close=False), timeout_s=0.2)
    assert record.outcome is Outcome.TIMEOUT
    assert 0.19 < record.end_s < 1.0


def test_silence_in_the_middle_is_a_timeout_and_keeps_what_came() -> None:
    record = ask_wire(
        answering(STREAM_HEAD, http_chunk(sse_event({"content": "a"})), close=False), timeout_s=0.3
    )
    assert record.outcome is Outcome.TIMEOUT
    assert record.chunk_kinds == "c"


def test_a_cancelled_request_leaves_a_row() -> None:
    async def run() -> RequestRecord:
        async with (
            wire_server(answering(STREAM_HEAD, http_chunk(sse_event({"content": "a"})), close=False)) as url,
            open_session(headers={}, tls=None) as session,
        ):
            task = asyncio.create_task(stream_chat(session, stream_request(url)))
            await asyncio.sleep(0.2)
            task.cancel()
            record, _, cancelled, _ = await task
            assert isinstance(cancelled, asyncio.CancelledError)
            return record

    record = asyncio.run(run())
    assert record.outcome is Outcome.CANCELLED
    assert record.chunk_kinds == "c"


def ask_fully(handler: WireHandler, **changes: Any) -> Exchange:
    async def run() -> Exchange:
        async with wire_server(handler) as url, open_session(headers={}, tls=None) as session:
            return await stream_chat(session, stream_request(url, **changes))

    return asyncio.run(run())


@pytest.mark.parametrize("after", [(3.0,), ()], ids=["hangs", "is cut"])
def test_an_answer_is_complete_at_done_whatever_its_body_does_then(after: tuple[float, ...]) -> None:
    pieces = [http_chunk(data) for data in ANSWER_EVENTS]
    record = ask_wire(answering(STREAM_HEAD, *pieces, *after, close=not after), timeout_s=2)
    assert (record.outcome, record.output_tokens, record.error) == (Outcome.OK, 2, None)
    assert record.end_s < 0.2


def test_a_time_limit_or_the_end_of_the_test_just_after_done_change_nothing() -> None:
    pieces = [http_chunk(data) for data in ANSWER_EVENTS]
    limited = ask_wire(answering(STREAM_HEAD, *pieces, close=False), timeout_s=0.15)
    assert limited.outcome is Outcome.OK

    async def run() -> Exchange:
        async with (
            wire_server(answering(STREAM_HEAD, *pieces, close=False)) as url,
            open_session(headers={}, tls=None) as session,
        ):
            task = asyncio.create_task(stream_chat(session, stream_request(url)))
            await asyncio.sleep(0.1)
            task.cancel()
            return await task

    exchange = asyncio.run(run())
    assert exchange.record.outcome is Outcome.OK
    assert exchange.cancelled is not None


def test_a_connection_whose_body_hangs_after_done_is_not_used_again() -> None:
    connections = 0

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        await answering(STREAM_HEAD, *(http_chunk(data) for data in ANSWER_EVENTS), close=False)(
            reader, writer
        )

    async def run() -> list[RequestRecord]:
        async with wire_server(handle) as url, open_session(headers={}, tls=None) as session:
            return [(await stream_chat(session, stream_request(url)))[0] for _ in range(2)]

    assert [record.outcome for record in asyncio.run(run())] == [Outcome.OK, Outcome.OK]
    assert connections == 2


@pytest.mark.parametrize("together", [True, False], ids=["in one packet", "later"])
def test_a_malformed_chunk_is_a_stream_error_at_once(together: bool) -> None:
    good, bad = http_chunk(sse_event({"content": "a"})), b"oops\r\nnot a chunk\r\n"
    pieces = [good + bad] if together else [good, 0.1, bad]
    record = ask_wire(answering(STREAM_HEAD, *pieces, close=False), timeout_s=5)
    assert (record.outcome, record.chunk_kinds) == (Outcome.STREAM_ERROR, "c")
    assert record.end_s < 1


@pytest.mark.parametrize("reason", ["abort", "error"])
def test_an_answer_that_the_server_gave_up_is_a_stream_error(reason: str) -> None:
    record = ask_wire(
        streaming(ROLE_EVENT, sse_event({"content": "a"}), sse_event({}, finish=reason), DONE_EVENT)
    )
    assert (record.outcome, record.finish_reason) == (Outcome.STREAM_ERROR, reason)
    assert reason in (record.error or "")


def test_what_a_content_filter_withholds_is_empty_and_what_it_cuts_is_ok() -> None:
    record = ask_wire(streaming(ROLE_EVENT, sse_event({}, finish="content_filter"), DONE_EVENT))
    assert record.outcome is Outcome.EMPTY
    assert "content filter" in (record.error or "")
    cut = ask_wire(streaming(sse_event({"content": "a"}), sse_event({}, finish="content_filter"), DONE_EVENT))
    assert (cut.outcome, cut.finish_reason) == (Outcome.OK, "content_filter")


def test_tokens_without_text_are_an_empty_answer_that_says_so() -> None:
    record = ask_wire(streaming(ROLE_EVENT, sse_event({}, finish="stop"), USAGE_EVENT, DONE_EVENT))
    assert (record.outcome, record.output_tokens) == (Outcome.EMPTY, 2)
    assert record.error == "tokens were counted, but no text came"


@pytest.mark.parametrize(
    ("event", "said"),
    [
        ({"error": {"message": "slow down", "code": "too_many"}}, "slow down (code too_many)"),
        ({"object": "error", "message": "engine dead", "code": 503}, "engine dead (code 503)"),
        ({"error": "overloaded", "error_type": "overloaded"}, "overloaded"),
        ({"detail": "Internal Server Error"}, "Internal Server Error"),
    ],
)  # fmt: skip
def test_an_error_in_the_stream_keeps_the_servers_words_and_code(event: dict[str, Any], said: str) -> None:
    record = ask_wire(streaming(ROLE_EVENT, b"data: " + json.dumps(event).encode() + b"\n\n", DONE_EVENT))
    assert (record.outcome, record.error) == (Outcome.STREAM_ERROR, said)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"7", 7),
        (b"Sat, 28 Nov 2026 12:00:09 GMT", 9),
        (b"Sat, 28 Nov 2026 11:00:00 GMT", 0),
        (b"soon", None),
        (b"-1", None),
        (b"", None),
    ],
)
def test_retry_after_is_a_number_of_seconds_or_a_date(value: bytes, seconds: float | None) -> None:
    head = (
        b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nDate: Sat, 28 Nov 2026 12:00:00 GMT\r\n"
        b"Retry-After: %s\r\n\r\n"
    )
    assert ask_fully(answering(head % value)).retry_after_s == seconds


def test_an_error_whose_body_hangs_keeps_its_status_and_what_it_said() -> None:
    head = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 100\r\n\r\nall seats"
    record = ask_wire(answering(head, b" are taken", close=False), timeout_s=10)
    assert (record.outcome, record.http_status) == (Outcome.HTTP_ERROR, 503)
    assert record.error == "all seats are taken"
    assert record.end_s < 4


def test_a_proxy_that_drops_a_silent_stream_without_a_word_is_a_timeout() -> None:
    """What a NAT gateway does: packets vanish, and nobody closes the connection."""
    record = ask_wire(
        answering(STREAM_HEAD, http_chunk(ROLE_EVENT), http_chunk(sse_event({"content": "a"})), close=False),
        timeout_s=0.5,
    )
    assert (record.outcome, record.http_status, record.chunk_kinds) == (Outcome.TIMEOUT, 200, "c")
