"""Runs the engine in real time behind vLLM's OpenAI-compatible API, on 127.0.0.1 only.

Knows one engine; `chat` knows the format of requests and answers, `metrics` that of /metrics.
"""

import asyncio
import functools
import hmac
import json
import ssl
import time
import uuid
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from loadtest.simulator.chat import VLLM_VERSION, Completion, RefusalError, parse_completion_request
from loadtest.simulator.config import EngineConfig
from loadtest.simulator.engine import Engine
from loadtest.simulator.metrics import Histograms, render_metrics
from loadtest.simulator.presets import Preset
from loadtest.simulator.requests import Request
from loadtest.simulator.steps import Step
from loadtest.simulator.text import block_hashes, write_answer

OWNER = "seatcount-simulator"
"""Value of `owned_by` in /v1/models, by which a client knows that this is not a real vLLM."""

_MAX_BODY_BYTES = 64 * 1024**2
_LATENESS_WINDOW_S = 10.0
_SHUTDOWN_S = 0.2
_TIMER_RESOLUTION_S = 0.001
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


class LiveEngine:
    """Runs the steps of an engine at absolute times, so that a late step does not delay the steps after
    it."""

    def __init__(self, config: EngineConfig) -> None:
        self.engine = Engine(config)
        self.histograms = Histograms(config.max_model_len)
        self.finished_by_reason = {"stop": 0, "length": 0}
        self.cached_tokens = 0
        self._completions: dict[Request, Completion] = {}
        self._work = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._lateness: deque[tuple[float, float]] = deque()
        self._previous_end_s = 0.0

    def start(self) -> None:
        """Starts the engine on the running loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stops the engine between two steps."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def failure(self) -> None:
        """Waits until the engine ends and raises its error; without its engine a server would only hang."""
        assert self._task is not None
        await asyncio.shield(self._task)

    def submit(self, completion: Completion) -> None:
        """Queues a request. Raises RefusalError (503) when a queue limit rejects it."""
        if not self.engine.submit(completion.request, time.monotonic()):
            raise RefusalError(
                503,
                "The engine is currently busy and cannot accept new requests. "
                "Please try again later or on a different instance.",
                kind="Service Unavailable",
            )
        self._completions[completion.request] = completion
        self._work.set()

    def forget(self, completion: Completion) -> None:
        """Aborts a request for which its client no longer waits; does nothing when it has ended."""
        if self._completions.pop(completion.request, None) is not None:
            self.engine.abort(completion.request, time.monotonic())

    def lateness_s(self) -> float:
        """Largest delay of a step's tokens in the last ten seconds, which is the error of this process."""
        self._drop_old_lateness(time.monotonic())
        return max((late_s for _, late_s in self._lateness), default=0.0)

    async def _run(self) -> None:
        now_s = time.monotonic()
        while True:
            end_s = self.engine.begin(now_s)
            if end_s is None:
                self._work.clear()
                await self._work.wait()
                now_s = time.monotonic()
                continue
            await _sleep_until(end_s)
            self._note_lateness(end_s, time.monotonic())
            self._hand_out(self.engine.end())
            now_s = end_s

    def _note_lateness(self, due_s: float, now_s: float) -> None:
        # Delays descend, so that the largest of the window comes first and the deque stays short.
        late_s = now_s - due_s
        while self._lateness and self._lateness[-1][1] <= late_s:
            self._lateness.pop()
        self._lateness.append((now_s, late_s))
        self._drop_old_lateness(now_s)

    def _drop_old_lateness(self, now_s: float) -> None:
        while self._lateness and self._lateness[0][0] < now_s - _LATENESS_WINDOW_S:
            self._lateness.popleft()

    def _hand_out(self, step: Step) -> None:
        self._observe(step)
        for request in step.tokens:
            completion = self._completions[request]
            completion.last_token_s = step.end_s
            completion.advance()
        for request in step.finished:
            self._finish(self._completions.pop(request))

    def _observe(self, step: Step) -> None:
        """Adds a step to the histograms. Decodes have the same inter-token latency: each got a token in the
        step before."""
        for request in step.first:
            completion = self._completions[request]
            if completion.made:  # recomputed after a preemption
                self.histograms.itl.observe(step.end_s - completion.last_token_s)
            else:
                self.histograms.ttft.observe(step.end_s - request.arrival_s)
                self.cached_tokens += request.cached_tokens
        if decodes := len(step.tokens) - len(step.first):
            self.histograms.itl.observe(step.end_s - self._previous_end_s, decodes)
        self.histograms.iteration.observe(len(step.tokens) - len(step.first) + step.prefill_tokens)
        self._previous_end_s = step.end_s

    def _finish(self, completion: Completion) -> None:
        self.finished_by_reason[completion.answer.finish_reason] += 1
        self.histograms.observe_finished(completion.request)
        completion.finish()


class SimulatorServer:
    """The HTTP server. All its methods must run on one event loop."""

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
        """Listens on 127.0.0.1 and starts the engine. Port 0 takes a free one. Returns the URL, which ends in
        /v1. Raises OSError when the port is in use."""
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", port, ssl_context=tls, backlog=4096)
        await site.start()
        self.live.start()
        scheme = "http" if tls is None else "https"
        return f"{scheme}://127.0.0.1:{self._runner.addresses[0][1]}{self.options.root_path}/v1"

    async def stop(self) -> None:
        """Stops the engine and closes all connections, also those with a stream."""
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
        completion = self._completion(raw, http.headers.get("X-Request-Id") or uuid.uuid4().hex[:16])
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

    def _completion(self, raw: bytes, request_id: str) -> Completion:
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
            block_hashes=block_hashes(chat.prompt + answer.tokens, config.block_size),
        )
        return Completion(
            request_id=f"chatcmpl-{request_id}",
            created_unix_s=int(time.time()),
            chat=chat,
            answer=answer,
            request=request,
            counts_reasoning=preset.thinks,
            shows_cached_tokens=self.options.enable_prompt_tokens_details,
        )


async def _stream(http: web.Request, completion: Completion, ended: asyncio.Event) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream; charset=utf-8"})
    response.enable_chunked_encoding()
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


async def _sleep_until(due_s: float) -> None:
    """Sleeps until `due_s`. The loop's timers have whole milliseconds; the rest is spent in its
    iterations."""
    rest_s = due_s - time.monotonic() - _TIMER_RESOLUTION_S
    if rest_s > 0:
        await asyncio.sleep(rest_s)
    while time.monotonic() < due_s:  # noqa: ASYNC110 (a clock has no event)
        await asyncio.sleep(0)


def _json(value: object, *, status: int = 200) -> web.Response:
    body = json.dumps(value, separators=(",", ":"), ensure_ascii=False).encode()
    return web.Response(body=body, status=status, content_type="application/json")
