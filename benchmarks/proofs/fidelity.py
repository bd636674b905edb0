"""The twin beside a real vLLM (CPU build): the same traffic into both, and what-ifs predicted first.

Step times are calibrated on three of the conditions; the others are held out. Every condition is run twice,
and the difference of the two is the floor below which no error means anything. The machine changes its speed
from testing.processes import ROOT
from testing.processes import ROOT
from minute to minute, so times are also compared with a twin whose steps are scaled, all alike, to the run's
median TPOT. Runs are kept in build/fidelity, and taken from there when the benchmark is called again.
"""

import json
import math
import os
import random
import shutil
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from analysis.evidence.evidence import Evidence, gather
from analysis.evidence.lengths import pairs_of
from analysis.levels.level import Level
from analysis.levels.requests import tpot_of
from analysis.levels.window import ended_inside
from analysis.reading.columns import Requests
from analysis.reading.runs import Run, find_runs, read_run
from analysis.statistics.arrays import Ints
from analysis.twin.calibration import ServerFlags, ServiceFit, calibrate
from analysis.twin.chatting import chatting_of
from analysis.twin.predictions import measured_figures
from analysis.twin.step_fit import STEP_TERMS
from analysis.virtual.crowd import DueRequest
from analysis.virtual.run import VirtualFigures, VirtualRun, simulate_arrivals, simulate_users
from analysis.virtual.service import Chatting, Service
from loadtest.record import ServerSample, Slo
from loadtest.server.vllm import read_server_samples
from loadtest.simulator.routers import round_robin
from loadtest.workload.traces import read_trace
from testing.processes import ROOT
from testing.vllm.server import BLOCK_SIZE, MODEL, start_vllm

SLO = Slo()
BLOCKS, SLOTS, BUDGET = 128, 64, 2048
LEVEL_S, OPEN_S = 24.0, 30.0
FOLDER = Path("build/fidelity")
LENGTHS = ("--prompt-tokens", "lognormal:124,0.6", "--output-tokens", "lognormal:96,0.6")
SHORT = ("--prompt-tokens", "lognormal:62,0.6", "--output-tokens", "lognormal:48,0.6")
LONG = ("--prompt-tokens", "lognormal:700,0.4", "--output-tokens", "lognormal:60,0.6")
CHATS = (
    *("--prompt-tokens", "lognormal:60,0.5", "--output-tokens", "lognormal:40,0.5"),
    *("--turns", "4", "--think-s", "exp:1"),
)
ROWS = (
    ("KV usage, points", "kv_usage", 100.0),
    ("running", "running", 1.0),
    ("waiting", "waiting", 1.0),
    ("preemptions, % of requests", "preempted_fraction", 100.0),
    ("prefix hits, points", "prefix_hit_rate", 100.0),
    ("TTFT p50, ms", "ttft_p50_s", 1e3),
    ("TTFT p95, ms", "ttft_p95_s", 1e3),
    ("TPOT p50, ms", "tpot_p50_s", 1e3),
    ("TPOT p95, ms", "tpot_p95_s", 1e3),
    ("ITL p50, ms", "itl_p50_s", 1e3),
    ("ITL p95, ms", "itl_p95_s", 1e3),
)

SUMMARY = (
    ("KV, points", "kv_usage", 100.0),
    ("running", "running", 1.0),
    ("waiting", "waiting", 1.0),
    ("preempted, points", "preempted_fraction", 100.0),
    ("hits, points", "prefix_hit_rate", 100.0),
    ("TTFT p50", "ttft_p50_s", 1.0),
    ("TTFT p95", "ttft_p95_s", 1.0),
    ("ITL p50", "itl_p50_s", 1.0),
    ("ITL p95", "itl_p95_s", 1.0),
)


@dataclass(frozen=True, kw_only=True)
class Server:
    """Flags of vLLM that the conditions differ in."""

    blocks: int = BLOCKS
    slots: int = SLOTS
    budget: int = BUDGET


