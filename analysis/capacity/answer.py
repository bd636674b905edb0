"""Builds the answer for one model from a judgement of its runs."""

import math
from collections.abc import Callable, Collection, Sequence

import msgspec

from analysis.answers.capacity import (
    Bound,
    Headline,
    LatencyFigures,
    MemoryFigures,
    ModelAnswer,
    WallNotMet,
    WorkloadSummary,
)
from analysis.capacity.classes import class_answers
from analysis.capacity.failures import failures_of_answer
from analysis.capacity.headline import CONFIDENCE, headline_of
from analysis.capacity.judgement import Judgement, judge
from analysis.capacity.latency_alone import latency_alone
from analysis.capacity.options import options_of
from analysis.capacity.people import busiest_hour_of, company_of
from analysis.capacity.replay import replay_of
from analysis.capacity.warnings import too_few_to_hold, warnings_of
from analysis.evidence.evidence import Evidence
from analysis.evidence.gauge import Gauge
from analysis.evidence.think_time import ActiveShare
from analysis.levels.level import Level
from analysis.levels.open_loop import slices_of
from analysis.memory.block_distribution import blocks_of_a_user
from analysis.reading.runs import Run
from analysis.statistics.samples import finite_or_none
from analysis.walls.held import HeldLimit, held_limits
from analysis.walls.kv_cache import KvCacheWall
from analysis.walls.names import WallName
from analysis.walls.placed import PlacedWall
from analysis.walls.prefix_cache import place_prefix_cache
from loadtest.record import Slo

WORKLOAD_SHOWN = (
    "workload",
    "arrivals",
    "trace",
    "sessions",
    "prompt_tokens",
    "output_tokens",
    "think_s",
    "turns",
    "thinking",
    "seed",
)


def recommend(
    runs: Sequence[Run],
    *,
    slo: Slo,
    confidence: float = CONFIDENCE,
    bytes_per_token: int | None = None,
    headcount: int | None = None,
    active: float | None = None,
    busiest_hour: int | None = None,
    seed: int = 0,
    on_step: Callable[[int], None] = lambda _: None,
) -> ModelAnswer:
    """Returns the answer for the model of these runs: how many users its deployment holds.

    The same seed gives the same answer. headcount, active: people, and the share of them who are active at
    the peak, if stated. busiest_hour: requests in the busiest hour of a day, if stated.
    """
    judgement = judge(runs, slo=slo, seed=seed, on_step=on_step)
    answer = answer_of(judgement, confidence=confidence, bytes_per_token=bytes_per_token)
    return msgspec.structs.replace(
        answer,
        people=company_of(answer.headline, headcount=headcount, active=active),
        busiest_hour=busiest_hour_of(answer.headline, judgement.evidence.levels, requests=busiest_hour),
    )


def answer_of(
    judgement: Judgement, *, confidence: float = CONFIDENCE, bytes_per_token: int | None = None
) -> ModelAnswer:
    """Returns the answer for one model, from a judgement.

    bytes_per_token: size of one token in the KV cache; by default what the server states.
    """
    evidence, memory, gauge = judgement.evidence, judgement.memory, judgement.gauge
    runs, walls, reasons = evidence.runs, judgement.walls, judgement.reasons
    error = (1.0 - confidence) / 2
    held = held_limits(evidence, [wall.name for wall in walls], error=error)
    known = {wall.name for wall in walls} | {limit.name for limit in held}
    unseen = _not_observable(evidence, known)
    warnings = warnings_of(evidence, memory, gauge, walls)
    headline = headline_of(evidence, walls, confidence=confidence) if not reasons else Headline()
    if not reasons and headline.max_users is None:
        reasons = too_few_to_hold(held, evidence.trusted[0])
    if reasons:
        walls = []
    elif headline.max_users is not None:
        warnings += too_few_to_hold(held, evidence.trusted[-1] if headline.at_least else headline.max_users)
    info = runs[-1].info
    per_token = bytes_per_token if bytes_per_token is not None else info.server.kv_bytes_per_token
    return ModelAnswer(
        model=info.model,
        runs=[run.info.run_id for run in runs],
        headline=headline,
        max_in_flight=_users_in_flight(headline.max_users, evidence.active),
        bounds=[_bound(wall, confidence=confidence) for wall in sorted(walls, key=lambda wall: wall.x)],
        not_met=_not_met(evidence, held, left_out={*known, *unseen}),
        not_observable=unseen,
        prefix_cache=_prefix_cache(judgement, confidence=confidence),
        by_latency_alone=latency_alone(judgement, headline, confidence=confidence),
        people=None,
        busiest_hour=None,
        memory=_memory_figures(evidence, memory, gauge, per_token),
        latency=_latency_figures(evidence),
        classes=class_answers(evidence.levels, headline),
        replay=replay_of(runs),
        levels=sorted(evidence.levels, key=lambda level: level.users),
        open_loop=[one for run in runs for one in slices_of(run)],
        failures=failures_of_answer(evidence),
        options=options_of(judgement, walls, headline, per_token),
        refused=bool(reasons),
        incomplete=any(run.info.shortfall is not None for run in runs),
        reasons=reasons,
        warnings=warnings,
        host=info.host,
        server=" ".join(filter(None, [info.server.engine, info.server.version])) or "unknown server",
        gpu=_gpu_text(runs),
        simulated=info.server.simulated,
        workload=_workload(evidence),
        timing_error_s=_timing_error(evidence.levels),
    )


def _users_in_flight(users: int | None, active: ActiveShare) -> int | None:
    if users is None:
        return None
    return users if users == 0 else max(round(users * active(users)), 1)


