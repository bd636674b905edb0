"""Servers that send given bytes, one answer per connection, and requests to them with our client."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from loadtest.client.stream import StreamRequest, stream_chat
from loadtest.client.transport import open_session
from loadtest.record import RequestRecord

WireHandler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
DONE_EVENT = b"data: [DONE]\n\n"


def http_chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


LAST_CHUNK = http_chunk(b"")


def sse_event(delta: dict[str, Any] | None = None, *, finish: str | None = None, **extra: Any) -> bytes:
    choices = [] if delta is None else [{"index": 0, "delta": delta, "finish_reason": finish}]
    return b"data: " + json.dumps({"choices": choices, **extra}).encode() + b"\n\n"


ROLE_EVENT = sse_event({"role": "assistant", "content": ""})
USAGE_EVENT = sse_event(usage={"prompt_tokens": 7, "completion_tokens": 2})
ANSWER_EVENTS = [
    ROLE_EVENT,
    sse_event({"content": "a"}),
    sse_event({"content": "b"}, finish="length"),
    USAGE_EVENT,
    DONE_EVENT,
]


async def read_http_request(reader: asyncio.StreamReader) -> bytes:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")
    )
    return head + await reader.readexactly(length)


def answering(*pieces: bytes | float, close: bool = True) -> WireHandler:
    """Builds a handler that sends each piece as a packet of its own. A number is a pause in seconds."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await read_http_request(reader)
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


def streaming(*events: bytes) -> WireHandler:
    return answering(STREAM_HEAD, *(http_chunk(data) for data in events), LAST_CHUNK)


def stream_request(url: str, **changes: Any) -> StreamRequest:
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
async def wire_server(handler: WireHandler) -> AsyncIterator[str]:
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


def ask_wire(handler: WireHandler, **changes: Any) -> RequestRecord:
    async def run() -> RequestRecord:
        async with wire_server(handler) as url, open_session(headers={}, tls=None) as session:
            record, _, cancelled, _ = await stream_chat(session, stream_request(url, **changes))
            assert cancelled is None
            return record

    return asyncio.run(run())


async def reset_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Handles a request by resetting the connection (RST, not FIN)."""
    await read_http_request(reader)
    writer.transport.abort()