@dataclass(frozen=True, kw_only=True)
class Condition:
    """One kind of traffic. `trace` makes the open loop's requests; otherwise `users` chat."""

    name: str
    server: Server = Server()
    fitted: bool
    users: int = 0
    load: Sequence[str] = LENGTHS
    trace: Callable[[random.Random], list[str]] | None = None


def _csv(
    rate: float, prompt: tuple[float, float], output: tuple[float, float]
) -> Callable[[random.Random], list[str]]:
    """A Poisson trace; lengths are lognormal, mean and coefficient of variation."""

    def lines(rng: random.Random) -> list[str]:
        found, at_s = ["time_s,prompt,output"], 0.0
        while (at_s := at_s + rng.expovariate(rate)) < OPEN_S:
            lengths = (min(_lognormal(rng, *prompt), 900), min(_lognormal(rng, *output), 900))
            found.append(f"{at_s:.4f},{max(lengths[0], 20)},{max(lengths[1], 2)}")
        return found

    return lines


def _lognormal(rng: random.Random, mean: float, cv: float) -> int:
    sigma2 = math.log1p(cv**2)
    return round(rng.lognormvariate(math.log(mean) - sigma2 / 2, math.sqrt(sigma2)))


def _shared(rng: random.Random) -> list[str]:
    """Mooncake's form: one prefix block of 512 tokens in three popular versions, then text of one's own."""
    found: list[str] = []
    at_s = 0.0
    while (at_s := at_s + rng.expovariate(6.0)) < OPEN_S:
        own = 100 + len(found)
        row = {
            "timestamp": round(at_s * 1e3),
            "input_length": 512 + rng.randint(40, 160),
            "output_length": _lognormal(rng, 50, 0.5) + 2,
            "hash_ids": [rng.choice((1, 1, 2, 3)), own],
        }
        found.append(json.dumps(row))
    return found


CONDITIONS = (
    Condition(name="light", fitted=True, users=4),
    Condition(name="knee", fitted=True, users=12),
    Condition(name="long prompts", fitted=True, users=4, load=LONG),
    Condition(name="light, open loop", fitted=False, trace=_csv(4.0, (124, 0.6), (96, 0.6))),
    Condition(name="small max_num_seqs", fitted=False, server=Server(slots=8), users=16),
    Condition(name="knee, open loop", fitted=False, trace=_csv(9.0, (124, 0.6), (96, 0.6))),
    Condition(name="past the pool", fitted=False, users=22),
    Condition(name="heavy tails, open loop", fitted=False, trace=_csv(5.0, (124, 1.2), (96, 1.5))),
    Condition(name="shared prefix, open loop", fitted=False, trace=_shared),
    Condition(name="multi-turn with think time", fitted=False, users=16, load=CHATS),
    Condition(
        name="small token budget, open loop",
        fitted=False,
        server=Server(budget=64),
        trace=_csv(5.0, (250, 0.6), (40, 0.6)),
    ),
)
REPLICA_USERS = 36
WHAT_IFS = (
    ("twice the pool", Server(blocks=2 * BLOCKS - 1), LENGTHS, 32),
    ("half the lengths", Server(), SHORT, 32),
    ("max_num_seqs 8", Server(slots=8), LENGTHS, 24),
)


