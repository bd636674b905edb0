"""Writes run folders from the engine in virtual time, with all files of a load test."""

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import msgspec
import numpy as np

from analysis.levels.level import Level
from analysis.levels.requests import RequestFigures
from analysis.levels.server import ServerFigures
from analysis.statistics.samples import MissShare, Quantiles, Window
from loadtest.record import (
    RUN_FILE,
    SERVER_FILE,
    ClientSample,
    GpuInfo,
    Outcome,
    RequestRecord,
    RunInfo,
    ServerInfo,
    ServerSample,
    encode_line,
)
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.engine.requests import Request
from loadtest.simulator.virtual import EngineTrace, TimedRequest, simulate

BEGIN_UNIX_S = 1.8e9
Lengths = Callable[[np.random.Generator], tuple[int, int]]


def small_engine(**changes: object) -> EngineConfig:
    """Builds an engine with 128 blocks of 32 tokens: about 16 users of 124 + 96 tokens.

    Its step times are those of vLLM with a tiny model on one CPU core. `changes` override its fields.
    """
    base = EngineConfig(
        num_gpu_blocks=128,
        block_size=32,
        max_model_len=2048,
        max_num_seqs=64,
        step_base_s=0.0025,
        step_per_seq_s=0.00015,
        prefill_per_token_s=0.00001,
        enable_prefix_caching=False,
        jitter_cv=0.1,
    )
    values = {name: getattr(base, name) for name in base.__dataclass_fields__}
    return EngineConfig(**(values | changes))


def lognormal(mean: float, cv: float, rng: np.random.Generator) -> int:
    """Draws one length from a lognormal distribution, rounded, at least 1."""
    sigma2 = np.log1p(cv**2)
    return max(round(float(rng.lognormal(np.log(mean) - sigma2 / 2, np.sqrt(sigma2)))), 1)


def chat_lengths(rng: np.random.Generator) -> tuple[int, int]:
    """Draws prompt tokens (mean 124, CV 0.1) and output tokens (mean 96, CV 0.6, at most 1500)."""
    return lognormal(124, 0.1, rng), min(lognormal(96, 0.6, rng), 1500)


@dataclass(frozen=True, kw_only=True)
class Plan:
    """A load test in virtual time: its levels, times, lengths and seed.

    `metrics`: whether the server has metrics. `lag_s`: seconds by which the load generator's loop is late.
    """

    levels: Sequence[int] = (1, 2, 4, 8, 16, 20)
    level_s: float = 30.0
    settle_s: float = 5.0
    think_s: float = 0.0
    seed: int = 0
    lengths: Lengths = chat_lengths
    metrics: bool = True
    lag_s: float = 0.0005


@dataclass(frozen=True, kw_only=True)
class _Played:
    users: int
    begin_unix_s: float
    trace: EngineTrace
    sent_by: list[Request]


