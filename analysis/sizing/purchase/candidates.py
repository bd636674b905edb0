"""Examines one candidate: replicas of one type of card and one tensor parallelism, without prices.

Bounds take milliseconds and come first, then a load is tried; all limits of a candidate take seconds.
"""

import math
from dataclasses import dataclass
from enum import IntEnum

import numpy as np

from analysis.answers.sizing import FleetCandidate, IntBand, OmittedCandidate, OmittedStatus
from analysis.sizing.answer import sizing_assumptions, sizing_warnings
from analysis.sizing.deployment.planned import serve_flags
from analysis.sizing.engine import SizedEngine, expected_engine, simulated_service, size_engine
from analysis.sizing.flags import SizingFlags
from analysis.sizing.latency.load import simulate_closed_loop
from analysis.sizing.latency.service import planned_bands
from analysis.sizing.predict import DoesNotFitError, FittedPlan, fitted_plan
from analysis.sizing.purchase.bounds import user_bounds
from analysis.sizing.unmet import unmet_objectives, unmet_sentence
from loadtest.errors import InputError

CANDIDATE_LENGTH = 0.3
"""Factor on the requests that are simulated for a candidate: there are many, and their bands are wider."""
CLEARLY = 1.1
"""Factor by which a p95 at the slow end of the band exceeds its objective where a load is clearly too much:
more than its random numbers and the curve between simulated loads account for."""
NEAR_TIME = 2.0
"""Least ratio of the bound by the times of steps to a load at which the load is not tried, for it would be
met. Of 141 candidates of eight workloads, 112 had a bound below so many times their lower end."""
FARTHER = 1.1
"""Factor on a large least number of replicas at which a load is tried, so that it rises in few loads."""


