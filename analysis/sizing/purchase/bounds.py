"""Bounds the users of one replica by averages, in milliseconds and without simulating anything."""

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from analysis.sizing.deployment.pool import pool_band
from analysis.sizing.engine import active_share, largest_number, read_bytes_per_token, users_in_flight
from analysis.sizing.latency.service import planned_bands, planned_step_time
from analysis.sizing.predict import FittedPlan
from analysis.sizing.workload import PlannedWorkload, planned_block_distribution
from analysis.statistics.arrays import Floats
from loadtest.model.step_time import PredictedStepTime

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
    band, slo = pool_band(deployment), workload.slo
    distribution = planned_block_distribution(workload, band.layout)
    steps = planned_step_time(
        deployment, kv_bytes_per_token=read_bytes_per_token(band, distribution, workload)
    )
    active = active_share(steps, workload)
    slow, output, longest = planned_bands(deployment), float(workload.output.mean()), workload.output.max()
    in_flight = min(deployment.max_num_seqs, band.blocks[0] / distribution.mean)
    step_s = _mean_step_s(steps, workload)

    # Answers of a single token have no time per output token.
    in_time = largest_number(lambda n: longest < 2 or step_s(n) * slow.tpot[1] <= slo.tpot_p95_s)
    by_memory = users_in_flight(in_flight, active) + 1
    not_decoding_s = workload.think.mean + slo.ttft_p95_s / slow.ttft[1]
    by_time = (in_time + 1) * (1 + not_decoding_s / (output * step_s(in_time)))
    return UserBounds(by_memory=by_memory, by_time=math.ceil(SIMULATED * by_time))


def _mean_step_s(steps: PredictedStepTime, workload: PlannedWorkload) -> Callable[[float], float]:
    """Returns a function: number of decoding sequences -> mean time of a step, seconds, at the least.

    Each token of an answer is a step, so a sequence brings one prompt in as many steps as its answer has
    tokens.
    A step's time is convex in the tokens of prompts that it computes: the mean is least if all steps compute
    equally many. The weights of experts that only prompts need are left out, for in them it is concave.
    """
    held, output = workload.mean_held_tokens, float(workload.output.mean())
    computed = _computed_tokens(workload)
    tokens, pairs = float(computed.mean()), float(np.mean(computed * (workload.prompt - computed / 2)))

    def mean_s(sequences: float) -> float:
        begun = sequences / output
        decoding = replace(steps, dense_s=steps.weights_s(sequences), experts_s=0.0)
        return decoding.seconds(
            decodes=sequences,
            prefills=begun,
            kv_tokens=sequences * held,
            prefill_tokens=begun * tokens,
            pairs=begun * pairs,
        )

    return mean_s


def _computed_tokens(workload: PlannedWorkload) -> Floats:
    """Returns the tokens of each prompt that the prefix cache cannot hold, at least 1. Shape (n,)."""
    prompt = workload.prompt.astype(np.float64)
    history = np.full(len(prompt), float(workload.shared_prefix_tokens))
    follows = np.flatnonzero(np.diff(workload.conversation) == 0) + 1
    history[follows] = prompt[follows - 1] + workload.output[follows - 1]
    computed: Floats = np.maximum(prompt - history, 1.0)
    return computed
