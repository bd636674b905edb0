"""Changes of the deployment that would raise the answer.

Each change states the users that it would add, if a model can tell the number.
"""

import math
from collections.abc import Sequence

import numpy as np

from analysis.answers.capacity import Headline, Option
from analysis.capacity.headline import REACH
from analysis.capacity.judgement import Judgement
from analysis.evidence.evidence import Evidence
from analysis.memory.block_distribution import Holders, Occupancy, holders_of
from analysis.memory.formula_shift import kv_wall_users
from analysis.notes import (
    FasterGateway,
    Fp8Cache,
    LargerPool,
    LessRefusal,
    LighterWork,
    Note,
    OffloadHistories,
    RaiseMaxNumSeqs,
    RaiseMemoryUtilization,
    SecondReplica,
    ShorterContext,
    ShorterHistories,
    SmallerTokenBudget,
)
from analysis.walls.kv_cache import KvCacheWall
from analysis.walls.placed import PlacedWall

MAX_UTILIZATION = 0.95  # above this, peaks at vLLM's start do not fit
LEAST_GAIN = 0.1  # users that an option must add to be named
BEFORE_ENGINE = 0.5  # share of the mean TTFT before the engine, from which on the engine is not the cause
LONG_PROMPT = 0.995  # quantile of the prompts whose computation is compared with the objective for stalls
STALLED_BY_PROMPTS = 0.5  # share of the objective that it must take: the rest is the usual step, and others
CUT_SHARE = 0.05  # share of requests that the suggested max_model_len would cut


def options_of(
    judgement: Judgement, walls: Sequence[PlacedWall], headline: Headline, per_token: int | None
) -> list[Option]:
    """Returns the changes of the deployment that would raise the answer; none if there is no estimate.

    Each option holds the number of users that the change adds, or None if no model can tell the number.
    """
    if headline.estimate is None or headline.estimate_x is None:
        return []
    evidence, memory, prefix = judgement.evidence, judgement.memory, judgement.prefix
    found = []
    others = [wall for wall in walls if wall.name != headline.binding]
    reach = REACH * evidence.trusted[-1]
    if headline.binding == "kv_cache" and memory is not None:
        for change, factor in _bigger_pools(evidence, per_token):
            found.append(
                _option(change, _wall_with(memory, evidence, factor), others, headline.estimate, reach)
            )
        longest, moved = _wall_with_cut_lengths(memory, evidence)
        if math.floor(moved) > headline.estimate:
            change = ShorterContext(max_model_len=longest, cut_share=CUT_SHARE)
            found.append(_option(change, moved, others, headline.estimate, reach))
    elif headline.binding == "prefix_cache" and prefix is not None:
        for change, factor in _bigger_pools(evidence, per_token):
            moved = prefix.with_pool(factor)
            if math.isfinite(moved) or others:
                found.append(_option(change, moved, others, headline.estimate, reach))
        found += [_option_without_model(OffloadHistories()), _option_without_model(ShorterHistories())]
    elif headline.binding == "max_num_seqs" and others:
        found.append(_option(RaiseMaxNumSeqs(), math.inf, others, headline.estimate, reach))
    elif headline.binding == "ttft" and (way := slow_way_to_engine(evidence, headline.estimate_x)):
        return [_option_without_model(way)]
    elif headline.binding in ("ttft", "tpot", "stall", "throughput"):
        if headline.binding == "stall" and _prompts_stall(evidence):
            found.append(_option_without_model(SmallerTokenBudget()))
        found.append(_option_without_model(LighterWork()))
    elif headline.binding == "errors":
        found.append(_option_without_model(LessRefusal()))
    if headline.binding != "errors":  # a gateway before all replicas would turn away as many
        found.append(_second_replica(headline.estimate_x, histories=headline.binding == "prefix_cache"))
    return [option for option in found if _moves(option, headline.estimate_x)]


def slow_way_to_engine(evidence: Evidence, limit_x: float) -> FasterGateway | None:
    """Returns the option of a faster way to the engine, if most of the time to the first token passes before
    the engine.

    It is judged at the lowest trusted level beyond the limit of `limit_x` users, or else at the highest one.
    None also where the engine has no histogram of its own TTFT.
    """
    known = [
        level
        for level in sorted(evidence.levels, key=lambda level: level.users)
        if level.trusted and level.requests.ttft_mean_s > 0.0 and level.server.ttft_mean_s >= 0.0
    ]
    if not known:
        return None
    level = next((one for one in known if one.users >= limit_x), known[-1])
    client_s, engine_s = level.requests.ttft_mean_s, level.server.ttft_mean_s
    if engine_s > (1.0 - BEFORE_ENGINE) * client_s:
        return None
    return FasterGateway(users=level.users, ttft_s=client_s, engine_s=engine_s)