class Look(IntEnum):
    """How closely a candidate is examined."""

    BOUND = 0
    """By averages, in milliseconds."""
    LOAD = 1
    """By a single simulated load, in a quarter of a second."""
    WHOLE = 2
    """With all its figures, in seconds."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CandidateCards:
    """A type of card and the cards of one replica."""

    label: str
    flags: SizingFlags
    """Flags of one replica: they state `gpu` and `tp`."""

    @property
    def tensor_parallel(self) -> int:
        """GPUs over which each layer is split."""
        return self.flags.tp or 1

    @property
    def per_replica(self) -> int:
        """Number of cards of one replica."""
        return self.tensor_parallel * (self.flags.pp or 1)


@dataclass(frozen=True, kw_only=True, slots=True)
class LeastReplicas:
    """What a look at a candidate has shown: it may need so many replicas, and not fewer."""

    replicas: int
    next_look: Look
    """The look that can tell more."""


Examined = LeastReplicas | FleetCandidate | OmittedCandidate
"""What is known of a candidate: the least number of replicas, all of it, or why it is not offered."""


def examine(cards: CandidateCards, users: int, *, look: Look, least: int) -> Examined:
    """Examines a candidate for `users` users. least: number of replicas that it needs at least."""
    try:
        plan = fitted_plan(cards.flags)
    except DoesNotFitError as problem:
        return _omitted(cards, "does_not_fit", str(problem))
    except InputError as problem:
        return _omitted(cards, "impossible", str(problem))
    if look is Look.BOUND:
        return _bounded(plan, users)
    if look is Look.LOAD:
        return load_tried(plan, users, least)
    return _fully_examined(cards, plan, users)


def _bounded(plan: FittedPlan, users: int) -> LeastReplicas:
    bounds = user_bounds(plan)
    least = replicas_of(users, bounds.most)
    near = bounds.by_time < NEAR_TIME * math.ceil(users / least)
    return LeastReplicas(replicas=least, next_look=Look.LOAD if near else Look.WHOLE)


def load_tried(plan: FittedPlan, users: int, least: int) -> LeastReplicas:
    """Simulates the users of one of the least number of replicas: if they are too many, more are needed."""
    each = math.ceil(users / max(int(FARTHER * least), least))
    service = simulated_service(expected_engine(plan.deployment, plan.workload))
    ttft_s, tpot_s = simulate_closed_loop(service, each, length=CANDIDATE_LENGTH).p95_s()
    slow, slo = planned_bands(plan.deployment), plan.workload.slo
    missed = max(ttft_s * slow.ttft[1] / slo.ttft_p95_s, tpot_s * slow.tpot[1] / slo.tpot_p95_s)
    if each == 1 or missed < CLEARLY:
        return LeastReplicas(replicas=least, next_look=Look.WHOLE)
    return LeastReplicas(replicas=replicas_of(users, each - 1), next_look=Look.LOAD)


def _fully_examined(cards: CandidateCards, plan: FittedPlan, users: int) -> FleetCandidate | OmittedCandidate:
    sized = size_engine(plan.deployment, plan.workload, length=CANDIDATE_LENGTH, only_first=True)
    unmet = unmet_objectives(sized)
    if not unmet:
        return _candidate(cards, plan, sized, users)
    where = f"{cards.per_replica} x {cards.label}"
    return OmittedCandidate(
        gpu=cards.label,
        tensor_parallel=cards.tensor_parallel,
        status="objective_not_met",
        why=" ".join(unmet_sentence(objective, where=where) for objective in unmet),
        objectives_unmet=unmet,
    )


def replicas_of(users: int, per_replica: int) -> int:
    """Returns how many replicas hold `users`, if each holds `per_replica` whole users."""
    return max(math.ceil(users / per_replica), 1)


def _omitted(cards: CandidateCards, status: OmittedStatus, why: str) -> OmittedCandidate:
    return OmittedCandidate(gpu=cards.label, tensor_parallel=cards.tensor_parallel, status=status, why=why)


def _not_sure(cards: CandidateCards, estimate: int) -> OmittedCandidate:
    return _omitted(
        cards,
        "not_sure",
        f"The lower end of the band is below one user on {cards.per_replica} x {cards.label} (estimate "
        f"{estimate}): no number of replicas is sure to hold any.",
    )


def _candidate(
    cards: CandidateCards, plan: FittedPlan, sized: SizedEngine, users: int
) -> FleetCandidate | OmittedCandidate:
    low, x, high = sized.users_band
    each: IntBand = (math.floor(low), math.floor(x), math.floor(high))
    if each[0] < 1:
        return _not_sure(cards, each[1])
    replicas = replicas_of(users, each[0])
    count, gpu = replicas * cards.per_replica, plan.deployment.gpu
    power_w = None if gpu.power_w is None else count * gpu.power_w
    return FleetCandidate(
        gpu=cards.label,
        tensor_parallel=plan.deployment.tp,
        pipeline_parallel=plan.deployment.pp,
        max_model_len=plan.deployment.max_model_len,
        users_per_replica=each,
        users_per_replica_x=sized.users_band,
        binding=sized.binding_wall.name,
        replicas=replicas,
        replicas_by_estimate=replicas_of(users, each[1]),
        replicas_perhaps=replicas_of(users, each[2]),
        cards=count,
        vram_bytes=count * gpu.vram_bytes,
        capacity_users=(replicas * each[0], replicas * each[1], replicas * each[2]),
        headroom_fraction=round(replicas * each[0] / users - 1, 4),
        output_tok_s=users * _user_tok_s(sized, math.ceil(users / replicas)),
        power_w=power_w,
        energy_at_most_kwh_per_hour=None if power_w is None else power_w / 1000,
        vllm_flags=serve_flags(plan.deployment, cards.flags.quantization),
        assumptions=sizing_assumptions(plan.deployment, plan.workload, planned_bands(plan.deployment)),
        warnings=[*plan.notes, *sizing_warnings(sized, unmet=())],
    )


def _user_tok_s(sized: SizedEngine, users: int) -> float:
    """Returns the output tokens a second of one of `users` users of a replica, on average.

    A user gets an answer in R + Z seconds: Z is the pause, R the duration of a request. Without pauses the
    engine is simulated.
    """
    if sized.pace.thinks:
        requests_s = sized.pace.requests_each(users * sized.pace.active(users))
        outputs = [float(one.output.mean()) for one in sized.workload.classes]
        return float(np.sum(sized.workload.user_shares * requests_s * outputs))
    return simulate_closed_loop(sized.service, users, length=CANDIDATE_LENGTH).output_tok_s / users
