"""Which connection a request takes, and what comes of one that ends at a bad time, against real sockets."""

import asyncio
import contextlib
import resource
import socket
from collections.abc import Iterator

import pytest

from loadtest.client.stream import REUSE_RACE_S, stream_chat
from loadtest.client.transport import KEEP_ALIVE_S, open_session
from loadtest.record import Outcome, RequestRecord
from testing.servers.wire import (
    ANSWER_EVENTS,
    LAST_CHUNK,
    STREAM_HEAD,
    WireHandler,
    ask_wire,
    http_chunk,
    read_http_request,
    reset_connection,
    stream_request,
    wire_server,
)

ANSWER = STREAM_HEAD + b"".join(http_chunk(data) for data in ANSWER_EVENTS) + LAST_CHUNK


class Requests:
    """Counts the connections and the requests that a server has read."""

    def __init__(self) -> None:
        self.connections = 0
        self.read = 0
        self.heads: list[bytes] = []


def serving(seen: Requests, *, answers: int, then: WireHandler | None = None) -> WireHandler:
    """Builds a handler that gives `answers` on each connection, and then closes it or leaves it to `then`."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        seen.connections += 1
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            for _ in range(answers):
                seen.heads.append(await read_http_request(reader))
                seen.read += 1
                writer.write(ANSWER)
                await writer.drain()
            await asyncio.sleep(0.001)  # the next request is under way
            if then is not None:
                await then(reader, writer)
        writer.close()

    return handle


def ask_in_turn(handler: WireHandler, times: int, *, pause_s: float = 0) -> list[RequestRecord]:
    async def run() -> list[RequestRecord]:
        records = []
        async with wire_server(handler) as url, open_session(headers={}, tls=None) as session:
            for _ in range(times):
                records.append((await stream_chat(session, stream_request(url)))[0])
                await asyncio.sleep(pause_s)
        return records

    return asyncio.run(run())


def test_a_server_that_closes_after_each_answer_without_saying_so_costs_no_request() -> None:
    seen = Requests()
    records = ask_in_turn(serving(seen, answers=1), 100)
    assert {record.outcome for record in records} == {Outcome.OK}
    assert seen.read == seen.connections == 100  # no request was served twice
    assert sum(record.replaced_connections for record in records) > 0
    assert max(record.replaced_connections for record in records) == 1


def test_many_users_of_such_a_server_lose_no_request_either() -> None:
    async def run() -> list[RequestRecord]:
        async with (
            wire_server(serving(Requests(), answers=1)) as url,
            open_session(headers={}, tls=None) as session,
        ):

            async def user() -> list[RequestRecord]:
                return [(await stream_chat(session, stream_request(url)))[0] for _ in range(20)]

            return [record for user in await asyncio.gather(*(user() for _ in range(8))) for record in user]

    records = asyncio.run(run())
    assert [record.error for record in records if record.outcome is not Outcome.OK] == []
    assert len(records) == 160


def test_a_connection_replaced_on_the_way_is_no_part_of_the_time_to_first_token() -> None:
    replaced = [
        record for record in ask_in_turn(serving(Requests(), answers=1), 50) if record.replaced_connections
    ]
    assert replaced
    for record in replaced:
        assert record.sent_s is not None
        assert 0 < record.sent_s <= record.chunk_s[0]


def test_a_request_that_the_server_may_have_begun_is_not_sent_again() -> None:
    seen = Requests()

    async def die_later(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_http_request(reader)
        seen.read += 1
        await asyncio.sleep(REUSE_RACE_S + 0.3)

    first, second = ask_in_turn(serving(seen, answers=1, then=die_later), 2)
    assert first.outcome is Outcome.OK
    assert (second.outcome, second.replaced_connections) == (Outcome.DISCONNECTED, 0)
    assert (seen.read, seen.connections) == (2, 1)


def test_a_reused_connection_that_dies_after_a_byte_of_the_answer_is_not_replaced() -> None:
    seen = Requests()

    async def half_a_head(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_http_request(reader)
        writer.write(b"HTTP/1.1 20")
        await writer.drain()

    _, second = ask_in_turn(serving(seen, answers=1, then=half_a_head), 2)
    assert (second.outcome, second.replaced_connections) == (Outcome.DISCONNECTED, 0)
    assert seen.connections == 1


def test_a_new_connection_that_dies_is_not_replaced() -> None:
    seen = Requests()
    (record,) = ask_in_turn(serving(seen, answers=0, then=reset_connection), 1)
    assert (record.outcome, record.replaced_connections) == (Outcome.DISCONNECTED, 0)
    assert seen.connections == 1


def test_a_connection_is_replaced_once_only() -> None:
    answered = Requests()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        first = not answered.connections
        await serving(answered, answers=int(first), then=reset_connection)(reader, writer)

    first, second = ask_in_turn(handle, 2)
    assert first.outcome is Outcome.OK
    assert (second.outcome, second.replaced_connections) == (Outcome.DISCONNECTED, 1)
    assert answered.connections == 2


def test_a_connection_is_used_again_at_once_but_not_after_the_keep_alive_time() -> None:
    seen = Requests()
    ask_in_turn(serving(seen, answers=100), 5)
    assert (seen.read, seen.connections) == (5, 1)
    seen = Requests()
    ask_in_turn(serving(seen, answers=100), 2, pause_s=KEEP_ALIVE_S + 0.2)
    assert (seen.read, seen.connections) == (2, 2)
    assert KEEP_ALIVE_S < 2  # gunicorn's default, the shortest known


def test_answers_are_asked_for_uncompressed() -> None:
    seen = Requests()
    ask_in_turn(serving(seen, answers=1), 1)
    assert b"accept-encoding: identity" in seen.heads[0].lower()


def test_without_file_descriptors_a_request_is_not_sent() -> None:
    async def run() -> RequestRecord:
        async with (
            wire_server(serving(Requests(), answers=1)) as url,
            open_session(headers={}, tls=None) as session,
        ):
            with socket.socket() as last:
                most = last.fileno()
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
            spare = []
            try:
                with contextlib.suppress(OSError):
                    while True:
                        spare.append(socket.socket())
                return (await stream_chat(session, stream_request(url)))[0]
            finally:
                for each in spare:
                    each.close()
                resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    record = asyncio.run(run())
    assert (record.outcome, record.sent_s) == (Outcome.NOT_SENT, None)
    assert "Too many open files" in (record.error or "")


@contextlib.contextmanager
def full_backlog() -> Iterator[str]:
    """Runs a server that accepts nobody. Linux drops what asks for a connection while the backlog is full."""
    with socket.socket() as listener, contextlib.ExitStack() as waiting:
        listener.bind(("127.0.0.1", 0))
        listener.listen(0)
        port = listener.getsockname()[1]
        for _ in range(3):
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            with contextlib.suppress(BlockingIOError):
                one.connect(("127.0.0.1", port))
        yield f"http://127.0.0.1:{port}/v1/chat/completions"


@pytest.mark.parametrize(("time_limit_s", "connect_limit_s"), [(0.5, 10.0), (20.0, 0.5)])
def test_a_server_that_accepts_nobody_is_a_connect_error(
    monkeypatch: pytest.MonkeyPatch, time_limit_s: float, connect_limit_s: float
) -> None:
    monkeypatch.setattr("loadtest.client.transport.CONNECT_LIMIT_S", connect_limit_s)

    async def run(url: str) -> RequestRecord:
        async with open_session(headers={}, tls=None) as session:
            return (await stream_chat(session, stream_request(url, timeout_s=time_limit_s)))[0]

    with full_backlog() as url:
        record = asyncio.run(run(url))
    assert (record.outcome, record.sent_s) == (Outcome.CONNECT_ERROR, None)
    assert record.error == "no connection after 0.5 s"


def test_an_end_that_speaks_http_2_only_is_named() -> None:
    frames = b"\0\0\0\4\0\0\0\0\0" + b"\0\0\x08\7\0\0\0\0\0" + b"\0" * 7 + b"\1"

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_http_request(reader)
        writer.write(frames)
        await writer.drain()

    record = ask_wire(handle)
    assert record.outcome is Outcome.DISCONNECTED
    assert "HTTP/2" in (record.error or "")
