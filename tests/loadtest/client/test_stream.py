"""What servers write on the wire, and when it is stamped, against real sockets."""

import asyncio
import contextlib
import gzip
import json
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtest.client.stream import stream_chat
from loadtest.client.transcript import Transcript
from loadtest.client.transport import ByteTimes, open_session
from loadtest.record import Outcome, RequestRecord
from testing.servers.wire import (
    ANSWER_EVENTS,
    DONE_EVENT,
    LAST_CHUNK,
    ROLE_EVENT,
    STREAM_HEAD,
    USAGE_EVENT,
    answering,
    ask_wire,
    http_chunk,
    read_http_request,
    sse_event,
    stream_request,
    streaming,
    wire_server,
)


def test_the_role_chunk_is_not_a_token() -> None:
    record = ask_wire(
        answering(
            STREAM_HEAD,
            http_chunk(ROLE_EVENT),
            0.15,
            *(http_chunk(data) for data in ANSWER_EVENTS[1:]),
            LAST_CHUNK,
        )
    )
    assert len(record.chunk_s) == 2
    assert record.chunk_s[0] > 0.14


def test_chunks_are_stamped_when_they_arrive_not_when_the_stream_ends() -> None:
    pieces: list[bytes | float] = [STREAM_HEAD, http_chunk(ROLE_EVENT)]
    for _ in range(5):
        pieces += [0.05, http_chunk(sse_event({"content": "x"}))]
    record = ask_wire(answering(*pieces, http_chunk(DONE_EVENT), LAST_CHUNK))
    gaps = [b - a for a, b in zip(record.chunk_s, record.chunk_s[1:], strict=False)]
    assert len(gaps) == 4
    assert all(0.045 < gap < 0.15 for gap in gaps), gaps


def test_a_long_answer_is_parsed_in_slices_with_the_right_times() -> None:
    late = sse_event({"content": "y" * 1000})
    first = [http_chunk(sse_event({"content": "x" * 1000})) for _ in range(60)]
    record = ask_wire(
        answering(
            STREAM_HEAD,
            *first,
            0.2,
            *(http_chunk(late) for _ in range(60)),
            http_chunk(DONE_EVENT),
            LAST_CHUNK,
        )
    )
    assert record.outcome is Outcome.OK
    assert len(record.chunk_s) == 120
    assert record.chunk_s == sorted(record.chunk_s)
    assert record.chunk_s[60] - record.chunk_s[59] > 0.19


def test_reasoning_counts_for_ttft_and_the_answer_is_separate() -> None:
    usage = {"completion_tokens": 3, "completion_tokens_details": {"reasoning_tokens": 2}}
    events = [
        ROLE_EVENT,
        sse_event({"reasoning": "h"}),
        sse_event({"reasoning_content": "m"}),
        sse_event({"content": "a"}, finish="stop"),
        sse_event(usage=usage),
        DONE_EVENT,
    ]
    record = ask_wire(streaming(*events))
    assert record.chunk_kinds == "rrc"
    assert record.first_answer_s == record.chunk_s[2]
    assert record.reasoning_tokens == 2


def test_content_wins_in_a_mixed_delta() -> None:
    record = ask_wire(streaming(sse_event({"reasoning": "h", "content": "a"}, finish="stop"), DONE_EVENT))
    assert record.chunk_kinds == "c"


def test_tool_calls_are_content() -> None:
    call = {"tool_calls": [{"index": 0, "function": {"name": "f", "arguments": "{"}}]}
    record = ask_wire(streaming(ROLE_EVENT, sse_event(call), sse_event({}, finish="tool_calls"), DONE_EVENT))
    assert (record.outcome, record.chunk_kinds) == (Outcome.OK, "t")


def test_running_usage_gives_the_tokens_of_each_chunk() -> None:
    events = [
        sse_event({"content": "a"}, usage={"prompt_tokens": 7, "completion_tokens": 1}),
        sse_event({"content": "bcd"}, usage={"prompt_tokens": 7, "completion_tokens": 4}),
        sse_event({"content": "e"}, finish="stop", usage={"prompt_tokens": 7, "completion_tokens": 5}),
        DONE_EVENT,
    ]
    record = ask_wire(streaming(*events))
    assert record.chunk_tokens == [1, 3, 1]
    assert record.output_tokens == 5


def test_no_usage_leaves_token_counts_missing() -> None:
    record = ask_wire(streaming(ROLE_EVENT, sse_event({"content": "a"}, finish="stop"), DONE_EVENT))
    assert record.outcome is Outcome.OK
    assert record.output_tokens is None
    assert record.prompt_tokens is None
    assert record.chunk_tokens is None


