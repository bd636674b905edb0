"""Simulates TTFT and TPOT at several numbers of users, with an unlimited KV-cache pool.

Finds the numbers of users at which TTFT and TPOT cross their objectives.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.sizing.deployment.planned import PlannedDeployment
from analysis.sizing.step_model import SPEED_BAND, StepModel
from analysis.sizing.workload import LENGTH_PAIRS, PlannedWorkload
from loadtest.simulator.engine.requests import Request
from loadtest.simulator.virtual import EngineTrace, closed_loop

MIN_P95_REQUESTS = 120
"""Least number of requests from which a p95 is taken."""
LOAD_FACTOR = 1.5
"""Ratio of neighbouring numbers of users that are simulated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyCurve:
    """Simulated p95 of TTFT and TPOT, seconds, for increasing numbers of users."""

    users: tuple[int, ...]
    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    reach: float
    """Largest number of users that is simulated."""

    def crossings(
        self, seconds: Sequence[float], objective_s: float, *, scale: float = 1.0
    ) -> tuple[float, float, float]:
        """Finds the number of users at which a p95 crosses its objective; infinite if it never does.

        Returns lower end, estimate and upper end. At the lower end, engine steps take SPEED_BAND times as
        long as predicted; at the upper end, they take 1 / SPEED_BAND of that time.

        seconds: the p95s of the curve, ttft_s or tpot_s. scale: factor on these p95s.
        """
        rising = np.log(np.maximum(np.maximum.accumulate(seconds), 1e-9))
        low, x, high = (
            float(
                np.interp(math.log(objective_s / scale * speed), rising, self.users, left=0.0, right=math.inf)
            )
            for speed in (1 / SPEED_BAND, 1.0, SPEED_BAND)
        )
        return low, x, high


def simulate_curve(
    deployment: PlannedDeployment, steps: StepModel, workload: PlannedWorkload, *, reach: float
) -> LatencyCurve:
    """Simulates p95 of TTFT and TPOT at fewer and fewer users, starting at `reach`; returns the curve.

    Stops at the first number of users that meets both objectives even with all times multiplied by
    SPEED_BAND, or at one user.
    """
    slo, users = workload.slo, max(int(reach), 1)
    loads: list[tuple[int, float, float]] = []
    while True:
        ttft_s, tpot_s = simulate_p95_s(deployment, steps, workload, users)
        loads.append((users, ttft_s, tpot_s))
        met = ttft_s * SPEED_BAND < slo.ttft_p95_s and tpot_s * SPEED_BAND < slo.tpot_p95_s
        if users == 1 or met:
            break
        users = max(int(users / LOAD_FACTOR), 1)
    numbers, ttfts_s, tpots_s = zip(*reversed(loads), strict=True)
    return LatencyCurve(users=numbers, ttft_s=ttfts_s, tpot_s=tpots_s, reach=reach)


def simulate_p95_s(
    deployment: PlannedDeployment, steps: StepModel, workload: PlannedWorkload, users: int
) -> tuple[float, float]:
    """Simulates `users` users on an engine whose KV-cache pool is never a limit.

    Returns the p95 of TTFT and the p95 of TPOT, seconds.
    """
    rng = random.Random(users)
    wanted = users + min(max(2 * users, MIN_P95_REQUESTS), LENGTH_PAIRS // 2)
    order = np.resize(np.arange(len(workload.prompt)), wanted)
    requests = (
        Request(prompt_tokens=int(workload.prompt[pair]), output_tokens=int(workload.output[pair]))
        for pair in order
    )
    thinks = workload.think.mean > 0
    cycle_s = float(workload.output.mean()) * steps.base_s(users) + workload.think.mean
    trace = closed_loop(
        steps.engine(deployment, min(users, deployment.max_num_seqs)),
        requests,
        users=users,
        think_s=(lambda: workload.think.draw(rng)) if thinks else None,
        start_spread_s=cycle_s,
    )
    return _p95_s(trace, skip=users)


def _p95_s(trace: EngineTrace, *, skip: int) -> tuple[float, float]:
    """Returns the p95 of TTFT and the p95 of TPOT, seconds.

    The first `skip` requests are left out, because they meet an empty server. TPOT is 0 if every request has
    a single token.
    """
    requests = trace.requests[skip:] or trace.requests
    ttft_s = [(request.first_token_s or 0.0) - request.arrival_s for request in requests]
    tpot_s = [
        ((request.end_s or 0.0) - (request.first_token_s or 0.0)) / (request.output_tokens - 1)
        for request in requests
        if request.output_tokens > 1
    ]
    return float(np.quantile(ttft_s, 0.95)), float(np.quantile(tpot_s, 0.95)) if tpot_s else 0.0
