"""TODO."""

import math
from collections.abc import Callable, Sequence

from analysis.answers.capacity import Bound, Latency, LevelAnswer, Memory, ModelAnswer, Untouched
from analysis.capacity.headline import CONFIDENCE, headline_of, refused_headline
from analysis.capacity.judgement import Judgement, judge
from analysis.capacity.options import options_of
from analysis.capacity.warnings import warnings_of
from analysis.evidence.evidence import Evidence
from analysis.evidence.gauge import Gauge
from analysis.evidence.think_time import Active
from analysis.levels.level import Level
from analysis.levels.open_loop import slices_of
from analysis.reading.runs import Run
from analysis.statistics.samples import finite_or_none
from analysis.walls.kv_cache import MemoryWall
from analysis.walls.names import WallName
from analysis.walls.placed import PlacedWall
from loadtest.record import Slo


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
    warnings = warnings_of(evidence, memory, gauge, stands)
    if reasons:
        stands = []
    info = runs[-1].info
    per_token = bytes_per_token if bytes_per_token is not None else info.server.kv_bytes_per_token
    head = headline_of(evidence, stands, confidence=confidence) if not reasons else refused_headline()
    return ModelAnswer(
        model=info.model,
        runs=[run.info.run_id for run in runs],
        max_users=head.max_users,
        estimate=head.estimate,
        interval=head.interval,
        estimate_x=head.estimate_x,
        interval_x=head.interval_x,
        max_in_flight=users_in_flight(head.max_users, evidence.active),
        at_least=head.at_least,
        binding=head.binding,
        p_binding=head.p_binding,
        bounds=[_bound(stand, confidence=confidence) for stand in sorted(stands, key=lambda stand: stand.x)],
        not_met=_not_met(evidence, stands),
        memory=_memory_answer(evidence, memory, gauge, per_token),
        latency=_latency_answer(evidence),
        levels=[_level_answer(level) for level in sorted(evidence.levels, key=lambda level: level.users)],
        open_loop=[one for run in runs for one in slices_of(run)],
        levers=options_of(judgement, stands, head, per_token),
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


def users_in_flight(users: int | None, active: Active) -> int | None:
    if users is None:
        return None
    return users if users == 0 else max(round(users * active(users)), 1)


def _bound(stand: PlacedWall, *, confidence: float) -> Bound:
    low, high = stand.bound((1.0 - confidence) / 2)
    return Bound(
        name=stand.name,
        users=math.floor(stand.x),
        interval=(math.floor(low), math.floor(high)),
        basis=stand.basis,
        users_x=stand.x,
        interval_x=(low, high),
    )


def _not_met(evidence: Evidence, stands: Sequence[PlacedWall]) -> list[Untouched]:
    if not evidence.trusted:
        return []
    met = {stand.name for stand in stands}
    walls: list[WallName] = ["ttft", "tpot", "throughput", "errors", "max_num_seqs"]
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


def _level_answer(level: Level) -> LevelAnswer:
    return LevelAnswer(
        users=level.users,
        run_id=level.run_id,
        in_flight=level.in_flight,
        n=level.n,
        window_s=level.window.length_s,
        ttft_s=level.ttft,
        tpot_s=level.tpot,
        decode_tok_s=level.decode,
        chunk_gap_s=level.gap,
        gap_is_itl=level.gap_is_itl,
        e2e_s=level.e2e,
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