def write_run(
    folder: Path, config: EngineConfig, plan: Plan, *, info: dict[str, object] | None = None
) -> RunInfo:
    """Simulates the plan and writes the run folder. `info` overrides fields of run.json."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(plan.seed)
    played = list(_play(config, plan, rng))
    base = {"preemptions": 0.0, "tokens": 0.0}
    with (folder / "requests-0.jsonl").open("wb") as out:
        for level in played:
            for row in _rows(level, plan):
                out.write(encode_line(row))
    with (folder / SERVER_FILE).open("wb") as server, (folder / "client-0.jsonl").open("wb") as client:
        for level in played:
            for sample in _samples(level, base):
                if plan.metrics:
                    server.write(encode_line(sample))
                client.write(encode_line(_health(level, sample.unix_s, plan.lag_s)))
    run = _info(folder.name, config, plan, played, info or {})
    (folder / RUN_FILE).write_bytes(msgspec.json.encode(run))
    return run


def _play(config: EngineConfig, plan: Plan, rng: np.random.Generator) -> Iterator[_Played]:
    at = BEGIN_UNIX_S + 1000.0 * plan.seed
    for users in plan.levels:

        def fresh(user: int) -> Request:
            prompt, output = plan.lengths(rng)
            output = min(output, config.max_model_len - prompt)
            return Request(prompt_tokens=prompt, output_tokens=output, user=user)

        def again(ended: Request, now_s: float) -> TimedRequest | None:
            pause = 0.001 + (rng.exponential(plan.think_s) if plan.think_s else 0.0)
            return (now_s + pause, fresh(ended.user)) if now_s + pause < plan.level_s else None

        spread = np.sort(rng.uniform(0, min(2.0, plan.settle_s / 2 + 0.1), users))
        first = [(float(start), fresh(user)) for user, start in enumerate(spread)]
        trace = simulate(config, first, on_end=again)
        yield _Played(users=users, begin_unix_s=at, trace=trace, sent_by=trace.requests)
        at += plan.level_s + max(trace.step_end_s[-1] - plan.level_s, 0.0) + 1.0


def _rows(level: _Played, plan: Plan) -> Iterator[RequestRecord]:
    for number, request in enumerate(level.trace.requests):
        start = request.arrival_s
        times = [at - start for at in level.trace.token_times_s(request)]
        yield RequestRecord(
            request_id=f"{level.users}-{number}",
            model="tiny",
            scenario="chat",
            worker="0",
            user=request.user,
            turn=0,
            level_users=level.users,
            start_unix_s=level.begin_unix_s + start,
            sent_s=0.0,
            headers_s=times[0],
            chunk_s=times,
            first_answer_s=times[0],
            end_s=times[-1],
            chunk_kinds="c" * len(times),
            prompt_tokens=request.prompt_tokens,
            output_tokens=request.output_tokens,
            max_tokens=request.output_tokens,
            finish_reason="length",
            outcome=Outcome.OK,
            http_status=200,
        )


def _samples(level: _Played, base: dict[str, float]) -> Iterator[ServerSample]:
    trace = level.trace
    steps = np.array(trace.step_end_s)
    ends = np.array([request.end_s for request in trace.requests])
    preempted = np.cumsum([request.preemptions for request in trace.requests])
    tokens = np.cumsum([request.output_tokens for request in trace.requests])
    for at in [0.0, *np.arange(0.5, steps[-1], 1.0), steps[-1] + 0.01]:
        step = max(int(np.searchsorted(steps, at)) - 1, 0)
        done = int(np.searchsorted(ends, at))
        yield ServerSample(
            unix_s=level.begin_unix_s + float(at),
            engine="0",
            running=trace.running[step],
            waiting=trace.waiting[step],
            waiting_capacity=trace.waiting[step],
            kv_cache_usage=trace.used_blocks[step] / trace.pool_blocks,
            preemptions_total=base["preemptions"] + (float(preempted[done - 1]) if done else 0.0),
            generation_tokens_total=base["tokens"] + (float(tokens[done - 1]) if done else 0.0),
        )
    base["preemptions"] += float(preempted[-1])
    base["tokens"] += float(tokens[-1])


def _health(level: _Played, unix_s: float, lag_s: float) -> ClientSample:
    at = unix_s - level.begin_unix_s
    begun = sum(request.arrival_s <= at for request in level.trace.requests)
    ended = sum(request.end_s is not None and request.end_s <= at for request in level.trace.requests)
    return ClientSample(
        unix_s=unix_s,
        loop_lag_max_s=lag_s,
        loop_lag_p99_s=lag_s,
        cpu=0.2,
        in_flight=begun - ended,
        started_total=begun,
        ended_total=ended,
    )


def _info(
    name: str, config: EngineConfig, plan: Plan, played: list[_Played], changes: dict[str, object]
) -> RunInfo:
    known = ServerInfo(
        engine="vllm",
        version="0.32.0",
        max_model_len=config.max_model_len,
        block_size=config.block_size,
        num_gpu_blocks=config.num_gpu_blocks,
        kv_cache_tokens=config.num_gpu_blocks * config.block_size,
        kv_bytes_per_token=2048,
    )
    values: dict[str, object] = {
        "run_id": name,
        "model": "tiny",
        "scenario": "chat",
        "host": "http://127.0.0.1:8000",
        "started_unix_s": played[0].begin_unix_s,
        "ended_unix_s": played[-1].begin_unix_s + plan.level_s + 10.0,
        "settings": {
            "settle_s": plan.settle_s,
            "level_s": plan.level_s,
            "think_s": plan.think_s,
            "seed": plan.seed,
        },
        "server": known if plan.metrics else ServerInfo(engine="vllm", version="0.32.0"),
        "gpu": GpuInfo(name="CPU", count=1, vram_bytes=None),
        "schedule": [
            (level.begin_unix_s + 2.0, level.begin_unix_s + plan.level_s, level.users) for level in played
        ],
    }
    return RunInfo(**(values | changes))  # type: ignore[arg-type]


def level(users: int, **changes: object) -> Level:
    """Builds a trusted level whose requests take a second; `changes` override fields of it or its parts."""
    window = Window(begin_unix_s=0.0, end_unix_s=100.0, request_duration_s=1.0)
    requests: dict[str, object] = {
        "n": 100 * users,
        "attempts": 100 * users,
        "finished": 100 * users,
        "errors": 0,
        "not_sent": 0,
        "cancelled": 0,
        "failures": (),
        "e2e_mean_s": 1.0,
        "ttft_mean_s": float("nan"),
        **dict.fromkeys(("e2e_s", "ttft_s", "tpot_s", "decode_tok_s", "stall_s", "chunk_gap_s"), Quantiles()),
        "stalled": (float("nan"),) * 3,
        "stall_miss": MissShare(misses=0, n=0),
        "gap_is_itl": True,
        "arrivals_per_chunk": 1.0,
        **dict.fromkeys(("ttft_miss", "tpot_miss", "overload"), MissShare(misses=0, n=100 * users)),
        "output_tok_s": 100.0 * users,
        "output_tok_se": 1.0,
        "goodput_rps": float(users),
    }
    server: dict[str, object] = {
        "running": float(users),
        "kv_cache_usage": 0.1,
        "waiting_fraction": 0.0,
        "preemptions": 0.0,
        "blocked": None,
        "queue": MissShare(misses=0, n=100),
        "max_num_seqs": None,
        "prefix_hit_rate": float("nan"),
        "vram_bytes": float("nan"),
        "tpot_mean_s": float("nan"),
        "e2e_mean_s": float("nan"),
        "ttft_mean_s": float("nan"),
    }
    own: dict[str, object] = {
        "users": users,
        "run_id": "run",
        "window": window,
        "in_flight": float(users),
        "paused": 0.0,
        "lag_s": 0.0,
        "why_not": (),
    }
    for values in (requests, server, own):
        values |= {name: changes.pop(name) for name in list(changes) if name in values}
    assert not changes, changes
    return Level(
        requests=RequestFigures(**requests),  # type: ignore[arg-type]
        server=ServerFigures(**server),  # type: ignore[arg-type]
        **own,  # type: ignore[arg-type]
    )


def read_json(text: str | bytes) -> Any:
    """Parses JSON into objects whose attributes are the keys."""
    return json.loads(text, object_hook=lambda values: SimpleNamespace(**values))


def write_short_run(
    folder: Path,
    *,
    seed: int = 0,
    levels: tuple[int, ...] = (1, 8, 12, 16, 20),
    info: dict[str, object] | None = None,
    **engine: object,
) -> Path:
    """Writes a run with levels of 20 s and returns its folder; `engine` overrides fields of small_engine."""
    plan = Plan(levels=levels, seed=seed, level_s=20.0)
    write_run(folder, small_engine(seed=seed, **engine), plan, info=info)
    return folder
