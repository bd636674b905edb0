"""Bounds the users of one replica by averages, in milliseconds and without simulating anything."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from analysis.sizing.engine import ExpectedEngine, expected_engine, largest_number, users_in_flight
from analysis.sizing.latency.service import planned_bands
from analysis.sizing.predict import FittedPlan

SIMULATED = 1.05
"""Factor on the bound by the times of steps: the random numbers of a simulation may move its limit by so
much. Of 141 candidates of eight workloads one was above the bound without it, by 0.4 %."""


@dataclass(frozen=True, kw_only=True, slots=True)
class UserBounds:
    """Numbers of users of one replica that the lower end of its limit does not exceed."""

    by_memory: int
    """By slots and KV blocks."""
    by_time: int
    """By the times of steps."""

    @property
    def most(self) -> int:
        """The smaller number, at least 1."""
        return max(min(self.by_memory, self.by_time), 1)


def user_bounds(plan: FittedPlan) -> UserBounds:
    """Bounds the lower end of the limit of users.

    With the smaller number of users, the mean number of requests in flight reaches the slots, or the requests
    whose mean blocks fill the smallest pool of the band; or a mean step takes as long as the objective of
    TPOT allows at the slow end of the band. Until a request decodes it waits at most as long as the objective
    of TTFT allows.
    """
    deployment, workload = plan.deployment, plan.workload
    engine, slow = expected_engine(deployment, workload), planned_bands(deployment)
    pace, step_s = engine.pace, _mean_step_s(engine)
    smallest = engine.requests_in_pool * engine.band.blocks[0] / engine.band.blocks[1]
    by_memory = users_in_flight(min(deployment.max_num_seqs, smallest), pace.active) + 1

    # Answers of a single token have no time per output token.
    decoding = [one.output.max() > 1 for one in workload.classes]
    tpot_s = min(
        (slo.tpot_p95_s for slo, many in zip(workload.slos, decoding, strict=True) if many), default=math.inf
    )
    in_time = largest_number(lambda n: step_s(n) * slow.tpot[1] <= tpot_s)
    decoding_s = np.array([one.output.mean() for one in workload.classes]) * step_s(in_time)
    others_s = [
        one.mean_pause_s + slo.ttft_p95_s / slow.ttft[1]
        for one, slo in zip(workload.classes, workload.slos, strict=True)
    ]
    by_time = (in_time + 1) / float(workload.user_shares @ (decoding_s / (decoding_s + others_s)))
    return UserBounds(by_memory=by_memory, by_time=math.ceil(SIMULATED * by_time))


def _mean_step_s(engine: ExpectedEngine) -> Callable[[float], float]:
    """Returns a function: number of decoding sequences -> mean time of a step, seconds, at the least.

    Each token of an answer is a step, so a sequence brings one prompt in as many steps as its answer has
    tokens.
    A step's time is convex in the tokens of prompts that it computes: the mean is least if all steps compute
    equally many. The weights of experts that only prompts need are left out, for in them it is concave.
    """
    steps, classes = engine.steps, engine.workload.classes
    held = np.array([one.mean_held_tokens for one in classes])
    begun = np.array([1.0 / one.output.mean() for one in classes])
    computed = [one.computed_tokens for one in classes]
    tokens = begun * [float(each.mean()) for each in computed]
    pairs = begun * [
        float(np.mean(each * (one.prompt - each / 2))) for one, each in zip(classes, computed, strict=True)
    ]

    def mean_s(sequences: float) -> float:
        each = sequences * engine.pace.shares_in_flight(sequences)
        decoding = replace(steps, dense_s=steps.weights_s(sequences), experts_s=0.0)
        return decoding.seconds(
            decodes=sequences,
            prefills=float(each @ begun),
            kv_tokens=float(each @ held),
            prefill_tokens=float(each @ tokens),
            pairs=float(each @ pairs),
        )

    return mean_s