def _bound(wall: PlacedWall, *, confidence: float) -> Bound:
    low, high = wall.bound((1.0 - confidence) / 2)
    return Bound(
        name=wall.name,
        users=math.floor(wall.x),
        interval=(math.floor(low), math.floor(high)),
        basis=wall.basis,
        users_x=wall.x,
        interval_x=(low, high),
        user_class=wall.user_class,
        rise_x=wall.rise,
    )


def _prefix_cache(judgement: Judgement, *, confidence: float) -> Bound | None:
    """Returns where the prefix cache evicts histories too early, if no objective makes this a wall."""
    if judgement.prefix is None or judgement.reasons:
        return None
    if judgement.evidence.slo.prefix_hit_fraction is not None:
        return None
    return _bound(place_prefix_cache(judgement.evidence, judgement.prefix), confidence=confidence)


def _not_met(
    evidence: Evidence, held: Sequence[HeldLimit], *, left_out: Collection[WallName]
) -> list[WallNotMet]:
    """Returns the limits that were held, and the walls without a limit that were not met. left_out: walls
    without a limit that were met, or that nothing could have shown."""
    if not evidence.trusted:
        return []
    top = evidence.trusted[-1]
    others: list[WallName] = ["throughput", "max_num_seqs"]
    if evidence.slo.prefix_hit_fraction is not None:
        others.append("prefix_cache")
    found = [_limit_not_met(limit, top) for limit in held]
    return found + [WallNotMet(name=name, up_to_users=top) for name in others if name not in left_out]


def _not_observable(evidence: Evidence, known: Collection[WallName]) -> list[WallName]:
    """Returns the walls that nothing in these runs could have shown: those of memory and of slots where no
    scrape of the trusted levels told of a queue, and TPOT and stalls where no time between tokens is known.

    known: walls that were placed, or limits that were bounded.
    """
    trusted = [level for level in evidence.levels if level.trusted]
    if not trusted:
        return []
    found: list[WallName] = []
    if all(math.isnan(level.server.waiting_fraction) for level in trusted):
        found += ["kv_cache", "max_num_seqs"]
    if not any(level.requests.tpot_miss.n for level in trusted):
        found.append("tpot")
    if evidence.slo.stall_p95_s is not None and not any(level.requests.stall_miss.n for level in trusted):
        found.append("stall")
    return [name for name in found if name not in known]


def _limit_not_met(limit: HeldLimit, top: int) -> WallNotMet:
    holds_to, last = limit.holds_to_users, limit.at(top)
    return WallNotMet(
        name=limit.name,
        up_to_users=top,
        user_class=limit.user_class,
        limit=limit.limit,
        holds_to_users=holds_to,
        share_at_most=limit.at(holds_to or 0).share_at_most,
        more_requests=last.more_requests,
        more_s=last.more_s,
    )


def _memory_figures(
    evidence: Evidence, memory: KvCacheWall | None, gauge: Gauge | None, per_token: int | None
) -> MemoryFigures:
    pool = evidence.pool
    vram = [level.server.vram_bytes for level in evidence.levels if not math.isnan(level.server.vram_bytes)]
    own = evidence.runs[-1].info.own_prompts
    pool_bytes = (pool.tokens + pool.block_tokens) * per_token if pool and per_token else None
    mean_blocks, sd_blocks = blocks_of_a_user(memory.holders) if memory else (0.0, 0.0)
    shared = evidence.pairs.shared_prefix if evidence.pairs else None
    tokens = mean_blocks * pool.block_tokens + (shared or 0) if memory and pool else None
    return MemoryFigures(
        pool_tokens=pool.tokens if pool else None,
        tokens_per_user=tokens,
        tokens_per_user_sd=sd_blocks * pool.block_tokens if memory and pool else None,
        shared_prefix_tokens=shared,
        bytes_per_token=per_token,
        vram_base_bytes=round(max(vram)) - pool_bytes if vram and pool_bytes else None,
        vram_bytes_per_user=round((tokens - (shared or 0)) * per_token) if tokens and per_token else None,
        r2=finite_or_none(gauge.r2) if gauge else None,
        gauge_tokens_per_user=gauge.tokens_per_request if gauge else None,
        preempted_fraction_shift=memory.shift.preempted if memory and memory.shift.levels else None,
        pairs=len(evidence.pairs) if evidence.pairs else 0,
        own_prompts_hit_rate=own.hit_fraction if own else None,
    )


def _latency_figures(evidence: Evidence) -> LatencyFigures:
    step_cost = evidence.step_cost
    if step_cost is None:
        return LatencyFigures()
    return LatencyFigures(
        step_base_s=step_cost.step_base_s,
        step_per_seq_s=step_cost.step_per_seq_s,
        prefill_per_token_s=step_cost.prefill_per_token_s,
        knee_users=finite_or_none(step_cost.knee),
    )


def _gpu_text(runs: Sequence[Run]) -> str | None:
    gpu = runs[-1].info.gpu
    if gpu is None or gpu.name is None:
        return None
    return gpu.name if gpu.count == 1 else f"{gpu.count} x {gpu.name}"


def _workload(evidence: Evidence) -> WorkloadSummary:
    settings, pairs = evidence.runs[-1].info.settings, evidence.pairs
    given = {name: str(settings[name]) for name in WORKLOAD_SHOWN if settings.get(name) not in (None, "")}
    if pairs is None:
        return WorkloadSummary(settings=given)
    return WorkloadSummary(
        settings=given,
        requests=len(pairs),
        prompt_mean=float(pairs.prompt.mean()),
        output_mean=float(pairs.output.mean()),
    )


def _timing_error(levels: Sequence[Level]) -> float | None:
    lags = [level.lag_s for level in levels if level.trusted and not math.isnan(level.lag_s)]
    return max(lags) if lags else None
