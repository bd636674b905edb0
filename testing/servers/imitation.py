"""Imitates what OpenAI-compatible servers other than vLLM say of themselves, over a real socket in this
process.

Knows no test.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from aiohttp import web

ImitatedAnswer = tuple[int, object]
"""Status and body: a text, bytes, or a JSON value."""


@dataclass
class Imitation:
    """What the imitated server answers."""

    models: object = field(default_factory=lambda: [{"id": "m", "object": "model", "owned_by": "imitation"}])
    """Entries of /v1/models, or the ImitatedAnswer to it."""
    refusal: Callable[[dict[str, Any]], ImitatedAnswer | None] = lambda _: None
    """Returns the refusal of a chat request with this body; None if it is answered."""
    pages: dict[str, object] = field(default_factory=dict)
    """JSON values of further paths."""
    metrics: Callable[[web.Request], Awaitable[web.StreamResponse]] | None = None
    """Answers /metrics; None: there is no such page."""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    """Bodies of the chat requests so far."""

    async def chat(self, http: web.Request) -> web.StreamResponse:
        body = await http.json()
        self.bodies.append(body)
        refused = self.refusal(body)
        if refused is not None:
            return respond(refused)
        words = sum(len(str(message["content"]).split()) for message in body["messages"])
        tokens = min(body["max_tokens"], 8)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(http)
        for number in range(tokens):
            finish = "length" if number == tokens - 1 else None
            choice = {"index": 0, "delta": {"content": " w"}, "finish_reason": finish}
            await response.write(b"data: %b\n\n" % json.dumps({"choices": [choice]}).encode())
        usage = {"prompt_tokens": words + 5, "completion_tokens": tokens, "total_tokens": words + 5 + tokens}
        await response.write(b"data: %b\n\n" % json.dumps({"choices": [], "usage": usage}).encode())
        await response.write(b"data: [DONE]\n\n")
        return response

    async def list_models(self, _: web.Request) -> web.StreamResponse:
        if isinstance(self.models, tuple):
            return respond(self.models)
        return respond((200, {"object": "list", "data": self.models}))


def respond(answer: ImitatedAnswer) -> web.Response:
    status, body = answer
    if isinstance(body, str | bytes):
        return web.Response(status=status, body=body)
    return web.json_response(body, status=status)


@contextlib.asynccontextmanager
async def imitated_server(imitation: Imitation) -> AsyncIterator[str]:
    """Serves on a free port of 127.0.0.1 and yields the address without /v1."""
    app = web.Application()
    app.router.add_post("/v1/chat/completions", imitation.chat)
    app.router.add_get("/v1/models", imitation.list_models)
    if imitation.metrics is not None:
        app.router.add_get("/metrics", imitation.metrics)
    for path, page in imitation.pages.items():
        app.router.add_get(path, _page(page))
    runner = web.AppRunner(app, handler_cancellation=True)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@contextlib.contextmanager
def serve_in_thread(imitation: Imitation) -> Iterator[str]:
    """Serves like `imitated_server`, on a thread of its own, for a client in another process."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    server = imitated_server(imitation)
    try:
        yield asyncio.run_coroutine_threadsafe(server.__aenter__(), loop).result(10)
        asyncio.run_coroutine_threadsafe(server.__aexit__(None, None, None), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def _page(value: object) -> Callable[[web.Request], Awaitable[web.StreamResponse]]:
    async def answer(_: web.Request) -> web.StreamResponse:
        return respond((200, value))

    return answer
