"""How many users can this deployment hold? recommend(), and `python -m analysis.capacity reports/`."""

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from analysis.answers.capacity import (
    WALL_NAMES,
    Answer,
    Basis,
    Bound,
    Latency,
    LevelAnswer,
    Lever,
    Memory,
    ModelAnswer,
    Percentiles,
    Untouched,
    Wall,
)
from analysis.cli import add_slo_flags, count, share
from analysis.levels.gauge import Gauge, gauge_of
from analysis.levels.lengths import Pairs, pairs_of
from analysis.levels.level import QUEUE_LIMIT, Context, Level, Pool
from analysis.levels.measure import levels_of, output_cv
from analysis.levels.open_loop import open_loop_warnings, slices_of
from analysis.levels.step_time import Pace, pace_of
from analysis.levels.think_time import Thinking, thinking_of
from analysis.reading.other_tools import read_results
from analysis.reading.rows import Floats
from analysis.reading.runs import (
    Found,
    OneFound,
    Run,
    differences,
    find_runs,
    group_runs,
    has_runs,
    read_run,
    run_bytes,
)
from analysis.reporting import capacity as report
from analysis.statistics.crossings import Crossing, miss_crossing, p95_crossing
from analysis.statistics.samples import Quantiles, finite_or_none
from analysis.walls.block_law import Active, BlockLaw, Occupancy, active_of, block_law
from analysis.walls.errors import OVERLOAD_LIMIT
from analysis.walls.kv_cache import MemoryWall, memory_wall
from analysis.walls.kv_shift import wall
from analysis.walls.max_num_seqs import seats_of, seats_wall
from analysis.walls.prefix_cache import PrefixWall, prefix_wall
from analysis.walls.throughput import throughput_fall
from loadtest.errors import InputError
from loadtest.model.memory import kv_bytes_per_token, parse_config
from loadtest.record import RunInfo, Slo

CONFIDENCE = 0.9
RESAMPLES, QUICK_RESAMPLES = 300, 100
FEWEST_PAIRS = 100
REACH = 1.25  # the memory law may speak this far beyond the highest trusted level, flagged
DISAGREES = 0.05
LOCKSTEP_CV = 0.1
SIMULATOR_LATE_S = 0.02
HEAVY_TAIL = (0.9, 2000)  # an output CV from here needs so many requests
OPEN_LOOP = (
    "This is an open loop: requests came when they were due, so there is no number of users. The table shows "
    "what the server did with them; for a number of users, run levels."
)
KEEPS_HISTORIES = (
    "KV offloading to the host's memory (--kv-offloading-size): evicted histories are loaded, not computed",
    "shorter histories: fewer turns sent back, or summaries of old ones",
)
STICKY = " and each conversation sent where its history is (a prefix-aware router)"
VLLM_BLOCK_SIZE = 16  # DEFAULT_BLOCK_SIZE in vllm/config/cache.py
BINOMIAL_SD = 0.05  # of the ln of users: people who think do not arrive as independently as the law says
CUT_SHARE = 0.05  # of the requests: those that a shorter max_model_len would cut
TIE = 0.05  # walls less likely than this to bind do not widen the interval


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Stand:
    """Where one wall stands, in real-valued users."""

    name: Wall
    x: float
    bound: Callable[[float], tuple[float, float]]
    """One-sided error -> lower and upper bound."""
    draws: Floats
    """For p_binding, shape (RESAMPLES,)."""
    basis: Basis


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Evidence:
    """Everything that the walls are judged from."""

    runs: Sequence[Run]
    levels: Sequence[Level]
    pairs: Pairs | None
    pool: Pool | None
    thinking: Thinking | None
    slo: Slo

    @property
    def active(self) -> Active:
        """Share of the time in which one of so many users is in flight."""
        return active_of(self.thinking)

    @property
    def active_of_one(self) -> Active:
        """The same for so many users of one engine."""
        engines = self.pool.engines if self.pool else 1
        return active_of(self.thinking.of_one(engines) if self.thinking else None)

    @property
    def pace(self) -> Pace | None:
        """None where the levels do not tell."""
        if self.pairs is None:
            return None
        return pace_of(
            self.runs,
            self.levels,
            uncached_prompt=float(self.pairs.prompt.mean()) - self.pairs.shared_prefix,
            output=float(self.pairs.output.mean()),
        )

    @property
    def seats(self) -> int | None:
        """max_num_seqs of all engines together, as stated or as seen."""
        stated = self.runs[-1].info.server.max_num_seqs
        engines = self.pool.engines if self.pool else 1
        return seats_of(self.levels, stated=stated * engines if stated else None)

    @property
    def open_loop(self) -> bool:
        """Requests came when they were due, in one of the runs at least."""
        return any(run.info.arrivals for run in self.runs)

    @property
    def trusted(self) -> list[int]:
        """Users of the trusted levels, rising."""
        return sorted({level.users for level in self.levels if level.trusted})


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Judgement:
    """The evidence and where the walls stand in it: what an answer at any confidence is made of."""

    evidence: Evidence
    memory: MemoryWall | None
    prefix: PrefixWall | None
    gauge: Gauge | None
    stands: Sequence[Stand]
    reasons: list[str]


