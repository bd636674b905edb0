"""Bounds the users of one replica by averages, in milliseconds and without simulating anything."""

import math
from collections.abc import Callable

from analysis.memory.formula_shift import FAR_USERS
from analysis.sizing.deployment.pool import pool_band
from analysis.sizing.engine import active_share, read_bytes_per_token
from analysis.sizing.latency.service import planned_step_time
from analysis.sizing.predict import FittedPlan
from analysis.sizing.workload import planned_block_distribution


def most_users(plan: FittedPlan) -> int:
    """Returns a number of users that no estimate of the limit exceeds, at least 1.

    With that many users, the mean number of requests in flight reaches the slots, or the requests whose mean
    blocks fill the pool; or a step that only decodes them takes as long as the objective of TPOT allows.
    """
    deployment, workload = plan.deployment, plan.workload
    band = pool_band(deployment)
    distribution = planned_block_distribution(workload, band.layout)
    steps = planned_step_time(
        deployment, kv_bytes_per_token=read_bytes_per_token(band, distribution, workload)
    )
    active = active_share(steps, workload)
    held, output = workload.mean_held_tokens, float(workload.output.mean())
    in_flight = min(deployment.max_num_seqs, band.blocks[1] / distribution.mean)

    def step_s(sequences: float) -> float:
        return steps.decode_s(sequences, held)

    in_time = _largest(lambda n: step_s(n) <= workload.slo.tpot_p95_s)
    by_memory = _largest(lambda users: users * active(users) <= in_flight) + 1
    by_time = (in_time + 1) * (1 + workload.think.mean / (output * step_s(in_time)))
    return max(min(by_memory, math.ceil(by_time)), 1)


def _largest(holds: Callable[[int], bool]) -> int:
    """Returns the largest number from 1 to FAR_USERS for which a falling condition holds; 1 if for none."""
    low, high = 1, 2
    while high < FAR_USERS and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low
