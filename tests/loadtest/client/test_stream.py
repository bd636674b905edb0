"""Each Outcome, and everything that servers do on the wire, against real sockets."""

import asyncio
import contextlib
import gzip
import json
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.stream import StreamRequest, stream_chat
from loadtest.client.transcript import Transcript
from loadtest.client.transport import ByteTimes, open_session
from loadtest.record import Outcome, RequestRecord

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE = b"data: [DONE]\n\n"


def chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


END = chunk(b"")


def event(delta: dict[str, Any] | None = None, *, finish: str | None = None, **extra: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **extra}).encode() + b"\n\n"


ROLE = event({"role": "assistant", "content": ""})
USAGE = event(usage={"prompt_tokens": 7, "completion_tokens": 2})
ANSWER = [ROLE, event({"content": "a"}), event({"content": "b"}, finish="length"), USAGE, DONE]


async def read_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    return head + await reader.readexactly(length)


def answering(*pieces: bytes | float, close: bool = True) -> Handler:
    """A server that writes these pieces, each a packet of its own; numbers are pauses in seconds."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await read_request(reader)
            for piece in pieces:
                if isinstance(piece, bytes):
                    writer.write(piece)
                    await writer.drain()
                    await asyncio.sleep(0.002)
                else:
                    await asyncio.sleep(piece)
            if not close:
                await reader.read()
            writer.close()

    return handle


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Ends the connection with RST, not FIN."""
    await read_request(reader)
    writer.transport.abort()


def streaming(*events: bytes) -> Handler:
    return answering(HEAD, *(chunk(data) for data in events), END)


def request_to(url: str, **changes: Any) -> StreamRequest:
    values: dict[str, Any] = {
        "url": url,
        "body": b'{"stream": true}',
        "request_id": "r-1",
        "model": "m",
        "scenario": "s",
        "worker": "0",
        "user": 3,
        "turn": 0,
        "level_users": 1,
        "max_tokens": 2,
        "timeout_s": 5.0,
    }
    return StreamRequest(**{**values, **changes})


@contextlib.asynccontextmanager
async def serving(handler: Handler) -> AsyncIterator[str]:
    connections: set[asyncio.Task[None]] = set()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        connections.add(task)
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.CancelledError):
            pass
        finally:
            connections.discard(task)
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/v1/chat/completions"
        for task in connections:
            task.cancel()
        await asyncio.sleep(0)


def ask(handler: Handler, **changes: Any) -> RequestRecord:
    async def run() -> RequestRecord:
        async with serving(handler) as url, open_session(headers={}, tls=None) as session:
            record, _, cancelled = await stream_chat(session, request_to(url, **changes))
            assert cancelled is None
            return record

    return asyncio.run(run())


def test_a_whole_answer_is_ok() -> None:
    record = ask(streaming(*ANSWER))
    assert record.outcome is Outcome.OK
    assert (record.prompt_tokens, record.output_tokens, record.finish_reason) == (7, 2, "length")
    assert record.chunk_kinds == "cc"
    assert record.sent_s is not None
    assert record.headers_s is not None
    assert 0 <= record.sent_s <= record.headers_s <= record.chunk_s[0] <= record.chunk_s[1] <= record.end_s


def test_the_role_chunk_is_not_a_token() -> None:
    record = ask(answering(HEAD, chunk(ROLE), 0.15, *(chunk(data) for data in ANSWER[1:]), END))
    assert len(record.chunk_s) == 2
    assert record.chunk_s[0] > 0.14


def test_chunks_are_stamped_when_they_arrive_not_when_the_stream_ends() -> None:
    pieces: list[bytes | float] = [HEAD, chunk(ROLE)]
    for _ in range(5):
        pieces += [0.05, chunk(event({"content": "x"}))]
    record = ask(answering(*pieces, chunk(DONE), END))
    gaps = [b - a for a, b in zip(record.chunk_s, record.chunk_s[1:], strict=False)]
    assert len(gaps) == 4
    assert all(0.045 < gap < 0.15 for gap in gaps), gaps


def test_a_long_answer_is_parsed_in_slices_with_the_right_times() -> None:
    late = event({"content": "y" * 1000})
    first = [chunk(event({"content": "x" * 1000})) for _ in range(60)]
    record = ask(answering(HEAD, *first, 0.2, *(chunk(late) for _ in range(60)), chunk(DONE), END))
    assert record.outcome is Outcome.OK
    assert len(record.chunk_s) == 120
    assert record.chunk_s == sorted(record.chunk_s)
    assert record.chunk_s[60] - record.chunk_s[59] > 0.19