def run() -> None:
    """Prints the tables of docs/twin.md. Nearly half an hour."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    lab = Lab(FOLDER.resolve())
    runs: dict[str, list[Run]] = {}
    for server in dict.fromkeys(condition.server for condition in CONDITIONS):
        runs |= lab.twice([condition for condition in CONDITIONS if condition.server == server])
    calibration = _calibrated([runs[one.name] for one in CONDITIONS if one.fitted])
    print(_terms(calibration), flush=True)
    summary = [_print_condition(one, runs[one.name], calibration.service, lab) for one in CONDITIONS]
    _print_summary(summary)
    _what_ifs(lab, replace(calibration.service, chatting=_people(runs["knee"])))
    _two_replicas(lab, calibration)


class Lab:
    """Starts servers, pushes traffic at them, keeps the runs."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._started = 0

    def twice(self, conditions: Sequence[Condition]) -> dict[str, list[Run]]:
        """Two runs of each condition, one round after the other, on one server that suits them all."""
        wanted = [(one, f"{one.name} {number}") for number in (1, 2) for one in conditions]
        found: dict[str, list[Run]] = {condition.name: [] for condition in conditions}
        with self.server(conditions[0].server, needed=not all(self.kept(name) for _, name in wanted)) as url:
            for condition, name in wanted:
                found[condition.name].append(self.measure(url, name, self._flags(condition)))
                print(f"  {name}: {len(found[condition.name][-1].requests)} requests", flush=True)
        return found

    def kept(self, name: str) -> bool:
        return any((self.folder / name).glob("*/run.json"))

    def due(self, condition: Condition) -> list[tuple[int, ...]]:
        """Prefix blocks of each request of a trace."""
        return [arrival.prefix_blocks for arrival in read_trace(self._trace(condition), speed=1.0)]

    def _trace(self, condition: Condition) -> Path:
        assert condition.trace is not None
        lines = condition.trace(random.Random(condition.name))
        path = self.folder / f"{condition.name.replace(' ', '-')}.{'jsonl' if lines[0][0] == '{' else 'csv'}"
        path.write_text("\n".join(lines) + "\n")
        return path

    def _flags(self, condition: Condition) -> list[str]:
        if condition.trace is not None:
            return ["--trace", str(self._trace(condition))]
        return self.closed(condition.users, condition.load, seed=1)

    @staticmethod
    def closed(users: int, load: Sequence[str], seed: int) -> list[str]:
        """A level of users."""
        level = ["--levels", str(users), "--level-s", f"{LEVEL_S:g}", "--settle-s", "6", "--seed", str(seed)]
        return [*level, *load]

    @contextmanager
    def server(self, server: Server, *, needed: bool = True) -> Iterator[str]:
        """The address of a real vLLM; an empty one where it is not needed."""
        if not needed:
            yield ""
            return
        self._started += 1
        with start_vllm(
            num_gpu_blocks_override=server.blocks,
            max_num_seqs=server.slots,
            extra=[
                *("--max-num-batched-tokens", str(server.budget), "--enable-prompt-tokens-details"),
                # Without it vLLM refuses a token budget below the context.
                "--enable-chunked-prefill",
            ],
            log=self.folder / f"vllm-{self._started}.log",
        ) as started:
            yield started.url

    def measure(self, url: str, name: str, flags: Sequence[str]) -> Run:
        """One load test with our own tool, or the kept one of that name."""
        reports = self.folder / name
        if not self.kept(name):
            locust = str(Path(sys.executable).with_name("locust"))
            command = [locust, "-f", "scenarios/chat.py", "--headless", "--host", url, "--thinking", "off"]
            command += ["--sample-s", "0.25", "--reports-dir", str(reports), *flags]
            clean = {key: value for key, value in os.environ.items() if not key.startswith("LOADTEST_")}
            done = subprocess.run(
                command, cwd=ROOT, env=clean, capture_output=True, text=True, timeout=400, check=False
            )
            if done.returncode:
                shutil.rmtree(reports, ignore_errors=True)
                raise RuntimeError(
                    f"The load test {name} ended with {done.returncode}: {done.stderr[-2000:]}"
                )
        (folder,) = find_runs(reports)
        return read_run(folder)


def _calibrated(repeated: Sequence[Sequence[Run]]) -> ServiceFit:
    """From closed-loop runs; each its own seed, so that draws are independent."""
    parts = [gather([run], slo=SLO) for one in repeated for run in one]
    runs = [run for part in parts for run in part.runs]
    levels = [level for part in parts for level in part.levels]
    pairs = pairs_of(runs, block_tokens=BLOCK_SIZE)
    evidence = replace(parts[0], runs=runs, levels=levels, pairs=pairs)
    flags = ServerFlags(max_num_seqs=SLOTS, max_num_batched_tokens=BUDGET)
    return calibrate(evidence, levels, flags)