def judge(
    runs: Sequence[Run],
    *,
    slo: Slo,
    seed: int = 0,
    quick: bool = False,
    on_step: Callable[[int], None] = lambda _: None,
) -> Judgement:
    """Places the walls of runs that may be pooled (see `load.comparable`). Deterministic for a given seed.

    `on_step` is called for each of RESAMPLES resamples, for a progress bar. `quick`, for a look while a test
    runs: the memory wall without the engine's replay, from fewer resamples.
    """
    rng = np.random.default_rng(seed)
    evidence = gather(runs, slo=slo)
    memory = _memory_wall(evidence, rng, on_step, quick=quick)
    prefix = _prefix_wall(evidence, np.random.default_rng(seed + 1))
    stands = _stands(evidence, memory, prefix, rng)
    return Judgement(
        evidence=evidence,
        memory=memory,
        prefix=prefix,
        gauge=_gauge(evidence),
        stands=stands,
        reasons=_reasons_to_refuse(evidence, stands),
    )


def recommend(
    runs: Sequence[Run],
    *,
    slo: Slo,
    confidence: float = CONFIDENCE,
    bytes_per_token: int | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda _: None,
) -> ModelAnswer:
    """`judge` and `answer_of` in one."""
    judgement = judge(runs, slo=slo, seed=seed, on_step=on_step)
    return answer_of(judgement, confidence=confidence, bytes_per_token=bytes_per_token)


def answer_of(
    judgement: Judgement, *, confidence: float = CONFIDENCE, bytes_per_token: int | None = None
) -> ModelAnswer:
    """The answer for one model. `bytes_per_token` overrides what the server said."""
    evidence, memory, gauge = judgement.evidence, judgement.memory, judgement.gauge
    runs, stands, reasons = evidence.runs, judgement.stands, judgement.reasons
    warnings = _warnings(evidence, memory, gauge, stands)
    if reasons:
        stands = []
    info = runs[-1].info
    per_token = bytes_per_token if bytes_per_token is not None else info.server.kv_bytes_per_token
    head = head_of(evidence, stands, confidence=confidence) if not reasons else _refused()
    return ModelAnswer(
        model=info.model,
        runs=[run.info.run_id for run in runs],
        max_users=head.max_users,
        estimate=head.estimate,
        interval=head.interval,
        estimate_x=head.estimate_x,
        interval_x=head.interval_x,
        max_in_flight=_in_flight(head.max_users, evidence.active),
        at_least=head.at_least,
        binding=head.binding,
        p_binding=head.p_binding,
        bounds=[_bound(stand, confidence=confidence) for stand in sorted(stands, key=lambda stand: stand.x)],
        not_met=_not_met(evidence, stands),
        memory=_memory_answer(evidence, memory, gauge, per_token),
        latency=_latency_answer(evidence),
        levels=[_level_answer(level) for level in sorted(evidence.levels, key=lambda level: level.users)],
        open_loop=[one for run in runs for one in slices_of(run)],
        levers=_levers(judgement, stands, head, per_token),
        refused=bool(reasons),
        reasons=reasons,
        warnings=warnings,
        host=info.host,
        server=" ".join(filter(None, [info.server.engine, info.server.version])) or "unknown server",
        gpu=_gpu_text(runs),
        simulated=info.server.simulated,
        workload=_workload(evidence),
        timing_error_s=_timing_error(evidence.levels),
    )


def gather(runs: Sequence[Run], *, slo: Slo) -> Evidence:
    """Lengths, pool, levels and think time of comparable runs."""
    pool = _pool(runs)
    pairs = pairs_of(runs, block_tokens=pool.block_tokens if pool else VLLM_BLOCK_SIZE)
    context = _context(runs, pairs, pool, slo)
    levels = [level for run in runs for level in levels_of(run, context)]
    thinking = thinking_of(levels) if context.thinks else None
    return Evidence(
        runs=runs,
        levels=levels,
        pairs=pairs if len(pairs) >= FEWEST_PAIRS else None,
        pool=pool,
        thinking=thinking,
        slo=slo,
    )