def test_reasoning_counts_for_ttft_and_the_answer_is_separate() -> None:
    usage = {"completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}}
    events = [
        ROLE,
        event({"reasoning": "h"}),
        event({"reasoning_content": "m"}),
        event({"content": "a"}, finish="stop"),
        event(usage=usage),
        DONE,
    ]
    record = ask(streaming(*events))
    assert record.chunk_kinds == "rrc"
    assert record.first_answer_s == record.chunk_s[2]
    assert record.reasoning_tokens == 2


def test_content_wins_in_a_mixed_delta() -> None:
    record = ask(streaming(event({"reasoning": "h", "content": "a"}, finish="stop"), DONE))
    assert record.chunk_kinds == "c"


def test_tool_calls_are_content() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]}
    record = ask(streaming(ROLE, event(call), event({}, finish="tool_calls"), DONE))
    assert (record.outcome, record.chunk_kinds) == (Outcome.OK, "t")


def test_running_usage_gives_the_tokens_of_each_chunk() -> None:
    events = [
        event({"content": "a"}, usage={"prompt_tokens": 7, "completion_tokens": 1}),
        event({"content": "bcd"}, usage={"prompt_tokens": 7, "completion_tokens": 4}),
        event({"content": "e"}, finish="stop", usage={"prompt_tokens": 7, "completion_tokens": 5}),
        DONE,
    ]
    record = ask(streaming(*events))
    assert record.chunk_tokens == [1, 3, 1]
    assert record.output_tokens == 5


def test_no_usage_leaves_token_counts_missing() -> None:
    record = ask(streaming(ROLE, event({"content": "a"}, finish="stop"), DONE))
    assert record.outcome is Outcome.OK
    assert record.output_tokens is None
    assert record.prompt_tokens is None
    assert record.chunk_tokens is None


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_stream_cut_anywhere_reads_the_same(size: int) -> None:
    body = b"".join([ROLE, event({"content": "é😀"}), event({"content": "b"}, finish="length"), USAGE, DONE])
    pieces = [chunk(body[i : i + size]) for i in range(0, len(body), size)]
    stream = b"".join(pieces)
    packets = [stream[i : i + 40] for i in range(0, len(stream), 40)]
    record = ask(answering(HEAD, *packets, END))
    assert (record.outcome, record.chunk_kinds, record.output_tokens) == (Outcome.OK, "cc", 2)


@pytest.mark.parametrize("line_end", ["\r\n", "\n", "\r"])
def test_line_ends_comments_and_missing_spaces_are_understood(line_end: str) -> None:
    body = b": ping\n\n" + b"".join(ANSWER).replace(b"data: ", b"data:")
    record = ask(streaming(body.replace(b"\n", line_end.encode())))
    assert (record.outcome, record.chunk_kinds) == (Outcome.OK, "cc")


TEXTS = st.text(alphabet=st.sampled_from('ab "\\\\{}:,é\\n'), max_size=6)
DELTAS = st.one_of(
    st.fixed_dictionaries({"content": TEXTS}),
    st.fixed_dictionaries({"reasoning": TEXTS}),
    st.fixed_dictionaries({"content": TEXTS, "reasoning": TEXTS}),
    st.fixed_dictionaries({"tool_calls": st.just([{"index": 0}])}),
    st.fixed_dictionaries({"content": st.none(), "reasoning_content": TEXTS}),
)
WRITERS = st.sampled_from([(", ", ": "), (",", ":")])


@given(st.lists(DELTAS, max_size=12), WRITERS, st.booleans(), st.booleans())
def test_events_that_look_alike_say_what_their_json_says(
    deltas: list[dict[str, Any]], separators: tuple[str, str], ascii_only: bool, in_front: bool
) -> None:
    """Most events are read off the pattern of the one before; this must never show."""
    transcript = Transcript(ByteTimes(), keep_text=True)
    transcript._byte_times.times, transcript._byte_times.ends = [1.0], [1 << 30]
    for delta in deltas:
        choice = {"delta": delta, "index": 0} if in_front else {"index": 0, "delta": delta, "logprobs": None}
        said = json.dumps({"id": "x", "choices": [choice]}, separators=separators, ensure_ascii=ascii_only)
        transcript.feed(b"data: " + said.encode() + b"\n\n")
    kinds = [
        "c" if delta.get("content") else "r" if delta.get("reasoning") or delta.get("reasoning_content") else
        "t" if delta.get("tool_calls") else "" for delta in deltas
    ]  # fmt: skip
    assert "".join(transcript.kinds) == "".join(kinds)
    assert transcript.text == "".join(delta.get("content") or "" for delta in deltas)
    assert transcript.error is None