def _terms(calibration: ServiceFit) -> str:
    engine, service = calibration.service.engine, calibration.service
    return (
        f"calibrated: {1e3 * engine.step_base_s:.2f} ms a step, "
        f"{1e6 * engine.step_per_seq_s:.0f} us a sequence, "
        f"{1e9 * engine.step_per_kv_token_s:.0f} ns a KV token, "
        f"{1e6 * engine.prefill_per_token_s:.1f} us a prompt token, jitter {engine.jitter_cv:.2f}; "
        f"between engine and client {1e3 * service.overhead_s:.1f} ms "
        f"and {1e6 * service.overhead_per_user_s:.0f} us a user"
    )


def _at(service: Service, server: Server) -> Service:
    longest = min(service.engine.max_model_len, (server.blocks - 1) * service.engine.block_size)
    return service.with_engine(
        num_gpu_blocks=server.blocks,
        max_num_seqs=server.slots,
        max_num_batched_tokens=server.budget,
        max_model_len=longest,
    )


Figures = dict[str, float]


def _print_condition(condition: Condition, runs: Sequence[Run], fitted: Service, lab: Lab) -> list[str]:
    service = _at(fitted, condition.server)
    if condition.trace is not None:
        blocks = lab.due(condition)
        real = [_open_figures(run) for run in runs]
        sides = [_twin_open(service, run, blocks) for run in runs]
        scaled = [
            _twin_open(_scaled(service, figures, side), run, blocks)
            for figures, side, run in zip(real, sides, runs, strict=True)
        ]
        extra = _usage_errors(runs, scaled)
    else:
        found = [_closed(run) for run in runs]
        real = [_closed_figures(run, level) for run, (_, level) in zip(runs, found, strict=True)]
        sides = [_twin_closed(service, *one, condition.users) for one in found]
        scaled = [
            _twin_closed(_scaled(service, figures, side), *one, condition.users)
            for figures, side, one in zip(real, sides, found, strict=True)
        ]
        extra = _histogram_distance(found[0][0].runs[0], found[0][1], scaled[0])
    print(f"\n{condition.name} ({'fitted' if condition.fitted else 'held out'})\n")
    twin, at_speed = ([_figures(played.figures(SLO)) for played in plays] for plays in (sides, scaled))
    _print_table(real, twin, at_speed)
    print(f"\n{extra}", flush=True)
    words = [_off(key, scale, real, at_speed) for _, key, scale in SUMMARY]
    return [condition.name, "fitted" if condition.fitted else "held out", *words]


def _off(key: str, scale: float, real: Sequence[Figures], twin: Sequence[Figures]) -> str:
    """The twin's error, and in brackets how far apart the two real runs are."""
    first, second = (one[key] for one in real)
    mean = (first + second) / 2
    off, floor = sum(one[key] for one in twin) / 2 - mean, abs(first - second)
    if key.endswith("_s"):
        return f"{100 * off / mean:+.0f} % ({100 * floor / mean:.0f})"
    return f"{scale * off:+.1f} ({scale * floor:.1f})"


def _print_summary(rows: Sequence[Sequence[str]]) -> None:
    print("\nerror at the run's speed, and in brackets the difference of the two real runs\n")
    print("| " + " | ".join(["condition", "", *(name for name, _, _ in SUMMARY)]) + " |")
    print("|---|---|" + "--:|" * len(SUMMARY))
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def _scaled(service: Service, real: Figures, side: VirtualRun) -> Service:
    """All times of the twin by one factor: the run's median TPOT over the twin's."""
    factor = real["tpot_p50_s"] / side.figures(SLO).tpot_p50_s
    engine = service.engine
    return replace(
        service,
        engine=replace(engine, **{name: factor * getattr(engine, name) for name in STEP_TERMS}),
        overhead_s=factor * service.overhead_s,
        overhead_per_user_s=factor * service.overhead_per_user_s,
    )


