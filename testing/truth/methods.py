"""Methods to find the maximum number of users of a service in virtual time: ours, and those in common use."""

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
_SHORTEST_S = 10.0  # shortest time of a sweep's level after settling: ten scrapes
FULL = 0.8  # KV usage above which a waiting request is taken to wait for blocks
REFUSED_FOR_CONTENT = 400
MAX_FAILED = 0.01  # share of requests that may fail for other reasons than their content
CLEARLY_LESS = 0.95  # times the throughput with half the users: a level that has passed a wall
SWEEP_LEVELS = 4  # levels between the last that held and the first that did not
SWEEP_ANSWERS = (15.0, 60.0)  # shortest and longest level of a sweep after settling, in response times


@dataclass(frozen=True, kw_only=True, slots=True)
class MethodResult:
    """A method's result and its cost in seconds of GPU time."""

    gpu_s: float
    x: float
    """Estimate of the maximum in real-valued users."""
    users: int
    """The number of users that it recommends: the highest level that held."""


def answer_duration_s(one: VirtualDeployment) -> float:
    """Returns the approximate seconds of an answer at the wall."""
    return one.traits["output"] * one.traits["step_s"]


def sweep(one: VirtualDeployment) -> tuple[VirtualLoad, ModelAnswer]:
    """Doubles the users until a level is past a wall, then holds levels spread evenly between the last two.

    Past a wall is what `_holds` says, or a level with clearly less throughput than the one before. Returns
    the load and the answer.
    """
    load = VirtualLoad(one.service, one.slo, seed=SEEDS["sweep"] + one.number)
    answers = random.Random(f"sweep/{one.number}").uniform(*SWEEP_ANSWERS)
    level_s = SETTLE_S + max(_SHORTEST_S, answers * answer_duration_s(one))
    held, users, tokens = 0, 1, 0.0
    while users <= MAX_METHOD_USERS:
        load.hold(users, level_s)
        run = load.run()
        before, tokens = tokens, _tokens_in_last_level(run)
        if not _holds(run, one, users=users) or tokens < CLEARLY_LESS * before:
            break
        held, users = users, 2 * users
    for share in range(1, SWEEP_LEVELS + 1):
        between = round(held + (users - held) * share / (SWEEP_LEVELS + 1))
        if between not in (0, held, users):
            load.hold(between, level_s)
    load.finish()
    return load, recommend([load.run()], slo=one.slo)


def search(one: VirtualDeployment, *, budget_s: float) -> Iterator[tuple[VirtualLoad, Judgement]]:
    """Runs our search to its end. Yields the load and its judgement after each look."""
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
    """Returns the estimate of users; the highest trusted level if no wall was met; nan if it is refused."""
    if seen.reasons or not seen.evidence.trusted:
        return math.nan
    head = headline_of(seen.evidence, seen.walls, confidence=CONFIDENCE)
    return head.estimate_x if head.estimate_x is not None else float(seen.evidence.trusted[-1])


def bisection(one: VirtualDeployment, *, requests: int, a_user: int = 0) -> MethodResult:
    """Doubles the users, then halves the bracket until it is one user wide.

    Each probe starts with an idle server and is judged by its own percentiles and counters. It leaves out as
    many requests as it has users. Then it counts `requests`, or `a_user` times its users.
    """
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
    """Raises the users by the factor `ratio`, from one user to the first level that does not hold.

    Each level counts `requests` requests. The estimate is the geometric mean of the last two levels.
    """
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
    """Whether the level of `users` keeps every objective by its own percentiles and counters.

    The first `users` requests are left out. Percentiles are those of the requests that were answered.
    """
    begin, end, _ = next(level for level in run.info.schedule if level[2] == users)
    rows, slo = run.requests, one.slo
    inside = np.flatnonzero((rows.start_unix_s >= begin) & (rows.end_unix_s <= end))
    kept = inside[np.argsort(rows.end_unix_s[inside], kind="stable")][users:]
    if not len(kept):
        return True
    failed = rows.failed[kept] & (rows.http_status[kept] != REFUSED_FOR_CONTENT)
    if not rows.ok[kept].any() or failed.mean() > MAX_FAILED:
        return False
    kept = kept[rows.ok[kept]]
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


def _tokens_in_last_level(run: Run) -> float:
    """Returns the output tokens of the requests that ended in the last level. All levels have one length."""
    begin, end, _ = run.info.schedule[-1]
    rows = run.requests
    return float(rows.tokens[(rows.end_unix_s > begin) & (rows.end_unix_s <= end)].sum())
