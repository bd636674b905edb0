"""A gateway in front of any server, over real sockets, that misbehaves as its rules say.

Answers stream through. Several servers take turns, request by request. A POST of a JSON object to /gateway
changes rules while it runs, and `upstreams`, the addresses of the servers.

    python -m testing.servers.gateway http://127.0.0.1:8000 --shed-from 7 --retry-after 2
"""

import argparse
import asyncio
import contextlib
import itertools
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from typing import Any

import aiohttp
import uvloop
from aiohttp import web

from testing.servers.gateway_rules import (
    Policy,
    Refusal,
    Rules,
    Unfinished,
    add_rule_flags,
    refusal_body,
    rules_from,
)

FORWARDED_HEADERS = ("Content-Type", "X-Request-Id", "Authorization", "Accept-Encoding")
MAX_BODY_BYTES = 2**26
DONE = b"data: [DONE]"
LOGIN_PAGE = "<!doctype html><title>Sign in</title><h1>Sign in to continue</h1>"


class Gateway:
    """Forwards requests to the servers at `upstreams`. Call `start` first."""

    def __init__(self, upstreams: list[str], rules: Rules) -> None:
        self._turn = itertools.cycle(upstreams)
        self.policy = Policy(rules)
        self._working = asyncio.Semaphore(rules.delay_slots or 2**31)
        self._session: aiohttp.ClientSession
        self._runner: web.AppRunner
        self._port = 0
        self._absence: asyncio.TimerHandle | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    @property
    def rules(self) -> Rules:
        return self.policy.rules

    async def start(self, port: int) -> str:
        """Listens on 127.0.0.1 and returns the address."""
        version = aiohttp.HttpVersion10 if self.rules.http10 else aiohttp.HttpVersion11
        connector = aiohttp.TCPConnector(limit=0, force_close=self.rules.http10)
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=5)
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=timeout, version=version, auto_decompress=False
        )
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_post("/gateway", self._change_rules)
        app.router.add_get("/login", self._login)
        app.router.add_route("*", "/{path:.*}", self._handle)
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=0.1,
            handler_cancellation=True,
            keepalive_timeout=self.rules.keep_alive_s,
        )
        await self._runner.setup()
        self._port = port
        await self._listen()
        self._port = self._runner.addresses[0][1]
        return f"http://127.0.0.1:{self._port}"

    async def _listen(self) -> None:
        await web.TCPSite(self._runner, "127.0.0.1", self._port, backlog=4096).start()

    async def stop(self) -> None:
        await self._runner.cleanup()
        await self._session.close()

    async def _change_rules(self, http: web.Request) -> web.Response:
        changes = await http.json()
        if upstreams := changes.pop("upstreams", None):
            self._turn = itertools.cycle(upstreams)
        self.policy.rules = replace(self.rules, **changes)
        if "away_s" in changes:
            self._absence = None
            self._plan_absence()
        return web.Response()

    async def _login(self, _: web.Request) -> web.Response:
        return web.Response(text=LOGIN_PAGE, content_type="text/html")

    # --- Absence

    def _plan_absence(self) -> None:
        if self.rules.away_s and self._absence is None:
            loop = asyncio.get_running_loop()
            self._absence = loop.call_later(self.rules.away_in_s, self._begin_absence)

    def _begin_absence(self) -> None:
        task = asyncio.ensure_future(self._be_away())
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _be_away(self) -> None:
        """Stops listening, resets all connections, and listens again after a while."""
        for site in list(self._runner.sites):
            await site.stop()
        assert self._runner.server is not None
        for connection in list(self._runner.server.connections):
            if connection.transport is not None:
                connection.transport.abort()
        await asyncio.sleep(self.rules.away_s)
        await self._listen()

    # --- Requests

    async def _handle(self, http: web.Request) -> web.StreamResponse:
        if not http.path.endswith("/chat/completions"):
            return await self._page(http)
        self._plan_absence()
        with self.policy.counted() as unfinished:
            return await self._chat(http, unfinished)

    async def _page(self, http: web.Request) -> web.StreamResponse:
        rules = self.rules
        pages: dict[str, Any] = json.loads(rules.pages)
        if http.path in pages:
            page = pages[http.path]
            return _told(page)
        if http.path.endswith("/metrics") and rules.no_metrics:
            return web.Response(status=404)
        try:
            async with self._forward(http, await http.read()) as answer:
                body = await answer.read()
        except aiohttp.ClientError as error:
            return _refused(Refusal(502, f"Bad gateway: {type(error).__name__}"), None)
        if http.path.endswith("/models") and rules.model_name:
            listed = json.loads(body)
            listed["data"] = [{**listed["data"][0], "id": rules.model_name, "root": rules.model_name}]
            body = json.dumps(listed).encode()
        kind = answer.headers.get("Content-Type", "text/plain")
        if http.path.endswith("/metrics"):
            body = rules.metrics_head.encode() + body
            kind = rules.metrics_type or kind
        return web.Response(status=answer.status, body=body, headers={"Content-Type": kind})

    @contextlib.asynccontextmanager
    async def _forward(self, http: web.Request, body: bytes) -> AsyncIterator[aiohttp.ClientResponse]:
        headers = {name: http.headers[name] for name in FORWARDED_HEADERS if name in http.headers}
        url = next(self._turn) + http.path_qs
        async with self._session.request(http.method, url, data=body, headers=headers) as answer:
            yield answer

    async def _chat(self, http: web.Request, unfinished: Unfinished) -> web.StreamResponse:
        raw = await http.read()
        rules = self.rules
        if rules.login:
            raise web.HTTPFound("/login")
        if self.policy.drawn(rules.reset_share):
            return _broken(http)
        chat: dict[str, Any] = json.loads(raw)
        if refusal := self.policy.refusal(chat):
            return _refused(refusal, rules.retry_after)
        await self._delay()
        if rules.any_model or (rules.model_name and chat.get("model") == rules.model_name):
            chat.pop("model", None)
            raw = json.dumps(chat).encode()
        return await self._forward_chat(http, raw, unfinished)

    async def _delay(self) -> None:
        cold_s = self.policy.cold_s()
        if cold_s:
            await asyncio.sleep(cold_s)
        if self.rules.delay_s:
            async with self._working:
                await asyncio.sleep(self.rules.delay_s)

    async def _forward_chat(
        self, http: web.Request, raw: bytes, unfinished: Unfinished
    ) -> web.StreamResponse:
        for left in reversed(range(1 + self.rules.retries)):
            response: web.StreamResponse | None = None
            try:
                async with self._forward(http, raw) as answer:
                    if answer.status >= 500 and left:
                        continue
                    response = _response_like(answer)
                    return await self._stream(http, answer, response, unfinished)
            except aiohttp.ClientError as error:
                if response is not None and response.prepared:
                    return _broken(http, response=response)
                if not left:
                    return _refused(Refusal(502, f"Bad gateway: {type(error).__name__}"), None)
        raise AssertionError("no attempt")

    async def _stream(
        self,
        http: web.Request,
        answer: aiohttp.ClientResponse,
        response: web.StreamResponse,
        unfinished: Unfinished,
    ) -> web.StreamResponse:
        """Copies an answer to the client, changed or broken as the rules say."""
        rules = self.rules
        if rules.close_after:
            response.headers["Connection"] = "keep-alive"
            response.headers["Keep-Alive"] = "timeout=5"
        await response.prepare(http)
        malformed = self.policy.drawn(rules.malformed_share)
        edit = _editor(rules, self.policy) if answer.status == 200 else bytes
        try:
            async with asyncio.timeout(rules.cut_after_s):
                async for piece in _gathered(_pieces(answer, rules.idle_s), rules.gather_bytes):
                    if DONE in piece:  # the client may send its next chat as soon as it reads this
                        unfinished.end()
                    await response.write(edit(piece))
                    if malformed and b'"content"' in piece:
                        return _broken(http, b"no length\r\n\r\n", response=response, close=False)
        except TimeoutError:
            return _broken(http, response=response)
        if rules.hang_s:
            await asyncio.sleep(rules.hang_s)
        await response.write_eof()
        if rules.close_after and http.transport is not None:
            http.transport.close()
        return response