def _print_table(real: Sequence[Figures], twin: Sequence[Figures], scaled: Sequence[Figures]) -> None:
    print("| | real | real again | twin | error | at the run's speed | floor |")
    print("|---|--:|--:|--:|--:|--:|--:|")
    for name, key, scale in ROWS:
        columns = [[one.get(key, math.nan) * scale for one in side] for side in (real, twin, scaled)]
        if any(math.isnan(value) for column in columns for value in column):
            continue
        mean = sum(columns[0]) / 2
        off = [sum(column) / 2 - mean for column in columns[1:]]
        floor = abs(columns[0][0] - columns[0][1])
        words = [
            f"{100 * value / mean:+.0f} %" if key.endswith("_s") and mean else f"{value:+.2f}"
            for value in (*off, floor)
        ]
        real_words = " | ".join(f"{value:.2f}" for value in columns[0])
        print(
            f"| {name} | {real_words} | {sum(columns[1]) / 2:.2f} | {words[0]} | {words[1]} "
            f"| {words[2].lstrip('+')} |"
        )


def _figures(seen: VirtualFigures) -> Figures:
    return {key: float(getattr(seen, key)) for _, key, _ in ROWS}


# Closed loops.


def _closed(run: Run) -> tuple[Evidence, Level]:
    evidence = gather([run], slo=SLO)
    evidence = replace(evidence, pairs=pairs_of([run], block_tokens=BLOCK_SIZE))
    return evidence, evidence.levels[0]


def _closed_figures(run: Run, level: Level) -> Figures:
    inside = (run.server.unix_s >= level.window.begin_unix_s) & (run.server.unix_s <= level.window.end_unix_s)
    rows = run.requests
    index = np.flatnonzero(rows.ok & ended_inside(rows, level.window))
    gaps = np.concatenate([rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]] for row in index])
    return (
        measured_figures(level)
        | _times(rows, index, gaps)
        | {
            "waiting": float(np.nanmean(run.server.waiting[inside])),
            "prefix_hit_rate": _hit_rate(run),
        }
    )


def _twin_closed(service: Service, evidence: Evidence, level: Level, users: int) -> VirtualRun:
    with_people = replace(service, chatting=chatting_of(evidence, [level]))
    return simulate_users(with_people, users, requests=max(6000, 60 * users))


def _histogram_distance(run: Run, level: Level, played: VirtualRun) -> str:
    """Of KV usage: the largest distance of the two distribution functions."""
    inside = (run.server.unix_s >= level.window.begin_unix_s) & (run.server.unix_s <= level.window.end_unix_s)
    seen = np.sort(run.server.kv_cache_usage[inside])
    grid = np.linspace(played.window[0], played.window[1], 4000)
    twin = np.sort(_usage_at(played, grid))
    points = np.linspace(0.0, 1.0, 201)
    distance = np.abs(
        np.searchsorted(seen, points, side="right") / len(seen)
        - np.searchsorted(twin, points, side="right") / len(twin)
    ).max()
    return (
        f"KV usage: {100 * seen.std():.1f} points around its mean, the twin {100 * twin.std():.1f}; "
        f"distance of the histograms {distance:.2f}"
    )


# Open loops.


def _open_figures(run: Run) -> Figures:
    rows = run.requests
    at = rows.start_unix_s + rows.sent_s
    inside = (run.server.unix_s >= at.min()) & (run.server.unix_s <= at.max())
    preempted = run.server.preemptions_total
    return {
        "kv_usage": float(np.nanmean(run.server.kv_cache_usage[inside])),
        "running": float(np.nanmean(run.server.running[inside])),
        "waiting": float(np.nanmean(run.server.waiting[inside])),
        "preempted_fraction": float(preempted[-1] - preempted[0]) / len(rows),
        "prefix_hit_rate": _hit_rate(run),
    } | _times(rows, np.flatnonzero(rows.ok), rows.gap_s)