def _context(runs: Sequence[Run], pairs: Pairs, pool: Pool | None, slo: Slo) -> Context:
    block_tokens = pool.block_tokens if pool else VLLM_BLOCK_SIZE
    own = pairs.prompt - pairs.shared_prefix
    ends = (own + pairs.output) / block_tokens + 0.5
    return Context(
        slo=slo,
        pool=pool,
        largest_prompt_blocks=-(-int(own.max(initial=0)) // block_tokens),
        mean_output=float(pairs.output.mean()) if len(pairs) else math.inf,
        mean_end_blocks=float(ends.mean()) if len(pairs) else 0.0,
        thinks=_thinks(runs),
    )


def _pool(runs: Sequence[Run]) -> Pool | None:
    """(num_gpu_blocks - 1) whole blocks for each engine; None where the server did not say."""
    server = runs[-1].info.server
    engines = max(run.server.engines for run in runs)
    if server.block_size is None:
        return None
    blocks = server.num_gpu_blocks
    if blocks is None and server.kv_cache_tokens is not None:
        blocks = server.kv_cache_tokens // server.block_size
    return Pool(blocks=blocks - 1, block_tokens=server.block_size, engines=engines) if blocks else None


def _thinks(runs: Sequence[Run]) -> bool:
    return any(run.info.settings.get("think_s") not in (None, "", "0", 0, 0.0) for run in runs)


def _memory_wall(
    evidence: Evidence, rng: np.random.Generator, on_step: Callable[[int], None], *, quick: bool
) -> MemoryWall | None:
    if evidence.pairs is None or evidence.pool is None:
        return None
    return memory_wall(
        evidence.pairs,
        evidence.pool,
        evidence.levels,
        evidence.slo,
        thinking=evidence.thinking,
        pace=None if quick else evidence.pace,
        seats=evidence.seats,
        replay=not quick,
        resamples=QUICK_RESAMPLES if quick else RESAMPLES,
        rng=rng,
        on_step=on_step,
    )


def _prefix_wall(evidence: Evidence, rng: np.random.Generator) -> PrefixWall | None:
    if evidence.pairs is None or evidence.pool is None:
        return None
    return prefix_wall(
        evidence.runs,
        evidence.levels,
        evidence.pool,
        shared_prefix=evidence.pairs.shared_prefix,
        resamples=RESAMPLES,
        rng=rng,
    )


def _gauge(evidence: Evidence) -> Gauge | None:
    if evidence.pool is None or evidence.pairs is None:
        return None
    return gauge_of(evidence.runs, evidence.levels, evidence.pool, shared_prefix=evidence.pairs.shared_prefix)


def _stands(
    evidence: Evidence, memory: MemoryWall | None, prefix: PrefixWall | None, rng: np.random.Generator
) -> list[Stand]:
    """Every wall that was met, or that a model places."""
    found = []
    if memory is not None:
        found.append(_drawn("kv_cache", evidence, memory.x, memory.draws, measured=memory.shift.levels > 0))
    if prefix is not None:
        found.append(_drawn("prefix_cache", evidence, prefix.x, prefix.draws, measured=prefix.measured))
    found += _crossing_stands(evidence, rng)
    fall = throughput_fall(evidence.levels)
    if fall is not None:
        found.append(_between("throughput", evidence, fall, rng))
    if evidence.seats is not None:
        found.append(_seats_stand(evidence, evidence.seats, rng))
    return found


def _seats_stand(evidence: Evidence, seats: int, rng: np.random.Generator) -> Stand:
    """Of people who think: where a queue is seen for 10 % of the time, else by the binomial law."""
    crossing = None
    if evidence.thinking is not None:
        levels = [level for level in evidence.levels if level.users > seats]
        crossing = miss_crossing(levels, lambda level: level.queue, limit=QUEUE_LIMIT)
    if crossing is None or crossing.between[0] == 0:
        at = seats_wall(seats, active=evidence.active)
        if evidence.thinking is None:
            return _exact("max_num_seqs", evidence, at)
        error = math.hypot(evidence.thinking.think_error, BINOMIAL_SD)
        draws = at * np.exp(error * rng.standard_normal(RESAMPLES))
        return _drawn("max_num_seqs", evidence, at, draws, measured=False)
    return _crossing_stand("max_num_seqs", evidence, crossing, rng)


def _crossing_stand(name: Wall, evidence: Evidence, crossing: Crossing, rng: np.random.Generator) -> Stand:
    return Stand(
        name=name,
        x=crossing.x,
        bound=crossing.bound,
        draws=_draws(crossing.x, crossing.bound(0.05), rng),
        basis=_basis(crossing.x, evidence.trusted),
    )


def _drawn(name: Wall, evidence: Evidence, x: float, draws: Floats, *, measured: bool) -> Stand:
    """A wall that a model places. `measured`: levels near it moved the model."""
    basis = _basis(x, evidence.trusted)
    if basis != "extrapolated" and not measured:
        basis = "model"

    def bound(error: float) -> tuple[float, float]:
        low, high = np.quantile(draws, [error, 1.0 - error])
        return min(float(low), x), max(float(high), x)

    return Stand(name=name, x=x, bound=bound, draws=np.resize(draws, RESAMPLES), basis=basis)


def _crossing_stands(evidence: Evidence, rng: np.random.Generator) -> list[Stand]:
    slo, levels = evidence.slo, evidence.levels
    crossings: dict[Wall, Crossing | None] = {
        "ttft": p95_crossing(
            levels, lambda level: level.ttft_miss, lambda level: level.ttft.p95, objective_s=slo.ttft_p95_s
        ),
        "tpot": p95_crossing(
            levels, lambda level: level.tpot_miss, lambda level: level.tpot.p95, objective_s=slo.tpot_p95_s
        ),
        "errors": miss_crossing(levels, lambda level: level.overload, limit=OVERLOAD_LIMIT),
    }
    return [
        _crossing_stand(name, evidence, crossing, rng)
        for name, crossing in crossings.items()
        if crossing is not None
    ]


def _draws(x: float, bounds: tuple[float, float], rng: np.random.Generator) -> Floats:
    """Log-normal on each side of x, with the 5 % bounds as its quantiles."""
    z = rng.standard_normal(RESAMPLES)
    below, above = math.log(x / bounds[0]) / 1.645, math.log(bounds[1] / x) / 1.645
    return x * np.exp(z * np.where(z < 0, below, above))


def _between(name: Wall, evidence: Evidence, ends: tuple[int, int], rng: np.random.Generator) -> Stand:
    """A wall that is only known to stand from one level on and before the next."""
    low, high = float(ends[0]), float(ends[1])
    return Stand(
        name=name,
        x=low,
        bound=lambda _: (low, high),
        draws=rng.uniform(low, high, RESAMPLES),
        basis=_basis(low, evidence.trusted),
    )


def _exact(name: Wall, evidence: Evidence, at: float) -> Stand:
    return Stand(
        name=name,
        x=at,
        bound=lambda _: (at, at),
        draws=np.full(RESAMPLES, at),
        basis=_basis(at, evidence.trusted),
    )


def _basis(x: float, trusted: Sequence[int]) -> Basis:
    if not trusted or x > trusted[-1] or math.ceil(x) < trusted[0]:
        return "extrapolated"
    near = max(1.0, 0.05 * x)
    return "measured" if any(abs(users - x) <= near for users in trusted) else "interpolated"


def _reasons_to_refuse(evidence: Evidence, stands: Sequence[Stand]) -> list[str]:
    """Full sentences; empty when the data can carry an answer."""
    if not any(len(run.requests) for run in evidence.runs):
        return ["The run holds no request: let a level finish, then analyse again."]
    if not any(run.requests.ok.any() for run in evidence.runs):
        return ["No request succeeded: the errors in the rows say why."]
    if evidence.open_loop:
        return [OPEN_LOOP]
    if not evidence.levels:
        return ["No level ran longer than its settling time: use longer levels (--level-s)."]
    trusted = evidence.trusted
    if not trusted:
        why = sorted({reason for level in evidence.levels for reason in level.why_not})
        return ["No level can be trusted: " + "; ".join(why) + "."]
    return [
        f"Already the lowest trusted level, {trusted[0]} users, is past the {WALL_NAMES[stand.name]} wall: "
        "measure at fewer users."
        for stand in stands
        if stand.name in ("ttft", "tpot", "errors") and stand.x < trusted[0] and trusted[0] > 1
    ]


@dataclass(frozen=True, kw_only=True, slots=True)
class Head:
    """The first line of the answer."""

    max_users: int | None
    estimate: int | None
    interval: tuple[int, int | None] | None
    estimate_x: float | None
    interval_x: tuple[float, float | None] | None
    at_least: bool
    binding: Wall
    p_binding: dict[str, float]


def _refused() -> Head:
    return Head(
        max_users=None,
        estimate=None,
        interval=None,
        estimate_x=None,
        interval_x=None,
        at_least=False,
        binding="not_reached",
        p_binding={},
    )


def head_of(evidence: Evidence, stands: Sequence[Stand], *, confidence: float) -> Head:
    """xL = the least lower bound, xU = the least upper bound, the latter corrected for walls that tie.

    A wall that was not met stands above the highest trusted level, which is therefore its lower bound.
    """
    top = evidence.trusted[-1]
    first = min(stands, key=lambda stand: stand.x, default=None)
    error = (1.0 - confidence) / 2
    if first is None or first.x > REACH * top:
        return _at_least(min([float(top)] + [stand.bound(error)[0] for stand in stands]))
    p_binding = _p_binding(stands)
    rivals = [stand for stand in stands if stand is first or p_binding.get(stand.name, 0.0) > TIE]
    low = min([stand.bound(error)[0] for stand in stands] + ([float(top)] if first.x > top else []))
    high = min(stand.bound(error / len(rivals))[1] for stand in rivals)
    return Head(
        max_users=math.floor(low),
        estimate=math.floor(first.x),
        interval=(math.floor(low), math.floor(high)),
        estimate_x=first.x,
        interval_x=(low, high),
        at_least=False,
        binding=first.name,
        p_binding=p_binding,
    )


def _at_least(users: float) -> Head:
    return Head(
        max_users=math.floor(users),
        estimate=None,
        interval=(math.floor(users), None),
        estimate_x=None,
        interval_x=(users, None),
        at_least=True,
        binding="not_reached",
        p_binding={},
    )


def _p_binding(stands: Sequence[Stand]) -> dict[str, float]:
    """How often each wall is the first over the draws; those never first are left out."""
    first = np.argmin(np.stack([stand.draws for stand in stands]), axis=0)
    share = np.bincount(first, minlength=len(stands)) / len(first)
    likely = sorted(zip(stands, share, strict=True), key=lambda pair: -pair[1])
    return {stand.name: round(float(p), 3) for stand, p in likely if p > 0}


def _in_flight(users: int | None, active: Active) -> int | None:
    if users is None:
        return None
    return users if users == 0 else max(round(users * active(users)), 1)


def _bound(stand: Stand, *, confidence: float) -> Bound:
    low, high = stand.bound((1.0 - confidence) / 2)
    return Bound(
        name=stand.name,
        users=math.floor(stand.x),
        interval=(math.floor(low), math.floor(high)),
        basis=stand.basis,
        users_x=stand.x,
        interval_x=(low, high),
    )


def _not_met(evidence: Evidence, stands: Sequence[Stand]) -> list[Untouched]:
    if not evidence.trusted:
        return []
    met = {stand.name for stand in stands}
    walls: list[Wall] = ["ttft", "tpot", "throughput", "errors", "max_num_seqs"]
    if any((run.requests.turn > 0).any() for run in evidence.runs):
        walls.append("prefix_cache")
    return [Untouched(name=name, up_to_users=evidence.trusted[-1]) for name in walls if name not in met]


def _memory_answer(
    evidence: Evidence, memory: MemoryWall | None, gauge: Gauge | None, per_token: int | None
) -> Memory:
    pool = evidence.pool
    vram = [level.vram_bytes for level in evidence.levels if not math.isnan(level.vram_bytes)]
    pool_bytes = (pool.tokens + pool.block_tokens) * per_token if pool and per_token else None
    law = memory.law if memory else None
    shared = evidence.pairs.shared_prefix if evidence.pairs else None
    tokens = law.mean * pool.block_tokens + (shared or 0) if law and pool else None
    return Memory(
        pool_tokens=pool.tokens if pool else None,
        tokens_per_user=tokens,
        tokens_per_user_sd=law.sd * pool.block_tokens if law and pool else None,
        shared_prefix_tokens=shared,
        bytes_per_token=per_token,
        vram_base_bytes=round(max(vram)) - pool_bytes if vram and pool_bytes else None,
        vram_bytes_per_user=round((tokens - (shared or 0)) * per_token) if tokens and per_token else None,
        r2=finite_or_none(gauge.r2) if gauge else None,
        gauge_tokens_per_user=gauge.tokens_per_request if gauge else None,
        preempted_fraction_shift=memory.shift.preempted if memory and memory.shift.levels else None,
        pairs=len(evidence.pairs) if evidence.pairs else 0,
    )


def _latency_answer(evidence: Evidence) -> Latency:
    pace = evidence.pace
    if pace is None:
        return Latency()
    return Latency(
        step_base_s=pace.step_base_s,
        step_per_seq_s=pace.step_per_seq_s,
        prefill_per_token_s=pace.prefill_per_token_s,
        knee_users=finite_or_none(pace.knee),
    )


def _percentiles(found: Quantiles) -> Percentiles:
    return Percentiles(p50=found.p50, p95=found.p95, p99=found.p99, p95_interval=found.p95_interval)


def _level_answer(level: Level) -> LevelAnswer:
    return LevelAnswer(
        users=level.users,
        run_id=level.run_id,
        in_flight=level.in_flight,
        n=level.n,
        window_s=level.clock.window_s,
        ttft_s=_percentiles(level.ttft),
        tpot_s=_percentiles(level.tpot),
        decode_tok_s=_percentiles(level.decode),
        chunk_gap_s=_percentiles(level.gap),
        gap_is_itl=level.gap_is_itl,
        e2e_s=_percentiles(level.e2e),
        output_tok_s=level.output_tok_s,
        goodput_rps=level.goodput_rps,
        kv_cache_usage=finite_or_none(level.kv_usage),
        preempted_fraction=finite_or_none(level.preempted_fraction),
        kv_blocked_fraction=finite_or_none(level.blocked.fraction) if level.blocked else None,
        prefix_hit_rate=finite_or_none(level.prefix_hit_rate),
        ttft_miss_fraction=finite_or_none(level.ttft_miss.fraction),
        tpot_miss_fraction=finite_or_none(level.tpot_miss.fraction),
        errors=level.errors,
        cancelled=level.cancelled,
        trusted=level.trusted,
        why_not=list(level.why_not),
    )


def _warnings(
    evidence: Evidence, memory: MemoryWall | None, gauge: Gauge | None, stands: Sequence[Stand]
) -> list[str]:
    found = [warning for run in evidence.runs for warning in run.warnings]
    if evidence.open_loop:
        return list(dict.fromkeys(found + open_loop_warnings(evidence.runs)))
    return list(
        dict.fromkeys(
            found
            + _memory_warnings(evidence, gauge)
            + _length_warnings(evidence)
            + _reach_warnings(evidence, memory, stands)
            + _simulator_warnings(evidence)
        )
    )


def _simulator_warnings(evidence: Evidence) -> list[str]:
    """The embedded server's own error, where it is as large as what is measured."""
    late = np.concatenate([run.server.simulated_lateness_s for run in evidence.runs])
    tpot = [level.tpot.p50 for level in evidence.levels if level.trusted and level.tpot.p50]
    middle = float(np.nanmedian(late)) if np.isfinite(late).any() else 0.0
    if not tpot or middle < max(SIMULATOR_LATE_S, min(tpot)):
        return []
    return [
        f"The simulated server was late itself: half of the time some tokens came {1e3 * middle:.0f} ms or "
        "more after they were due, because its process lacked CPU. Give it a core of its own."
    ]


def _memory_warnings(evidence: Evidence, gauge: Gauge | None) -> list[str]:
    found = []
    if evidence.pool is None:
        found.append(
            "The memory wall is missing: the server's /metrics did not say how many KV blocks it has "
            "(--kv-cache-tokens says it). Latency and throughput walls still answer."
        )
    elif evidence.pairs is None:
        found.append(
            f"The memory wall is missing: fewer than {FEWEST_PAIRS} finished requests carried token counts."
        )
    elif evidence.pool.engines > 1:
        found.append(
            f"{evidence.pool.engines} engines: the memory wall takes users as spread evenly over equal pools."
        )
    if gauge is not None and abs(gauge.off) > max(DISAGREES, 3.0 * gauge.off_se):
        more = "more" if gauge.off > 0 else "less"
        found.append(
            f"The server's gauge shows {100 * abs(gauge.off):.0f} % {more} KV cache a request than the "
            "requests' lengths explain: hidden tokens, shared prefixes or a hybrid cache layout."
        )
    return found


def _length_warnings(evidence: Evidence) -> list[str]:
    found = []
    spread = output_cv(evidence.runs)
    if spread < LOCKSTEP_CV:
        found.append(
            f"Lockstep: output lengths hardly vary (CV {spread:.2f}). Requests march in step, preemptions "
            "then depend on how users started, and the memory wall may be off by users. Vary the lengths."
        )
    if spread >= HEAVY_TAIL[0] and evidence.pairs is not None and len(evidence.pairs) < HEAVY_TAIL[1]:
        found.append(
            f"Output lengths are heavy-tailed (CV {spread:.2f}): {len(evidence.pairs)} requests are few, the "
            f"interval may be too narrow. Measure {HEAVY_TAIL[1]}, or cap max_tokens."
        )
    seeds = [run.info.settings["seed"] for run in evidence.runs if "seed" in run.info.settings]
    if len(set(map(str, seeds))) < len(seeds):
        found.append(
            "Runs with the same seed are pooled: their lengths repeat, so the interval is too narrow."
        )
    return found


def _doubts(levels: Sequence[Level]) -> list[str]:
    """Levels that are not trusted, those of one reason in one sentence."""
    doubted: dict[tuple[str, ...], list[int]] = {}
    for level in sorted(levels, key=lambda level: level.users):
        if level.why_not:
            doubted.setdefault(level.why_not, []).append(level.users)
    return [
        f"Level{'s' * (len(users) > 1)} {', '.join(map(str, users))} not trusted: {'; '.join(why)}."
        for why, users in doubted.items()
    ]


def _reach_warnings(evidence: Evidence, memory: MemoryWall | None, stands: Sequence[Stand]) -> list[str]:
    found = _doubts(evidence.levels)
    first = min(stands, key=lambda stand: stand.x, default=None)
    if first is None or not evidence.trusted:
        return found
    name, low, top = WALL_NAMES[first.name], evidence.trusted[0], evidence.trusted[-1]
    if top < first.x <= REACH * top:
        found.append(
            f"Extrapolated: the highest trusted level is {top} users, below the {name} wall. "
            "Run one level above it."
        )
    if math.ceil(first.x) < low:
        found.append(
            f"Extrapolated: the lowest trusted level is {low} users, above the {name} wall. "
            "Run one level below it."
        )
    if (
        first.name == "kv_cache"
        and memory is not None
        and memory.shift.levels == 0
        and first.x <= REACH * top
    ):
        found.append(
            "No trusted level near the memory wall counted preemptions: it rests on the formula alone."
        )
    return found


def _levers(judgement: Judgement, stands: Sequence[Stand], head: Head, per_token: int | None) -> list[Lever]:
    """What would raise the answer, and by how many users where a model can say."""
    if head.estimate is None or head.estimate_x is None:
        return []
    evidence, memory, prefix = judgement.evidence, judgement.memory, judgement.prefix
    found = []
    others = [stand for stand in stands if stand.name != head.binding]
    reach = REACH * evidence.trusted[-1]
    if head.binding == "kv_cache" and memory is not None:
        for change, factor in _bigger_pools(evidence, per_token):
            found.append(_lever(change, _wall_with(memory, evidence, factor), others, head.estimate, reach))
        longest, moved = _wall_with_cut_lengths(memory, evidence)
        if math.floor(moved) > head.estimate:
            change = f"--max-model-len {longest} (1 in 20 requests seen was longer and would be cut)"
            found.append(_lever(change, moved, others, head.estimate, reach))
    elif head.binding == "prefix_cache" and prefix is not None:
        for change, factor in _bigger_pools(evidence, per_token):
            found.append(_lever(change, prefix.with_pool(factor), others, head.estimate, reach))
        found += [_unknown_lever(change) for change in KEEPS_HISTORIES]
    elif head.binding == "max_num_seqs" and others:
        found.append(_lever("raise --max-num-seqs", math.inf, others, head.estimate, reach))
    elif head.binding in ("ttft", "tpot", "throughput"):
        found.append(_unknown_lever("shorter prompts, a faster GPU, or a looser objective"))
    twice = math.floor(2 * head.estimate_x)
    found.append(
        Lever(
            change=f"a second replica, users spread evenly{STICKY if head.binding == 'prefix_cache' else ''}",
            users=twice,
            gain_users=twice - head.estimate,
            limited_by=None,
        )
    )
    return found


def _unknown_lever(change: str) -> Lever:
    note = "no model here says by how many users"
    return Lever(change=change, users=None, gain_users=None, limited_by=None, note=note)


def _bigger_pools(evidence: Evidence, per_token: int | None) -> list[tuple[str, float]]:
    """Changes of the pool as factors on its blocks."""
    info = evidence.runs[-1].info
    found = []
    used, vram = info.server.gpu_memory_utilization, info.gpu.vram_bytes if info.gpu else None
    if evidence.pool is not None and used is not None and vram and per_token and used < 0.945:
        more = (0.95 - used) * vram / per_token
        found.append((f"--gpu-memory-utilization 0.95 (now {used:g})", 1.0 + more / evidence.pool.tokens))
    else:
        found.append(
            ("a KV pool 10 % larger (--gpu-memory-utilization, or fewer other users of the GPU)", 1.1)
        )
    if "fp8" not in (info.server.cache_dtype or ""):
        found.append(("--kv-cache-dtype fp8 (twice the tokens; check answer quality)", 2.0))
    return found


def _wall_with(memory: MemoryWall, evidence: Evidence, factor: float) -> float:
    return _moved(memory, evidence, memory.law, int(memory.blocks * factor))


def _moved(memory: MemoryWall, evidence: Evidence, law: BlockLaw, blocks: int) -> float:
    """The wall with another law, or in another pool, moved as far by what was counted."""
    occupancy = Occupancy(law, blocks, evidence.active_of_one)
    start = max(int(memory.x * blocks / memory.blocks / memory.pool.engines), 1)
    return wall(occupancy, evidence.slo, shift=memory.shift, start=start) * memory.pool.engines


def _wall_with_cut_lengths(memory: MemoryWall, evidence: Evidence) -> tuple[int, float]:
    """The length that one in twenty requests passes, and the wall when answers end there."""
    pairs = evidence.pairs
    assert pairs is not None
    longest = math.ceil(np.quantile(pairs.prompt + pairs.output, 1.0 - CUT_SHARE))
    fits = pairs.prompt < longest
    cut = replace(
        pairs,
        prompt=pairs.prompt[fits],
        output=np.minimum(pairs.output, longest - pairs.prompt)[fits],
        conversation=pairs.conversation[fits],
    )
    law = block_law(cut, block_tokens=memory.pool.block_tokens)
    return longest, _moved(memory, evidence, law, memory.blocks)


def _lever(change: str, moved: float, others: Sequence[Stand], estimate: int, reach: float) -> Lever:
    """`reach`: users beyond which the models speak of what nobody has measured."""
    next_wall = min(others, key=lambda stand: stand.x, default=None)
    limited = next_wall is not None and next_wall.x < moved
    users = math.floor(next_wall.x if next_wall is not None and limited else moved)
    return Lever(
        change=change,
        users=users,
        gain_users=users - estimate,
        limited_by=next_wall.name if next_wall is not None and limited else None,
        beyond=users > reach,
    )


def _gpu_text(runs: Sequence[Run]) -> str | None:
    gpu = runs[-1].info.gpu
    if gpu is None or gpu.name is None:
        return None
    return gpu.name if gpu.count == 1 else f"{gpu.count} x {gpu.name}"


def _workload(evidence: Evidence) -> dict[str, str]:
    """In words, for the report: what was asked of the server."""
    settings = evidence.runs[-1].info.settings
    wanted = (
        "arrivals",
        "trace",
        "prompt_tokens",
        "output_tokens",
        "think_s",
        "turns",
        "thinking",
        "seed",
    )
    found = {name: str(settings[name]) for name in wanted if settings.get(name) not in (None, "")}
    if evidence.pairs is not None:
        found["seen"] = (
            f"{len(evidence.pairs)} requests, prompt {evidence.pairs.prompt.mean():.0f} tokens, "
            f"output {evidence.pairs.output.mean():.0f} tokens (means)"
        )
    return found


def _timing_error(levels: Sequence[Level]) -> float | None:
    lags = [level.lag_s for level in levels if level.trusted and not math.isnan(level.lag_s)]
    return max(lags) if lags else None


class RefusedError(Exception):
    """The data cannot support an answer. Exit code 3."""


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m analysis.capacity`. Returns the exit code: 0 answered, 2 unreadable, 3 refused."""
    options = _parser().parse_args(argv)
    try:
        answer = analyse(options)
    except InputError as problem:
        report.complain(str(problem))
        return 2
    except KeyboardInterrupt:
        return 130
    report.show(answer, folder=_folder(options))
    return 3 if all(model.refused for model in answer.models) else 0


def analyse(options: argparse.Namespace) -> Answer:
    """Reads, recommends and writes the reports into the named folder. Raises InputError."""
    per_token = _bytes_from_config(options.config)
    groups, notes = chosen_of(_found(options), options.run)
    models = []
    slo = slo_of(options, groups[-1][-1].info)
    with report.progress() as bar:
        for group in groups:
            runs = [_with_stated_pool(run, options) for run in read_group(group, bar)]
            model = recommend(
                runs,
                slo=slo,
                confidence=options.confidence,
                bytes_per_token=per_token,
                on_step=bar.task("placing the walls", total=RESAMPLES),
            )
            extra = notes.get(model.model, [])
            models.append(msgspec.structs.replace(model, warnings=extra + model.warnings))
    answer = Answer(generated_unix_s=time.time(), confidence=options.confidence, slo=slo, models=models)
    report.write(answer, folder=_folder(options))
    return answer


def _folder(options: argparse.Namespace) -> Path:
    """Where the reports go."""
    path: Path = options.path
    return path.parent if path.is_file() else path


def _found(options: argparse.Namespace) -> Sequence[Found]:
    """Run folders, or what other load generators left."""
    if options.path.is_file() or (options.path.is_dir() and not has_runs(options.path)):
        return read_results(options.path, server_metrics=options.server_metrics)
    if options.server_metrics:
        raise InputError(f"--server-metrics goes with the results of other tools: {options.path} holds runs.")
    return find_runs(options.path)


def _with_stated_pool(run: Run, options: argparse.Namespace) -> Run:
    """What the user says of the KV cache counts before what /metrics said."""
    if options.kv_cache_tokens is None:
        return run
    block_size = options.block_size or run.info.server.block_size or VLLM_BLOCK_SIZE
    server = msgspec.structs.replace(
        run.info.server,
        kv_cache_tokens=options.kv_cache_tokens,
        block_size=block_size,
        num_gpu_blocks=options.kv_cache_tokens // block_size,
    )
    return replace(run, info=msgspec.structs.replace(run.info, server=server))


def read_group(group: Sequence[Found], bar: "report.Bar") -> list[Run]:
    """Rows of runs that are pooled. Raises InputError."""
    sizes = [0 if isinstance(found, Run) else run_bytes(found) for found in group]
    advance = bar.task("reading", total=sum(sizes))
    return [found if isinstance(found, Run) else read_run(found, on_bytes=advance) for found in group]


def chosen_of(
    found: Sequence[OneFound], wanted: Sequence[str] | None
) -> tuple[list[list[OneFound]], dict[str, list[str]]]:
    """The runs to pool for each model, and what to say of the others, by model."""
    if wanted:
        return [_picked(found, wanted)], {}
    chosen: dict[str, list[OneFound]] = {}
    notes: dict[str, list[str]] = {}
    for group in group_runs(found):
        model = group[0].info.model
        if model not in chosen:
            chosen[model] = group
            continue
        ids = ", ".join(run.info.run_id for run in group)
        notes.setdefault(model, []).append(
            f"Not pooled, because {_differences(group[0].info, chosen[model][0].info)}: {ids} (choose "
            "with --run)."
        )
    return [chosen[model] for model in sorted(chosen)], notes


def _differences(one: RunInfo, other: RunInfo) -> str:
    """What keeps two runs from being pooled: `host and prompt_tokens differ`."""
    names = differences(one, other)
    listing = " and ".join(filter(None, [", ".join(names[:-1]), names[-1]]))
    return f"{listing} differ{'s' * (len(names) == 1)}"


def _picked(found: Sequence[OneFound], wanted: Sequence[str]) -> list[OneFound]:
    unknown = sorted(set(wanted) - {run.info.run_id for run in found})
    if unknown:
        known = ", ".join(run.info.run_id for run in found)
        raise InputError(f"There is no run {', '.join(unknown)} here: choose from {known}.")
    picked = [run for run in found if run.info.run_id in wanted]
    for run in picked[1:]:
        if differences(run.info, picked[0].info):
            raise InputError(
                f"These runs must not be pooled, because {_differences(run.info, picked[0].info)}: name "
                "fewer with --run."
            )
    return picked


def slo_of(options: argparse.Namespace, info: RunInfo) -> Slo:
    """A flag, else what the run was made with, else the default."""
    flags = {name: getattr(options, f"slo_{name}") for name in Slo.__struct_fields__}
    given = {name: flag for name, flag in flags.items() if flag is not None}
    return msgspec.structs.replace(stored_slo(info), **given)


def stored_slo(info: RunInfo) -> Slo:
    """What the run was made with, else the default."""
    stored = {name: info.settings.get(f"slo_{name}") for name in Slo.__struct_fields__}
    return Slo(**{name: float(value) for name, value in stored.items() if isinstance(value, int | float)})


def _bytes_from_config(path: Path | None) -> int | None:
    if path is None:
        return None
    try:
        shape = parse_config(msgspec.json.decode(path.read_bytes(), type=dict[str, object]))
        found = kv_bytes_per_token(shape)
    except (OSError, msgspec.DecodeError, ValueError) as problem:
        raise InputError(f"--config {path} does not tell the KV bytes of a token ({problem}).") from None
    if found is None:
        raise InputError(f"--config {path} has no single figure of KV bytes a token (windows): leave it out.")
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.capacity",
        description="How many users can this deployment hold? Reads one run folder, or a folder of run "
        "folders, or the results of guidellm, aiperf or vllm bench serve, and answers with an interval and "
        "the wall that binds. Writes capacity.json, report.html, report.md and figures into that folder.",
        epilog="Exit codes: 0 answered, 2 wrong usage or unreadable input, 3 refused because the data cannot "
        "support an answer. An objective that is not given is the one that the run was made with.",
    )
    add = parser.add_argument
    add(
        "path",
        type=Path,
        metavar="PATH",
        help="a run folder, or the folder that holds them (reports/); or a result file of another tool, or "
        "the folder that holds a sweep of them (docs/importing.md)",
    )
    add("--run", action="append", metavar="ID", help="only this run; repeat it to pool several")
    add("--config", type=Path, metavar="FILE", help="the model's config.json: turns KV tokens into GiB")
    add(
        "--server-metrics",
        type=Path,
        metavar="FILE",
        help="of another tool's run: Prometheus' query_range as JSON, or successive scrapes as text "
        "(default: server_metrics.json or .txt beside the results)",
    )
    add(
        "--kv-cache-tokens",
        type=count,
        metavar="N",
        help='the pool, where /metrics was not read: the N of "GPU KV cache size: N tokens" in vLLM\'s log',
    )
    add(
        "--block-size",
        type=count,
        metavar="B",
        help=f"tokens a block, with --kv-cache-tokens (default: what /metrics said, else {VLLM_BLOCK_SIZE})",
    )
    add(
        "--confidence",
        type=share,
        default=CONFIDENCE,
        help="how often the interval should cover the truth (default %(default)s)",
    )
    add_slo_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
