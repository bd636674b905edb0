"""A server with exactly known timings, to measure the errors of load generators.

It has enough of the OpenAI API for any streaming client. The first token comes `--ttft-s` after the request,
the others `--gap-s` apart. Each event is a packet of its own, written at its deadline. The role chunk comes
right before the first token, as from vLLM. GET /log returns the true times. GET /tokens returns the number of
tokens written so far, the number of answers under way, and the server's CPU time in seconds.

    python -m testing.servers.scripted --port 0 --ttft-s 0.2 --gap-s 0.02
"""

import argparse
import asyncio
import json
import os
import sys
import time
from typing import Any, cast

import uvloop

SCRIPTED_MODEL = "scripted"
TOKENS = 100
"""Tokens of an answer to a request without max_tokens."""


def _chunk(event: dict[str, Any]) -> bytes:
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def _event(delta: dict[str, str], finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": delta, "finish_reason": finish_reason}
    return _chunk({"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0,
                   "model": SCRIPTED_MODEL, "choices": [choice]})  # fmt: skip


HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)
ROLE = _event({"role": "assistant", "content": ""})
TOKEN = _event({"content": " token"})
LAST = _event({"content": " token"}, "length")
OVERLOADED = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 0\r\n\r\n"


class Script:
    """The timing of every answer, and a log of what was sent when (time.time).

    `tokens`: tokens sent so far. `open`: answers under way.
    """

    def __init__(self, *, ttft_s: float, gap_s: float, max_open: int | None = None) -> None:
        self.ttft_s = ttft_s
        self.gap_s = gap_s
        self.max_open = max_open
        """Answers under way at which further requests get a 503. None: no limit."""
        self.tokens = 0
        self.open = 0
        self.log: list[dict[str, Any]] = []


class Connection(asyncio.Protocol):
    """A connection of one client: one request at a time, with keep-alive."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._transport: asyncio.Transport
        self._socket = -1

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass
        self._socket = transport.get_extra_info("socket").fileno()

    def send(self, data: bytes) -> None:
        """Writes the bytes to the socket at once.

        uvloop would write them at the end of the loop's turn, later than the time in the log.
        """
        if not self._transport.get_write_buffer_size():
            try:
                data = data[os.write(self._socket, data) :]
            except BlockingIOError:
                pass
            except OSError:  # the client has gone
                self._transport.abort()
                return
        if data:
            self._transport.write(data)

    def is_closing(self) -> bool:
        return self._transport.is_closing()

    def data_received(self, data: bytes) -> None:
        self._received += data
        head, separator, body = self._received.partition(b"\r\n\r\n")
        if not separator:
            return
        headers = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
        length = int(headers.get(b"content-length", b"0"))
        if len(body) < length:
            return
        self._received = body[length:]
        path = head.split(b" ", 2)[1].decode()
        if path.endswith("/chat/completions"):
            request_id = headers.get(b"x-request-id", b"").strip().decode()
            self._answer(json.loads(body[:length]), request_id)
        else:
            self._page(path)

    def _page(self, path: str) -> None:
        known: dict[str, Any] = {
            "/v1/models": {
                "object": "list",
                "data": [{"id": SCRIPTED_MODEL, "object": "model", "owned_by": "scripted"}],
            },
            "/health": {},
            "/tokens": {
                "tokens": self._script.tokens,
                "open": self._script.open,
                "cpu_s": time.process_time(),
            },
            "/log": self._script.log,
        }
        status = b"200 OK" if path in known else b"404 Not Found"
        body = json.dumps(known.get(path, {"error": "not found"})).encode()
        self.send(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(body), body)
        )

    def _answer(self, request: dict[str, Any], request_id: str) -> None:
        words = sum(_words(message["content"]) for message in request["messages"])
        tokens = request.get("max_tokens") or request.get("max_completion_tokens") or TOKENS
        script = self._script
        if script.max_open is not None and script.open >= script.max_open:
            # Refuses as late as a gateway that first queues the request for as long as an answer takes.
            self._loop.call_later(script.ttft_s + tokens * script.gap_s, self.send, OVERLOADED)
            return
        stream = _Stream(self, script, words=words, tokens=tokens, request_id=request_id)
        self.send(HEAD)
        self._loop.call_at(stream.due, stream.begin)


def _words(content: str | list[dict[str, Any]]) -> int:
    if isinstance(content, str):
        return len(content.split())
    return sum(_words(part.get("text", "")) for part in content)


class _Stream:
    def __init__(
        self, connection: Connection, script: Script, *, words: int, tokens: int, request_id: str
    ) -> None:
        self._connection = connection
        self._script = script
        self._loop = asyncio.get_running_loop()
        self._words = words
        self._tokens = tokens
        self._sent: list[float] = []
        self.due = self._loop.time() + script.ttft_s
        script.open += 1
        script.log.append({"request_id": request_id, "received": time.time(), "sent": self._sent})

    def begin(self) -> None:
        if not self._connection.is_closing():
            self._connection.send(ROLE)
        self.write()

    def write(self) -> None:
        if self._connection.is_closing():
            self._script.open -= 1
            return
        sent = self._sent
        sent.append(time.time())
        self._script.tokens += 1
        if len(sent) == self._tokens:
            self._finish()
            return
        self._connection.send(TOKEN)
        self.due += self._script.gap_s
        self._loop.call_at(self.due, self.write)

    def _finish(self) -> None:
        self._connection.send(LAST)
        usage = {"prompt_tokens": self._words, "completion_tokens": self._tokens,
                 "total_tokens": self._words + self._tokens}  # fmt: skip
        end = {"id": "chatcmpl-scripted", "object": "chat.completion.chunk", "created": 0,
               "model": SCRIPTED_MODEL, "choices": [], "usage": usage}  # fmt: skip
        self._connection.send(_chunk(end) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")
        self._script.open -= 1


async def _serve(script: Script, port: int) -> None:
    """Serves until cancelled. Prints the address first."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(script), "127.0.0.1", port)
    sys.stdout.write(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--ttft-s", type=float, default=0.2)
    parser.add_argument("--gap-s", type=float, default=0.02)
    parser.add_argument("--max-open", type=int, help="answers under way beyond which a request gets a 503")
    options = parser.parse_args()
    script = Script(ttft_s=options.ttft_s, gap_s=options.gap_s, max_open=options.max_open)
    uvloop.run(_serve(script, options.port))


if __name__ == "__main__":
    main()