def _times(rows: Requests, index: Ints, gaps: np.ndarray) -> Figures:
    """Quantiles over requests, and over the gaps of all of them."""
    columns = {
        "ttft": (rows.first_chunk_s - rows.sent_s)[index],
        "tpot": tpot_of(rows)[index],
        "itl": gaps,
    }
    return {
        f"{name}_p{place}_s": float(np.nanquantile(values, place / 100))
        for name, values in columns.items()
        for place in (50, 95)
    }


def _hit_rate(run: Run) -> float:
    cached, prompt = run.requests.cached_tokens, run.requests.prompt_tokens
    return float(np.nansum(cached) / np.nansum(prompt))


def _twin_open(service: Service, run: Run, prefix_blocks: Sequence[tuple[int, ...]]) -> VirtualRun:
    rows = run.requests
    at = rows.start_unix_s + rows.sent_s
    order = np.argsort(at)
    in_flight = float(np.sum(rows.end_s - rows.sent_s) / (at.max() - at.min()))
    lag_s = service.overhead_at(in_flight)
    due = [
        DueRequest(
            at_s=float(at[row] - at.min()),
            prompt_tokens=int(rows.prompt_tokens[row]),
            output_tokens=int(rows.output_tokens[row]),
            prefix_blocks=prefix_blocks[int(rows.user[row])]
            if len(prefix_blocks) > int(rows.user[row])
            else (),
        )
        for row in order
    ]
    return simulate_arrivals(replace(service, overhead_s=lag_s, overhead_per_user_s=0.0), due)


def _usage_errors(runs: Sequence[Run], sides: Sequence[VirtualRun]) -> str:
    found = []
    for run, played in zip(runs, sides, strict=True):
        rows = run.requests
        begin = (rows.start_unix_s + rows.sent_s).min()
        inside = (run.server.unix_s >= begin) & (run.server.unix_s <= begin + played.window[1])
        twin = _usage_at(played, run.server.unix_s[inside] - begin)
        found.append(100 * float(np.nanmean(np.abs(twin - run.server.kv_cache_usage[inside]))))
    one, other = (run.server for run in runs)
    starts = [(run.requests.start_unix_s + run.requests.sent_s).min() for run in runs]
    grid = np.arange(0.0, sides[0].window[1], 0.25)
    between = np.abs(
        np.interp(grid, one.unix_s - starts[0], one.kv_cache_usage)
        - np.interp(grid, other.unix_s - starts[1], other.kv_cache_usage)
    )
    errors = " and ".join(f"{error:.2f}" for error in found)
    return (
        f"KV usage over time, mean absolute error: {errors} points; between the two real runs "
        f"{100 * between.mean():.2f}"
    )


def _usage_at(played: VirtualRun, at_s: np.ndarray) -> np.ndarray:
    (trace,) = played.traces
    place = np.searchsorted(np.asarray(trace.step_end_s), at_s, side="right") - 1
    used = np.asarray(trace.used_blocks)[np.maximum(place, 0)] / trace.pool_blocks
    return np.where(place >= 0, used, 0.0)


# Predicted first, then run.


def _people(runs: Sequence[Run]) -> Chatting:
    evidence, level = _closed(runs[0])
    return chatting_of(evidence, [level])


def _what_ifs(lab: Lab, fitted: Service) -> None:
    print("\nwhat if (predicted before the run)")
    for name, server, load, users in WHAT_IFS:
        service = _at(fitted, server)
        if load is SHORT:
            service = _halved(service)
        side = _plateau(service, users)
        with lab.server(server, needed=not lab.kept(f"{name} 6")) as url:
            runs = [lab.measure(url, f"{name} {seed}", lab.closed(users, load, seed)) for seed in (5, 6)]
        real = [_closed_figures(run, _closed(run)[1]) for run in runs]
        scaled = [_figures(_plateau(_scaled(service, one, side), users).figures(SLO)) for one in real]
        print(f"\n{name}, {users} users\n")
        _print_table(real, [_figures(side.figures(SLO))] * 2, scaled)
        sys.stdout.flush()


def _plateau(service: Service, users: int) -> VirtualRun:
    return simulate_users(service, users, requests=max(6000, 60 * users))