def _told(page: Any) -> web.Response:
    """Returns a page of the rule `pages`: JSON, or plain text if it is a text."""
    if page is None:
        return web.Response(status=404)
    return web.Response(text=page) if isinstance(page, str) else web.json_response(page)


def _response_like(answer: aiohttp.ClientResponse) -> web.StreamResponse:
    kind = answer.headers.get("Content-Type", "text/plain")
    response = web.StreamResponse(status=answer.status, headers={"Content-Type": kind})
    if "Content-Length" not in answer.headers:
        response.enable_chunked_encoding()
    return response


async def _pieces(answer: aiohttp.ClientResponse, idle_s: float | None) -> AsyncIterator[bytes]:
    """Yields whole events of a stream. Raises TimeoutError if nothing comes for `idle_s` seconds."""
    held = b""
    while True:
        async with asyncio.timeout(idle_s):
            data = await answer.content.readany()
        if not data:
            break
        events, separator, held = (held + data).rpartition(b"\n\n")
        if separator:
            yield events + separator
    if held:
        yield held


async def _gathered(pieces: AsyncIterator[bytes], least: int | None) -> AsyncIterator[bytes]:
    """Yields the pieces joined until they have at least so many bytes; the last may have fewer."""
    held = b""
    async for piece in pieces:
        held += piece
        if len(held) >= (least or 1):
            yield held
            held = b""
    if held:
        yield held