def test_a_request_larger_than_the_socket_takes_at_once_is_sent_whole() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.2)
        got = await read_request(reader)
        writer.write(HEAD + chunk(event({"content": str(len(got))}, finish="stop")) + END)
        await writer.drain()

    record = ask(handle, body=b"x" * 1_000_000)
    assert record.outcome is Outcome.OK
    assert record.sent_s is not None
    assert record.headers_s is not None
    assert record.sent_s < record.headers_s


def test_sent_is_the_moment_when_the_kernel_has_the_request() -> None:
    """Not the end of the loop's turn: here that turn has half a second of something else to do."""

    async def run() -> RequestRecord:
        async with serving(streaming(*ANSWER)) as url, open_session(headers={}, tls=None) as session:
            await stream_chat(session, request_to(url))
            asked = asyncio.create_task(stream_chat(session, request_to(url)))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(time.sleep, 0.5)
            return (await asked)[0]

    record = asyncio.run(run())
    assert record.sent_s is not None
    assert record.sent_s < 0.1


def test_many_events_in_one_packet_share_its_time() -> None:
    record = ask(streaming(b"".join(ANSWER)))
    assert len(record.chunk_s) == 2
    assert record.chunk_s[0] == record.chunk_s[1]


def test_an_answer_longer_than_the_buffers_is_whole() -> None:
    record = ask(streaming(event({"content": "z" * 2_000_000}, finish="stop"), DONE))
    assert (record.outcome, len(record.chunk_s)) == (Outcome.OK, 1)


def test_gzip_is_decoded() -> None:
    head = HEAD.replace(b"Transfer", b"Content-Encoding: gzip\r\nTransfer")
    record = ask(answering(head, chunk(gzip.compress(b"".join(ANSWER))), END))
    assert (record.outcome, record.chunk_kinds) == (Outcome.OK, "cc")


def test_http_1_0_without_chunking_ends_with_the_connection() -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    record = ask(answering(head, *ANSWER))
    assert (record.outcome, record.chunk_kinds) == (Outcome.OK, "cc")


def test_nobody_listening_is_a_connect_error() -> None:
    async def run() -> RequestRecord:
        async with serving(reset) as url:
            pass
        async with open_session(headers={}, tls=None) as session:
            return (await stream_chat(session, request_to(url)))[0]

    record = asyncio.run(run())
    assert record.outcome is Outcome.CONNECT_ERROR
    assert record.http_status is None
    assert record.chunk_s == []


def test_an_unknown_host_is_a_connect_error() -> None:
    async def run() -> RequestRecord:
        async with open_session(headers={}, tls=None) as session:
            return (await stream_chat(session, request_to("http://no-such-host.invalid/v1")))[0]

    assert asyncio.run(run()).outcome is Outcome.CONNECT_ERROR


def test_a_reset_before_the_status_line_is_disconnected() -> None:
    assert ask(reset).outcome is Outcome.DISCONNECTED


def test_a_close_before_the_status_line_is_disconnected() -> None:
    assert ask(answering()).outcome is Outcome.DISCONNECTED


def test_what_is_not_http_is_disconnected() -> None:
    assert ask(answering(b"SSH-2.0-OpenSSH_9.2\r\n")).outcome is Outcome.DISCONNECTED


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
    record = ask(answering(head % (status, len(body)), body))
    assert record.outcome is Outcome.HTTP_ERROR
    assert record.http_status == int(status[:3])
    assert said in (record.error or "")


def test_an_error_object_inside_a_200_is_a_stream_error() -> None:
    error = b'data: {"error": {"message": "engine died", "code": 500}}\n\n'
    record = ask(streaming(ROLE, event({"content": "a"}), error, DONE))
    assert (record.outcome, record.error) == (Outcome.STREAM_ERROR, "engine died")
    assert len(record.chunk_s) == 1