def _halved(service: Service) -> Service:
    chats = [[(max(s // 2, 1), max(o // 2, 1)) for s, o in turns] for turns in service.chatting.conversations]
    return replace(service, chatting=replace(service.chatting, conversations=chats))


# Two replicas behind a round robin.


def _two_replicas(lab: Lab, calibration: ServiceFit) -> None:
    """The two share two cores with router and client, so neither their speed nor the way to the client is the
    calibrated one: both come from the run. Checked are routing, KV usage, preemptions and queues."""
    with ExitStack() as stack:
        urls = [stack.enter_context(lab.server(Server())) for _ in range(2)]
        watch = stack.enter_context(_watched(urls))
        url = stack.enter_context(_router(urls))
        run = lab.measure(url, f"two replicas {time.time():.0f}", lab.closed(REPLICA_USERS, LENGTHS, 7))
    evidence, level = _closed(run)
    window = level.window
    real = _closed_figures(run, level) | watch.means(window.begin_unix_s, window.end_unix_s)
    real["preempted_fraction"] = sum(watch.preemptions()) / len(run.requests)
    service = replace(calibration.service, chatting=chatting_of(evidence, [level]))
    side = _both(service)
    faster = _both(_scaled(service, real, side))
    scaled = _both(_delayed(faster, real))
    print(
        f"\ntwo replicas behind a round robin, {REPLICA_USERS} users (server figures: mean of one replica)\n"
    )
    _print_table([real] * 2, [_figures(side.figures(SLO))] * 2, [_figures(scaled.figures(SLO))] * 2)


def _delayed(played: VirtualRun, real: Figures) -> Service:
    """With the way between engine and client that the run's median TTFT shows."""
    service = played.service
    engine_s = played.figures(SLO).ttft_p50_s - service.overhead_at(played.users / len(played.traces))
    return replace(service, overhead_s=max(real["ttft_p50_s"] - engine_s, 0.0), overhead_per_user_s=0.0)


def _both(service: Service) -> VirtualRun:
    return simulate_users(service, REPLICA_USERS, requests=8000, replicas=2, route=round_robin())


@contextmanager
def _router(urls: Sequence[str]) -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "benchmarks.proofs.round_robin", str(port), *urls]
    with subprocess.Popen(command, cwd=ROOT) as process:
        try:
            _wait(f"http://127.0.0.1:{port}/health")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()


def _wait(url: str) -> None:
    for _ in range(100):
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"{url} did not answer.")


class _Watch(threading.Thread):
    """Gauges of several servers, four times a second."""

    def __init__(self, urls: Sequence[str]) -> None:
        super().__init__(daemon=True)
        self.urls = urls
        self.rows: list[ServerSample] = []
        self.ended = threading.Event()

    def run(self) -> None:
        while not self.ended.wait(0.25):
            for place, url in enumerate(self.urls):
                with urllib.request.urlopen(f"{url}/metrics", timeout=10) as answer:
                    page = answer.read().decode()
                for row in read_server_samples(page, model=MODEL, unix_s=time.time()):
                    self.rows.append(msgspec.structs.replace(row, engine=str(place)))

    def means(self, begin: float, end: float) -> Figures:
        """Of one replica."""
        inside = [row for row in self.rows if begin <= row.unix_s <= end]
        return {
            "kv_usage": float(np.mean([row.kv_cache_usage for row in inside])),
            "running": float(np.mean([row.running for row in inside])),
            "waiting": float(np.mean([row.waiting for row in inside])),
        }

    def preemptions(self) -> list[float]:
        """Of each replica, while we watched."""
        by = [
            [row.preemptions_total or 0.0 for row in self.rows if row.engine == str(place)]
            for place in range(len(self.urls))
        ]
        return [counts[-1] - counts[0] for counts in by]


@contextmanager
def _watched(urls: Sequence[str]) -> Iterator[_Watch]:
    watch = _Watch(urls)
    watch.start()
    try:
        yield watch
    finally:
        watch.ended.set()
        watch.join()