def _editor(rules: Rules, policy: Policy) -> Callable[[bytes], bytes]:
    """Returns what one answer's pieces are changed with."""
    empty, aborted = policy.drawn(rules.empty_share), policy.drawn(rules.abort_share)
    if not (empty or aborted or rules.no_usage or rules.model_name):
        return lambda piece: piece

    def edit(piece: bytes) -> bytes:
        kept = []
        for event in piece.split(b"\n\n")[:-1]:
            if event.startswith(DONE) or not event.startswith(b"data: "):
                kept.append(event)
                continue
            chunk = json.loads(event.removeprefix(b"data: "))
            if rules.no_usage and chunk.pop("usage", None) and not chunk["choices"]:
                continue
            for choice in chunk["choices"]:
                if empty:
                    choice["delta"] = {name: "" for name in choice["delta"] if name == "content"}
                if aborted and choice.get("finish_reason"):
                    choice["finish_reason"] = "abort"
            if rules.model_name:
                chunk["model"] = rules.model_name
            kept.append(b"data: " + json.dumps(chunk).encode())
        return b"".join(event + b"\n\n" for event in kept)

    return edit


def _refused(refusal: Refusal, retry_after: str | None) -> web.Response:
    headers = {"Retry-After": retry_after} if retry_after and refusal.status in (429, 503) else None
    return web.Response(
        status=refusal.status, body=refusal_body(refusal), content_type="application/json", headers=headers
    )


def _broken(
    http: web.Request, data: bytes = b"", *, response: web.StreamResponse | None = None, close: bool = True
) -> web.StreamResponse:
    """Writes raw bytes to the client and closes the connection, without bytes as a reset."""
    transport = http.transport
    if transport is not None:
        if data:
            transport.write(data)
        if close:
            (transport.close if data else transport.abort)()
    return response or web.Response()


async def _serve(gateway: Gateway, port: int) -> None:
    """Serves until cancelled. Prints the address first."""
    url = await gateway.start(port)
    sys.stdout.write(f"{url}\n")
    sys.stdout.flush()
    try:
        await asyncio.Event().wait()
    finally:
        await gateway.stop()


async def _run(upstreams: list[str], rules: Rules, port: int) -> None:
    await _serve(Gateway(upstreams, rules), port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("upstreams", nargs="+", metavar="URL", help="address of a server, without /v1")
    parser.add_argument("--port", type=int, default=0)
    add_rule_flags(parser)
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        uvloop.run(_run(options.upstreams, rules_from(vars(options)), options.port))


if __name__ == "__main__":
    main()
