"""Serves vLLM's OpenAI-compatible API over HTTP, on 127.0.0.1 only.

Knows one engine. `chat` knows the format of requests and answers, `metrics` the format of /metrics.
"""

import asyncio
import functools
import hmac
import json
import ssl
import time
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import HttpVersion11, web

from loadtest.simulator.chat import VLLM_VERSION, Completion, RefusalError, parse_completion_request
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request
from loadtest.simulator.metrics import render_metrics
from loadtest.simulator.presets import Preset
from loadtest.simulator.real_time import LiveEngine
from loadtest.simulator.text import block_hashes, write_answer

OWNER = "seatcount-simulator"
"""Value of `owned_by` in /v1/models, by which a client knows that this is not a real vLLM."""

_MAX_BODY_BYTES = 64 * 1024**2
_SHUTDOWN_S = 0.2
_CLIENT_LEFT = 499
_METRICS_TYPE = "text/plain; version=1.0.0; charset=utf-8"


@dataclass(frozen=True, kw_only=True, slots=True)
class ServerOptions:
    """The served model and the options of the server, under vLLM's names."""

    preset: Preset
    config: EngineConfig
    api_key: str | None = None
    enable_prompt_tokens_details: bool = False
    root_path: str = ""
    """Prefix of every path, such as "/gateway"."""


class SimulatorServer:
    """Serves one engine over HTTP. All methods must run on one event loop."""

    def __init__(self, options: ServerOptions) -> None:
        self.options = options
        self.live = LiveEngine(options.config)
        self._runner = web.AppRunner(
            self._application(),
            handler_cancellation=True,  # a client that leaves ends its request
            access_log=None,
            shutdown_timeout=_SHUTDOWN_S,
        )

    async def start(self, port: int, tls: ssl.SSLContext | None = None) -> str:
        """Listens on 127.0.0.1 and starts the engine. Port 0 stands for any free port. Returns the URL, which
        ends in /v1. Raises OSError when the port is in use."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls, backlog=4096)
        await site.start()
        self.live.start()
        scheme = "http" if tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._runner.addresses[0][1]}{self.options.root_path}/v1"

    async def stop(self) -> None:
        """Stops the engine and closes all connections, even those with an open stream."""
        await self.live.stop()
        await self._runner.cleanup()

    def _application(self) -> web.Application:
        application = web.Application(client_max_size=_MAX_BODY_BYTES, middlewares=[self._guard])
        root = self.options.root_path
        application.add_routes(
            [
                web.post(f"{root}/v1/chat/completions", self._chat),
                web.get(f"{root}/v1/models", self._models),
                web.get(f"{root}/health", self._health),
                web.get(f"{root}/version", self._version),
                web.get(f"{root}/metrics", self._metrics),
            ]
        )
        return application

    @web.middleware
    async def _guard(
        self, request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        if request.path.startswith(f"{self.options.root_path}/v1") and not self._is_authorised(request):
            return _json({"error": "Unauthorized"}, status=401)
        try:
            return await handler(request)
        except RefusalError as refusal:
            return _json(refusal.body, status=refusal.status)
        except ConnectionError:
            return web.Response(
                status=_CLIENT_LEFT
            )  # no client reads it, but without it aiohttp would log a traceback
        except web.HTTPException as error:
            return _json({"detail": error.reason}, status=error.status)

    def _is_authorised(self, http: web.Request) -> bool:
        if self.options.api_key is None:
            return True
        scheme, _, token = http.headers.get("Authorization", "").partition(" ")
        return scheme.lower() == "bearer" and hmac.compare_digest(
            token.encode(), self.options.api_key.encode()
        )

    async def _models(self, _: web.Request) -> web.Response:
        card = {
            "id": self.options.preset.model,
            "object": "model",
            "created": int(time.time()),
            "owned_by": OWNER,
            "root": self.options.preset.model,
            "parent": None,
            "max_model_len": self.options.config.max_model_len,
            "permission": [],
        }
        return _json({"object": "list", "data": [card]})

    async def _health(self, _: web.Request) -> web.Response:
        return web.Response()

    async def _version(self, _: web.Request) -> web.Response:
        return _json({"version": VLLM_VERSION})

    async def _metrics(self, _: web.Request) -> web.Response:
        live = self.live
        lines = render_metrics(
            preset=self.options.preset,
            engine=live.engine,
            histograms=live.histograms,
            finished_by_reason=live.finished_by_reason,
            cached_tokens=live.cached_tokens,
            lateness_s=live.lateness_s(),
        )
        return web.Response(body="\n".join([*lines, ""]).encode(), headers={"Content-Type": _METRICS_TYPE})

    async def _chat(self, http: web.Request) -> web.StreamResponse:
        raw = await http.read()
        completion = self._completion(
            raw,
            http.headers.get("X-Request-Id") or uuid.uuid4().hex[:16],
            chunked=http.version >= HttpVersion11,  # HTTP/1.0 has no chunks: the stream ends the connection
        )
        ended = asyncio.Event()
        completion.on_end = ended.set
        self.live.submit(completion)
        try:
            if completion.chat.stream:
                return await _stream(http, completion, ended)
            await ended.wait()
            return web.Response(body=completion.whole(), content_type="application/json")
        finally:
            self.live.forget(completion)

    def _completion(self, raw: bytes, request_id: str, *, chunked: bool) -> Completion:
        preset, config = self.options.preset, self.options.config
        chat = parse_completion_request(
            raw, model=preset.model, max_model_len=config.max_model_len, thinks=preset.thinks
        )
        answer = write_answer(
            chat.prompt,
            seed=chat.seed,
            max_tokens=chat.max_tokens,
            forced=chat.ignore_eos,
            thinking=chat.thinking,
        )
        request = Request(
            prompt_tokens=len(chat.prompt),
            output_tokens=len(answer.tokens),
            block_hashes=block_hashes(chat.prompt + answer.tokens, config.block_size, salt=chat.cache_salt),
        )
        return Completion(
            request_id=f"chatcmpl-{request_id}",
            created_unix_s=int(time.time()),
            chat=chat,
            answer=answer,
            request=request,
            counts_reasoning=preset.thinks,
            shows_cached_tokens=self.options.enable_prompt_tokens_details,
            chunked=chunked,
        )


async def _stream(http: web.Request, completion: Completion, ended: asyncio.Event) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    if completion.chunked:
        response.enable_chunked_encoding()
    else:
        response.force_close()
    await response.prepare(http)
    if http.transport is None:
        raise ConnectionResetError("The client left before its answer began.")
    # aiohttp's own writer would run a coroutine for each token; `Completion` frames chunks itself.
    http.transport.writelines(completion.pending)
    completion.write = functools.partial(_write_while_open, http.transport)
    await ended.wait()
    await response.write_eof()
    return response


def _write_while_open(transport: asyncio.Transport, data: bytes) -> None:
    # After a client has left, and before its handler is cancelled, uvloop's transport would raise.
    if not transport.is_closing():
        transport.write(data)


def _json(value: object, *, status: int = 200) -> web.Response:
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return web.Response(body=body, status=status, content_type="application/json")
