"""One test for each Outcome, against real sockets."""

import asyncio

import pytest

from loadtest.client.stream import stream_chat
from loadtest.client.transport import open_session
from loadtest.record import Outcome, RequestRecord
from testing.servers.wire import (
    ANSWER_EVENTS,
    DONE_EVENT,
    ROLE_EVENT,
    STREAM_HEAD,
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


def test_an_unknown_host_is_a_connect_error() -> None:
    async def run() -> RequestRecord:
        async with open_session(headers={}, tls=None) as session:
            return (await stream_chat(session, stream_request("http://no-such-host.invalid/v1")))[0]

    assert asyncio.run(run()).outcome is Outcome.CONNECT_ERROR


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
    assert (record.outcome, record.error) == (Outcome.STREAM_ERROR, "engine died")
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
            record, _, cancelled = await task
            assert isinstance(cancelled, asyncio.CancelledError)
            return record

    record = asyncio.run(run())
    assert record.outcome is Outcome.CANCELLED
    assert record.chunk_kinds == "c"
