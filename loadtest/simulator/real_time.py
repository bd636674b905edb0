"""Runs an engine in real time and passes each token to its answer. Knows no HTTP; `virtual` runs engines in
virtual time."""

import asyncio
import time
from collections import deque

from loadtest.simulator.chat import Completion, RefusalError
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request
from loadtest.simulator.engine.scheduler import Engine
from loadtest.simulator.engine.steps import Step
from loadtest.simulator.metrics import Histograms

_LATENESS_WINDOW_S = 10.0
_TIMER_RESOLUTION_S = 0.001


class LiveEngine:
    """Runs the steps of an engine in real time. Each step starts from the planned end of the step before, so
    that a delay of one step does not delay the next."""

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
        """Starts the engine on the running event loop."""
        self._task = asyncio.get_running_loop().create_task(self._run())

    async def stop(self) -> None:
        """Stops the engine. A step in progress is not completed."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def failure(self) -> None:
        """Waits until the engine fails, and raises its error. A server that waits here can end with the
        engine instead of hanging."""
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
        """Aborts a request whose client no longer waits for the answer. Does nothing if the request has ended
        already."""
        if self._completions.pop(completion.request, None) is not None:
            self.engine.abort(completion.request, time.monotonic())

    def lateness_s(self) -> float:
        """Returns the largest delay of a step's end behind its planned time in the last 10 s, in seconds. It
        is the timing error of this process."""
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
        """Adds a step to the histograms. All requests that were decoding before the step have the same
        inter-token latency, because each of them also got a token in the step before."""
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


async def _sleep_until(due_s: float) -> None:
    """Sleeps until `due_s`. The event loop's timers count whole milliseconds, so the last millisecond is
    spent in polling the clock."""
    rest_s = due_s - time.monotonic() - _TIMER_RESOLUTION_S
    if rest_s > 0:
        await asyncio.sleep(rest_s)
    while time.monotonic() < due_s:  # noqa: ASYNC110 (a clock has no event)
        await asyncio.sleep(0)
