"""Ways to find the maximum number of users on a service in virtual time: ours, and those in common use."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from analysis.answers.capacity import ModelAnswer
from analysis.capacity.answer import recommend
from analysis.capacity.headline import CONFIDENCE, headline_of
from analysis.capacity.judgement import Judgement, judge
from analysis.levels.definitions import tpot_s
from analysis.reading.runs import Run
from analysis.search.advice import advise
from testing.truth.deployments import VirtualDeployment
from testing.truth.virtual_load import SETTLE_S, VirtualLoad

MAX_METHOD_USERS = 1024
SEEDS = {"sweep": 10_000_000, "search": 20_000_000, "probe": 30_000_000}
_SHORTEST_S = 10.0  # ten scrapes of the server
FULL = 0.8  # of the pool in use: a queue is then for blocks
SWEEP_LEVELS = 4  # between the last level that held and the first that did not
SWEEP_ANSWERS = (
    15.0,
    60.0,
)  # response times that a sweep holds its levels, besides settling: 30 s to 2 min of 2 s


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodResult:
    """What a method says after so much time on the GPU."""

    gpu_s: float
    x: float
    """Real-valued users."""
    users: int
    """What it recommends: the highest level that held."""


def answer_duration_s(one: VirtualDeployment) -> float:
    """About how long an answer takes at the wall."""
    return one.traits["output"] * one.traits["step_s"]


def sweep(one: VirtualDeployment) -> tuple[VirtualLoad, ModelAnswer]:
    """Doubling levels until the first past a wall, then levels spread evenly between the last two."""
    load = VirtualLoad(one.service, one.slo, seed=SEEDS["sweep"] + one.number)
    answers = random.Random(f"sweep/{one.number}").uniform(*SWEEP_ANSWERS)
    level_s = SETTLE_S + max(_SHORTEST_S, answers * answer_duration_s(one))
    held, users = 0, 1
    while users <= MAX_METHOD_USERS:
        load.hold(users, level_s)
        if not _holds(load.run(), one, users=users):
            break
        held, users = users, 2 * users
    for share in range(1, SWEEP_LEVELS + 1):
        between = round(held + (users - held) * share / (SWEEP_LEVELS + 1))
        if between not in (0, held, users):
            load.hold(between, level_s)
    load.finish()
    return load, recommend([load.run()], slo=one.slo)


def search(one: VirtualDeployment, *, budget_s: float) -> Iterator[tuple[VirtualLoad, Judgement]]:
    """Our search: the load and its judgement at each look, the last one when it is over."""
    load = VirtualLoad(one.service, one.slo, seed=SEEDS["search"] + one.number)
    seen = judge([load.run()], slo=one.slo, quick=True)
    holding, since_s = None, 0.0
    while True:
        advice = advise(seen, holding=holding, held_s=load.now_s - since_s, left_s=budget_s - load.now_s)
        if advice.users is None:
            return
        if advice.users != holding:
            holding, since_s = advice.users, load.now_s
        load.hold(holding, advice.look_s)
        seen = judge([load.run()], slo=one.slo, quick=True)
        yield load, seen


def judged_estimate(seen: Judgement) -> float:
    """Users by a judgement: the highest level that held where no wall was met, nan where it cannot say."""
    if seen.reasons or not seen.evidence.trusted:
        return math.nan
    head = headline_of(seen.evidence, seen.walls, confidence=CONFIDENCE)
    return head.estimate_x if head.estimate_x is not None else float(seen.evidence.trusted[-1])


def bisection(one: VirtualDeployment, *, requests: int, a_user: int = 0) -> MethodResult:
    """Doubling, then halving, to whole users. A probe begins with an idle server, is judged by its own
    percentiles and counters, and counts `requests`, or `a_user` times its users, after one of each user."""
    spent_s = 0.0

    def holds(users: int) -> bool:
        nonlocal spent_s
        load = VirtualLoad(
            one.service, one.slo, seed=SEEDS["probe"] + 1000 * one.number + users, settle_s=0.0
        )
        wanted = users + (a_user * users if a_user else requests)
        step_s = max(answer_duration_s(one) / 2, 0.5)
        while load.ended < wanted:
            load.hold(users, step_s)
        spent_s += load.now_s
        return _holds(load.run(), one, users=users)

    low, high = 0, 1
    while high <= MAX_METHOD_USERS and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return MethodResult(gpu_s=spent_s, x=low + 0.5, users=low)


def fixed_sweep(one: VirtualDeployment, *, ratio: float, requests: int) -> MethodResult:
    """Levels a factor apart, from one user until the first that does not hold; the answer lies between the
    last two."""
    spent_s, held, users = 0.0, 0, 1
    while users <= MAX_METHOD_USERS:
        load = VirtualLoad(
            one.service, one.slo, seed=SEEDS["probe"] + 1000 * one.number + users, settle_s=0.0
        )
        while load.ended < users + requests:
            load.hold(users, max(answer_duration_s(one) / 2, 0.5))
        spent_s += load.now_s
        if not _holds(load.run(), one, users=users):
            break
        held, users = users, max(round(users * ratio), users + 1)
    return MethodResult(gpu_s=spent_s, x=math.sqrt(max(held, 0.5) * users), users=held)


def _holds(run: Run, one: VirtualDeployment, *, users: int) -> bool:
    """Whether the level of so many users keeps every objective, by its own percentiles and counters. As many
    requests as there are users are left out first."""
    begin, end, _ = next(level for level in run.info.schedule if level[2] == users)
    rows, slo = run.requests, one.slo
    inside = np.flatnonzero((rows.start_unix_s >= begin) & (rows.end_unix_s <= end))
    kept = inside[np.argsort(rows.end_unix_s[inside], kind="stable")][users:]
    if not len(kept):
        return True
    ttft = rows.first_chunk_s[kept]
    tpot = tpot_s(
        first_chunk_s=rows.first_chunk_s[kept],
        last_chunk_s=rows.last_chunk_s[kept],
        output_tokens=rows.output_tokens[kept],
        first_chunk_tokens=rows.first_chunk_tokens[kept],
    )
    scrapes = (run.server.unix_s >= begin) & (run.server.unix_s <= end)
    counter = run.server.preemptions_total[scrapes]
    preempted = (counter[-1] - counter[0]) / len(inside) if len(counter) > 1 else 0.0
    full = run.server.kv_cache_usage[scrapes] > FULL
    blocked = float(np.mean((run.server.waiting[scrapes] > 0) & full)) if scrapes.any() else 0.0
    return bool(
        np.quantile(ttft, 0.95) <= slo.ttft_p95_s
        and (np.isnan(tpot).all() or np.nanquantile(tpot, 0.95) <= slo.tpot_p95_s)
        and preempted <= slo.preempted_fraction
        and blocked <= slo.kv_blocked_fraction
    )