def test_a_reset_in_the_middle_is_a_stream_error_and_keeps_what_came() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + chunk(ROLE) + chunk(event({"content": "a"})))
        await writer.drain()
        await asyncio.sleep(0.05)
        sock = writer.get_extra_info("socket")
        sock.setsockopt(1, 13, b"\x01\0\0\0\0\0\0\0")  # SO_LINGER 0: close sends RST
        writer.transport.abort()

    record = ask(handle)
    assert record.outcome is Outcome.STREAM_ERROR
    assert record.chunk_kinds == "c"


def test_an_unreadable_event_is_a_stream_error() -> None:
    record = ask(streaming(ROLE, b"data: {oops\n\n", DONE))
    assert record.outcome is Outcome.STREAM_ERROR
    assert "could not be read" in (record.error or "")


def test_a_200_that_is_no_stream_is_a_stream_error() -> None:
    body = b"<html>login</html>"
    head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\n\r\n" % len(body)
    record = ask(answering(head, body))
    assert record.outcome is Outcome.STREAM_ERROR
    assert "text/html" in (record.error or "")


def test_stream_without_done_and_finish_reason_is_truncated() -> None:
    assert ask(streaming(ROLE, event({"content": "a"}))).outcome is Outcome.TRUNCATED


def test_a_close_in_the_middle_is_truncated_and_keeps_what_came() -> None:
    record = ask(answering(HEAD, chunk(ROLE), chunk(event({"content": "a"}))))
    assert record.outcome is Outcome.TRUNCATED
    assert record.chunk_kinds == "c"


def test_a_close_after_the_finish_reason_is_ok() -> None:
    record = ask(answering(HEAD, chunk(event({"content": "a"}, finish="stop"))))
    assert record.outcome is Outcome.OK


def test_a_finished_answer_without_content_is_empty() -> None:
    assert ask(streaming(ROLE, event({}, finish="stop"), DONE)).outcome is Outcome.EMPTY


def test_silence_before_the_first_byte_is_a_timeout() -> None:
    record = ask(answering(close=False), timeout_s=0.2)
    assert record.outcome is Outcome.TIMEOUT
    assert 0.19 < record.end_s < 1.0


def test_silence_in_the_middle_is_a_timeout_and_keeps_what_came() -> None:
    record = ask(answering(HEAD, chunk(event({"content": "a"})), close=False), timeout_s=0.3)
    assert record.outcome is Outcome.TIMEOUT
    assert record.chunk_kinds == "c"


def test_a_cancelled_request_leaves_a_row() -> None:
    async def run() -> RequestRecord:
        async with (
            serving(answering(HEAD, chunk(event({"content": "a"})), close=False)) as url,
            open_session(headers={}, tls=None) as session,
        ):
            task = asyncio.create_task(stream_chat(session, request_to(url)))
            await asyncio.sleep(0.2)
            task.cancel()
            record, _, cancelled = await task
            assert isinstance(cancelled, asyncio.CancelledError)
            return record

    record = asyncio.run(run())
    assert record.outcome is Outcome.CANCELLED
    assert record.chunk_kinds == "c"


def test_the_request_id_is_sent() -> None:
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_request(reader))
        writer.write(HEAD + b"".join(chunk(data) for data in ANSWER) + END)
        writer.close()

    ask(handle)
    assert b"X-Request-Id: r-1" in seen[0]


def test_more_than_a_hundred_streams_run_at_once() -> None:
    async def run() -> list[float]:
        async with (
            serving(answering(HEAD, 0.5, *(chunk(d) for d in ANSWER), END)) as url,
            open_session(headers={}, tls=None) as session,
        ):
            began = time.perf_counter()
            answers = await asyncio.gather(*(stream_chat(session, request_to(url)) for _ in range(150)))
            assert all(record.outcome is Outcome.OK for record, _, _ in answers)
            assert time.perf_counter() - began < 3
            return [record.chunk_s[0] for record, _, _ in answers]

    assert max(asyncio.run(run())) < 2.5


def test_times_are_right_on_a_connection_that_is_used_again() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await read_request(reader)
                for data in (HEAD, chunk(ROLE)):
                    writer.write(data)
                await asyncio.sleep(0.1)
                writer.write(b"".join(chunk(data) for data in ANSWER[1:]) + END)

    async def run() -> list[RequestRecord]:
        async with serving(handle) as url, open_session(headers={}, tls=None) as session:
            return [(await stream_chat(session, request_to(url)))[0] for _ in range(3)]

    for record in asyncio.run(run()):
        assert record.outcome is Outcome.OK
        assert 0.09 < record.chunk_s[0] - (record.sent_s or 0) < 0.3
