"""A server whose timings are known exactly: the judge of load generators, not a model of one.

Speaks enough of the OpenAI API for any streaming client: the first token comes `--ttft-s` after the request,
the others `--gap-s` apart, each event a packet of its own, written at its deadline. GET /log gives the true
times, GET /tokens the number of tokens written so far.

    python -m benchmarks.scripted_server --port 0 --ttft-s 0.2 --gap-s 0.02
"""

import argparse
import asyncio
import json
import sys
import time
from typing import Any, cast

import uvloop

MODEL = "scripted"
HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"
)


class Script:
    """What every answer is like, and what was really sent when (time.time)."""

    def __init__(self, *, ttft_s: float, gap_s: float) -> None:
        self.ttft_s = ttft_s
        self.gap_s = gap_s
        self.tokens = 0
        self.log: list[dict[str, Any]] = []


class Connection(asyncio.Protocol):
    """One client: a request at a time, keep-alive."""

    def __init__(self, script: Script) -> None:
        self._script = script
        self._loop = asyncio.get_running_loop()
        self._received = b""
        self._transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is not a subclass

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
                "data": [{"id": MODEL, "object": "model", "owned_by": "scripted"}],
            },
            "/tokens": {"tokens": self._script.tokens},
            "/log": self._script.log,
        }
        status = b"200 OK" if path in known else b"404 Not Found"
        body = json.dumps(known.get(path, {"error": "not found"})).encode()
        self._transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%s"
            % (status, len(body), body)
        )

    def _answer(self, request: dict[str, Any], request_id: str) -> None:
        words = sum(len(message["content"].split()) for message in request["messages"])
        stream = _Stream(
            self._transport, self._script, words=words, tokens=request["max_tokens"], request_id=request_id
        )
        self._transport.write(
            HEAD + _chunk({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
        )
        self._loop.call_at(stream.due, stream.write)


class _Stream:
    def __init__(
        self, transport: asyncio.Transport, script: Script, *, words: int, tokens: int, request_id: str
    ) -> None:
        self._transport = transport
        self._script = script
        self._loop = asyncio.get_running_loop()
        self._words = words
        self._tokens = tokens
        self._sent = 0
        self.due = self._loop.time() + script.ttft_s
        self._times: list[float] = []
        script.log.append({"request_id": request_id, "received": time.time(), "sent": self._times})

    def write(self) -> None:
        if self._transport.is_closing():
            return
        self._sent += 1
        last = self._sent == self._tokens
        choice = {"index": 0, "delta": {"content": " token"}, "finish_reason": "length" if last else None}
        self._times.append(time.time())
        self._transport.write(_chunk({"id": "chatcmpl-scripted", "model": MODEL, "choices": [choice]}))
        self._script.tokens += 1
        if last:
            self._finish()
            return
        self.due += self._script.gap_s
        self._loop.call_at(self.due, self.write)

    def _finish(self) -> None:
        usage = {"prompt_tokens": self._words, "completion_tokens": self._tokens}
        self._transport.write(_chunk({"choices": [], "usage": usage}) + b"e\r\ndata: [DONE]\n\n\r\n0\r\n\r\n")


def _chunk(event: dict[str, Any]) -> bytes:
    data = b"data: " + json.dumps(event).encode() + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


async def serve(script: Script, port: int) -> None:
    """Serves until cancelled; says where on standard output."""
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
    options = parser.parse_args()
    uvloop.run(serve(Script(ttft_s=options.ttft_s, gap_s=options.gap_s), options.port))


if __name__ == "__main__":
    main()