def _prompts_stall(evidence: Evidence) -> bool:
    """Whether computing one of the longest prompts takes long enough to explain the stalls, on a vLLM."""
    cost, pairs, limits = evidence.step_cost, evidence.pairs, evidence.objectives.values()
    if cost is None or cost.prefill_per_token_s is None or pairs is None:
        return False
    longest_s = cost.prefill_per_token_s * float(np.quantile(pairs.own_prompt, LONG_PROMPT))
    shortest_s = min((one.stall_p95_s for one in limits if one.stall_p95_s is not None), default=math.inf)
    return evidence.runs[-1].info.server.engine == "vllm" and longest_s > STALLED_BY_PROMPTS * shortest_s


def _moves(option: Option, limit_x: float) -> bool:
    """Whether an option raises the limit of `limit_x` users, as far as a model can tell."""
    return option.users_x is None or option.users_x > limit_x + LEAST_GAIN


def _second_replica(limit_x: float, *, histories: bool) -> Option:
    twice = math.floor(2 * limit_x)
    return Option(
        change=SecondReplica(keep_conversations=histories),
        users=twice,
        users_x=2 * limit_x,
        gain_users=twice - math.floor(limit_x),
        limited_by=None,
    )


def _option_without_model(change: Note) -> Option:
    return Option(change=change, users=None, users_x=None, gain_users=None, limited_by=None)


def _bigger_pools(evidence: Evidence, per_token: int | None) -> list[tuple[Note, float]]:
    """Returns pairs: a change that enlarges the KV-cache pool, and the factor by which the pool grows."""
    info = evidence.runs[-1].info
    found: list[tuple[Note, float]] = []
    used, vram = info.server.gpu_memory_utilization, info.gpu.vram_bytes if info.gpu else None
    if (
        evidence.pool is not None
        and used is not None
        and vram
        and per_token
        and used < MAX_UTILIZATION - 0.005
    ):
        more = (MAX_UTILIZATION - used) * vram / per_token
        change = RaiseMemoryUtilization(to=MAX_UTILIZATION, now=used)
        found.append((change, 1.0 + more / evidence.pool.tokens))
    else:
        found.append((LargerPool(by=0.1), 1.1))
    if "fp8" not in (info.server.cache_dtype or ""):
        found.append((Fp8Cache(), 2.0))
    return found


def _wall_with(memory: KvCacheWall, evidence: Evidence, factor: float) -> float:
    return _moved(memory, evidence, memory.holders, int(memory.blocks * factor))


def _moved(memory: KvCacheWall, evidence: Evidence, holders: Sequence[Holders], blocks: int) -> float:
    """Returns the number of users at which the KV cache would be the limit after a change of the deployment.

    holders: users with their request lengths after the change. blocks: pool size after the change. The
    formula keeps the correction (`memory.shift`) that the measurements gave.
    """
    occupancy = Occupancy(holders, blocks)
    start = max(int(memory.x * blocks / memory.blocks / memory.pool.engines), 1)
    return kv_wall_users(occupancy, evidence.slo, shift=memory.shift, start=start) * memory.pool.engines


def _wall_with_cut_lengths(memory: KvCacheWall, evidence: Evidence) -> tuple[int, float]:
    """Returns a shorter context length, and the users at the KV-cache wall with this length.

    One in twenty measured requests (prompt and answer together) is longer than this length, in tokens. The
    estimate leaves out the prompts that do not fit, and cuts off the answers that do not fit.
    """
    pairs = evidence.pairs
    assert pairs is not None
    longest = math.ceil(np.quantile(pairs.prompt + pairs.output, 1.0 - CUT_SHARE))
    holders = holders_of(
        pairs.cut(longest), block_tokens=memory.pool.block_tokens, thinking=evidence.thinking_per_engine
    )
    return longest, _moved(memory, evidence, holders, memory.blocks)


def _option(change: Note, moved: float, others: Sequence[PlacedWall], estimate: int, reach: float) -> Option:
    """Builds the option of a change that moves the binding wall (the present limit) to `moved` users.

    If another wall lies below `moved`, this other wall limits the option. others: all walls but the binding
    one. estimate: the users that the deployment holds now. reach: above this number of users, the option is
    marked as far from anything measured.
    """
    next_wall = min(others, key=lambda wall: wall.x, default=None)
    limited = next_wall is not None and next_wall.x < moved
    users_x = next_wall.x if next_wall is not None and limited else moved
    users = math.floor(users_x)
    return Option(
        change=change,
        users=users,
        users_x=users_x,
        gain_users=users - estimate,
        limited_by=next_wall.name if next_wall is not None and limited else None,
        beyond=users > reach,
    )