@pytest.mark.parametrize("size", [1, 3, 7])
def test_a_stream_cut_anywhere_reads_the_same(size: int) -> None:
    body = b"".join(
        [
            ROLE_EVENT,
            sse_event({"content": "é😀"}),
            sse_event({"content": "b"}, finish="length"),
            USAGE_EVENT,
            DONE_EVENT,
        ]
    )
    pieces = [http_chunk(body[i : i + size]) for i in range(0, len(body), size)]
    stream = b"".join(pieces)
    packets = [stream[i : i + 40] for i in range(0, len(stream), 40)]
    record = ask_wire(answering(STREAM_HEAD, *packets, LAST_CHUNK))
    assert (record.outcome, record.chunk_kinds, record.output_tokens) == (Outcome.OK, "cc", 2)


@pytest.mark.parametrize("line_end", ["\r\n", "\n", "\r"])
def test_line_ends_comments_and_missing_spaces_are_understood(line_end: str) -> None:
    body = b": ping\n\n" + b"".join(ANSWER_EVENTS).replace(b"data: ", b"data:")
    record = ask_wire(streaming(body.replace(b"\n", line_end.encode())))
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
        got = await read_http_request(reader)
        writer.write(
            STREAM_HEAD + http_chunk(sse_event({"content": str(len(got))}, finish="stop")) + LAST_CHUNK
        )
        await writer.drain()

    record = ask_wire(handle, body=b"x" * 1_000_000)
    assert record.outcome is Outcome.OK
    assert record.sent_s is not None
    assert record.headers_s is not None
    assert record.sent_s < record.headers_s


def test_sent_is_the_moment_when_the_kernel_has_the_request() -> None:
    """Not the end of the loop's turn: here that turn has half a second of something else to do."""

    async def run() -> RequestRecord:
        async with (
            wire_server(streaming(*ANSWER_EVENTS)) as url,
            open_session(headers={}, tls=None) as session,
        ):
            await stream_chat(session, stream_request(url))
            asked = asyncio.create_task(stream_chat(session, stream_request(url)))
            await asyncio.sleep(0)
            asyncio.get_running_loop().call_soon(time.sleep, 0.5)
            return (await asked)[0]

    record = asyncio.run(run())
    assert record.sent_s is not None
    assert record.sent_s < 0.1


def test_many_events_in_one_packet_share_its_time() -> None:
    record = ask_wire(streaming(b"".join(ANSWER_EVENTS)))
    assert len(record.chunk_s) == 2
    assert record.chunk_s[0] == record.chunk_s[1]


def test_an_answer_longer_than_the_buffers_is_whole() -> None:
    record = ask_wire(streaming(sse_event({"content": "z" * 2_000_000}, finish="stop"), DONE_EVENT))
    assert (record.outcome, len(record.chunk_s)) == (Outcome.OK, 1)


def test_gzip_is_decoded() -> None:
    head = STREAM_HEAD.replace(b"Transfer", b"Content-Encoding: gzip\r\nTransfer")
    record = ask_wire(answering(head, http_chunk(gzip.compress(b"".join(ANSWER_EVENTS))), LAST_CHUNK))
    assert (record.outcome, record.chunk_kinds) == (Outcome.OK, "cc")


def test_http_1_0_without_chunking_ends_with_the_connection() -> None:
    head = b"HTTP/1.0 200 OK\r\nContent-Type: text/event-stream\r\n\r\n"
    record = ask_wire(answering(head, *ANSWER_EVENTS))
    assert (record.outcome, record.chunk_kinds) == (Outcome.OK, "cc")


def test_the_request_id_is_sent() -> None:
    seen: list[bytes] = []

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.append(await read_http_request(reader))
        writer.write(STREAM_HEAD + b"".join(http_chunk(data) for data in ANSWER_EVENTS) + LAST_CHUNK)
        writer.close()

    ask_wire(handle)
    assert b"X-Request-Id: r-1" in seen[0]


def test_more_than_a_hundred_streams_run_at_once() -> None:
    async def run() -> list[float]:
        async with (
            wire_server(
                answering(STREAM_HEAD, 0.5, *(http_chunk(d) for d in ANSWER_EVENTS), LAST_CHUNK)
            ) as url,
            open_session(headers={}, tls=None) as session,
        ):
            began = time.perf_counter()
            answers = await asyncio.gather(*(stream_chat(session, stream_request(url)) for _ in range(150)))
            assert all(record.outcome is Outcome.OK for record, *_ in answers)
            assert time.perf_counter() - began < 3
            return [record.chunk_s[0] for record, *_ in answers]

    assert max(asyncio.run(run())) < 2.5


def test_times_are_right_on_a_connection_that_is_used_again() -> None:
    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await read_http_request(reader)
                for data in (STREAM_HEAD, http_chunk(ROLE_EVENT)):
                    writer.write(data)
                await asyncio.sleep(0.1)
                writer.write(b"".join(http_chunk(data) for data in ANSWER_EVENTS[1:]) + LAST_CHUNK)

    async def run() -> list[RequestRecord]:
        async with wire_server(handle) as url, open_session(headers={}, tls=None) as session:
            return [(await stream_chat(session, stream_request(url)))[0] for _ in range(3)]

    for record in asyncio.run(run()):
        assert record.outcome is Outcome.OK
        assert 0.09 < record.chunk_s[0] - (record.sent_s or 0) < 0.3
