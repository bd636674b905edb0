"""TTFT and TPOT over users on a simulated engine whose pool never limits, and where they cross objectives."""

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
"""Requests that a p95 is taken from, at least."""
LOAD_FACTOR = 1.5
"""Ratio of two neighbouring numbers of users that are simulated."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyCurve:
    """p95 of TTFT and TPOT at rising numbers of users, as simulated."""

    users: tuple[int, ...]
    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    reach: float
    """Users beyond which nothing was simulated."""

    def crossings(
        self, seconds: Sequence[float], objective_s: float, *, scale: float = 1.0
    ) -> tuple[float, float, float]:
        """Users at which a p95 crosses its objective, inf where it does not: on a machine slower by
        SPEED_BAND, on the assumed one, and on a faster one. All times scale with the step times, so a band of
        speed is a band of the objective.

        seconds: ttft_s or tpot_s. scale: factor by which all times are longer.
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
    """The curve from `reach` users down to a load that meets both objectives on a slow machine too."""
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
    """p95 of TTFT and of TPOT in seconds, for so many users on an engine whose pool never limits."""
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
    """p95 of TTFT and TPOT without the first request of every user, which starts in an empty server."""
    requests = trace.requests[skip:] or trace.requests
    ttft_s = [(request.first_token_s or 0.0) - request.arrival_s for request in requests]
    tpot_s = [
        ((request.end_s or 0.0) - (request.first_token_s or 0.0)) / (request.output_tokens - 1)
        for request in requests
        if request.output_tokens > 1
    ]
    return float(np.quantile(ttft_s, 0.95)), float(np.quantile(tpot_s, 0.95)) if tpot_s else 0.0
