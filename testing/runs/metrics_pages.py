"""Saves pages of /metrics of an engine that serves in virtual time, as of a server in production."""

import os
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request
from loadtest.simulator.engine.scheduler import Engine
from loadtest.simulator.metrics import Histograms, render_metrics
from loadtest.simulator.presets import DEFAULT_PRESET, find_preset
from loadtest.simulator.virtual import EngineTrace, Simulation, TimedRequest
from testing.runs.virtual import BEGIN_UNIX_S, Lengths, chat_lengths

PAGE_S = 2.0
NEXT_START_S = 0.001


def write_pages(
    folder: Path,
    config: EngineConfig,
    users: Sequence[int],
    *,
    level_s: float = 60.0,
    lengths: Lengths = chat_lengths,
    seed: int = 0,
) -> list[Path]:
    """Lets so many users ask without a pause, one number of users after the other, and saves a page every
    PAGE_S seconds. Each file has the time of its page. Returns the files, in the order of their times."""
    rng = np.random.default_rng(seed)
    allowed = 0

    def fresh(user: int) -> Request:
        prompt, output = lengths(rng)
        return Request(
            prompt_tokens=prompt, output_tokens=min(output, config.max_model_len - prompt), user=user
        )

    def again(ended: Request, now_s: float) -> TimedRequest | None:
        return (now_s + NEXT_START_S, fresh(ended.user)) if ended.user < allowed else None

    engines: list[Engine] = []

    def route(_: Request, replicas: Sequence[Engine]) -> int:
        engines[:] = replicas
        return 0

    simulation = Simulation([config], route=route, on_end=again)
    histograms, noted = Histograms(config.max_model_len), 0
    files: list[Path] = []
    for number, count in enumerate(users):
        begin_s = number * level_s
        for user in range(allowed, count):
            simulation.push(begin_s + NEXT_START_S * (1 + user), fresh(user))
        allowed = count
        for at_s in np.arange(begin_s + PAGE_S, begin_s + level_s + PAGE_S / 2, PAGE_S).tolist():
            simulation.run(at_s)
            ended = simulation.traces[0].requests
            for request in ended[noted:]:
                histograms.observe_finished(request)
                histograms.ttft.observe((request.first_token_s or 0.0) - request.arrival_s)
            noted = len(ended)
            _set_gauges(engines[0], simulation.traces[0], at_s)
            path = folder / f"page-{len(files):04}.txt"
            path.write_text(_page(engines[0], histograms, noted))
            os.utime(path, (BEGIN_UNIX_S + at_s, BEGIN_UNIX_S + at_s))
            files.append(path)
    return files


def _set_gauges(engine: Engine, trace: EngineTrace, at_s: float) -> None:
    """Sets the gauges to those of the last step that has ended: several steps are simulated at once, and the
    engine shows those of the first."""
    step = max(bisect_right(trace.step_end_s, at_s) - 1, 0)
    engine.gauges.running, engine.gauges.waiting = trace.running[step], trace.waiting[step]
    engine.gauges.used_blocks = trace.used_blocks[step]


def _page(engine: Engine, histograms: Histograms, finished: int) -> str:
    preset = replace(find_preset(DEFAULT_PRESET), model="tiny")
    lines = render_metrics(
        preset=preset,
        engine=engine,
        histograms=histograms,
        finished_by_reason={"length": finished},
        cached_tokens=0,
        lateness_s=0.0,
    )
    return "\n".join(lines) + "\n"
