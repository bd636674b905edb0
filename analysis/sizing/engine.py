"""Finds the limits (walls) of one engine: the users at which memory, slots, TTFT or TPOT allows no more.

Reads no files.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.evidence.think_time import ActiveShare, Thinking, always_active
from analysis.memory.block_distribution import BlockDistribution, Holders, Occupancy
from analysis.memory.formula_shift import (
    BLOCKED_SD,
    FAR_USERS,
    FORMULA_BIAS,
    FORMULA_SD,
    FormulaShift,
    kv_wall_users,
)
from analysis.sizing.deployment.planned import BAND_SIGMAS, PlannedDeployment
from analysis.sizing.deployment.pool import PoolBand, pool_band
from analysis.sizing.latency.curve import LatencyCurve, simulate_curve
from analysis.sizing.latency.service import planned_bands, planned_service, planned_step_time
from analysis.sizing.workload import PlannedWorkload, planned_block_distribution
from analysis.virtual.service import Service
from analysis.walls.max_num_seqs import max_num_seqs_wall
from analysis.walls.names import WallName
from loadtest.model.step_time import PredictedStepTime
from loadtest.record import Slo

LENGTHS_KNOWN = 1.1
"""Factor by which the mean lengths may be off (90 %): before a deployment they are a guess."""
FEW_AND_MANY = (8.0, 64.0)
"""Sequences of the two steps from which the growth of a request's duration is taken."""
REACH_FACTOR = 1.5
"""Latency is simulated up to this multiple of the first wall of memory and slots."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedWall:
    """The number of users at which one limit (wall) of an engine is reached.

    low, x, high: lower end, estimate and upper end of the 90 % band.
    """

    name: WallName
    low: float
    x: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SizedEngine:
    """One engine with its limits (walls) and everything from which they were computed."""

    deployment: PlannedDeployment
    workload: PlannedWorkload
    band: PoolBand
    distribution: BlockDistribution
    steps: PredictedStepTime
    service: Service
    """The engine and its users, as they are simulated."""
    active: ActiveShare
    walls: Sequence[PredictedWall]
    curve: LatencyCurve | None
    """TTFT and TPOT over users; None if latency was left out."""

    @property
    def binding_wall(self) -> PredictedWall:
        """The limit (wall) that is reached with the fewest users."""
        return min(self.walls, key=lambda placed: placed.x)

    @property
    def users_band(self) -> tuple[float, float, float]:
        """Lower end, estimate and upper end of the users that all limits allow."""
        low, high = min(placed.low for placed in self.walls), min(placed.high for placed in self.walls)
        return low, self.binding_wall.x, high


def size_engine(
    deployment: PlannedDeployment,
    workload: PlannedWorkload,
    *,
    latency: bool = True,
    length: float = 1.0,
    at_once: int = 1,
    only_first: bool = False,
) -> SizedEngine:
    """Finds the limits (walls) of one engine.

    latency: False leaves out the limits of TTFT and TPOT, and the band of the memory limit. length: factor on
    the requests that are simulated for them. at_once: loads that are simulated side by side. only_first: no
    load is simulated for a limit of latency where the other one is reached. Raises ValueError if nothing is
    left for the KV cache.
    """
    band = pool_band(deployment)
    distribution = planned_block_distribution(workload, band.layout)
    steps = planned_step_time(
        deployment, kv_bytes_per_token=read_bytes_per_token(band, distribution, workload)
    )
    service = planned_service(deployment, workload, steps, band)
    active = active_share(steps, workload)
    walls = [_memory_wall(band, distribution, workload, active, deployment, banded=latency)]
    slots = max_num_seqs_wall(deployment.max_num_seqs, active=active)
    walls.append(PredictedWall(name="max_num_seqs", low=slots, x=slots, high=slots))
    curve = None
    if latency:
        reach = REACH_FACTOR * min(placed.x for placed in walls)
        bands = planned_bands(deployment)
        curve = simulate_curve(
            service,
            bands,
            workload.slo,
            reach=reach,
            length=length,
            at_once=at_once,
            only_first=only_first,
        )
        walls += latency_walls(curve, workload.slo)
    return SizedEngine(
        deployment=deployment,
        workload=workload,
        band=band,
        distribution=distribution,
        steps=steps,
        service=service,
        active=active,
        walls=walls,
        curve=curve,
    )


def expected_service(deployment: PlannedDeployment, workload: PlannedWorkload) -> Service:
    """Builds the service that is simulated for one engine. Raises ValueError without memory for a cache."""
    band = pool_band(deployment)
    distribution = planned_block_distribution(workload, band.layout)
    read_bytes = read_bytes_per_token(band, distribution, workload)
    steps = planned_step_time(deployment, kv_bytes_per_token=read_bytes)
    return planned_service(deployment, workload, steps, band)


def latency_walls(
    curve: LatencyCurve, slo: Slo, *, ttft_scale: float = 1.0, tpot_scale: float = 1.0
) -> list[PredictedWall]:
    """Finds the numbers of users at which TTFT and TPOT cross their objectives.

    A crossing is left out if it is not below the largest simulated number of users (the curve's `reach`).
    ttft_scale, tpot_scale: factors on the simulated times.
    """
    crossings: list[tuple[WallName, tuple[float, float, float]]] = [
        ("ttft", curve.crossings(curve.ttft_s, slo.ttft_p95_s, ends=curve.bands.ttft, scale=ttft_scale)),
        ("tpot", curve.crossings(curve.tpot_s, slo.tpot_p95_s, ends=curve.bands.tpot, scale=tpot_scale)),
    ]
    return [
        PredictedWall(name=name, low=low, x=x, high=min(high, max(curve.reach, x)))
        for name, (low, x, high) in crossings
        if x < curve.reach
    ]


def read_bytes_per_token(band: PoolBand, distribution: BlockDistribution, workload: PlannedWorkload) -> float:
    """Returns the KV-cache bytes that one GPU reads in a step for each token of a request, on average.

    Sliding windows lower the result: a request then holds fewer blocks than its tokens would need.
    """
    if band.layout.uniform:
        return band.layout.bytes_per_block / band.layout.block_size
    tokens = workload.mean_held_tokens
    return distribution.mean * band.layout.bytes_per_block / max(tokens, 1.0)


def active_share(steps: PredictedStepTime, workload: PlannedWorkload) -> ActiveShare:
    """Returns a function: number of users -> share of the time in which a user has a request in flight.

    The share is R / (R + Z). Z is the think time, R the duration of a request. With n requests in flight,
    R = idle + slope * n, where n is the number of users times the share. The step times of few and of many
    sequences give idle and slope.
    """
    if workload.think.mean <= 0:
        return always_active
    output, prompt = float(workload.output.mean()), float(workload.prompt.mean())
    tokens = workload.mean_held_tokens
    few_s, many_s = (steps.decode_s(sequences, tokens) for sequences in FEW_AND_MANY)
    each_s = (many_s - few_s) / (FEW_AND_MANY[1] - FEW_AND_MANY[0]) + steps.prompt_s(prompt) / output
    return Thinking(
        think_s=workload.think.mean,
        idle_s=output * few_s + steps.prompt_s(prompt) + steps.outside_s(prompt),
        slope_s=output * each_s,
    ).active


def users_in_flight(requests: float, active: ActiveShare) -> int:
    """Returns the largest number of users with at most so many requests in flight on average; at least 1."""
    return largest_number(lambda users: users * active(users) <= requests)


def largest_number(holds: Callable[[int], bool]) -> int:
    """Returns the largest number from 1 to FAR_USERS for which a falling condition holds; 1 if for none."""
    low, high = 1, 2
    while high < FAR_USERS and holds(high):
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _memory_wall(
    band: PoolBand,
    distribution: BlockDistribution,
    workload: PlannedWorkload,
    active: ActiveShare,
    deployment: PlannedDeployment,
    *,
    banded: bool,
) -> PredictedWall:
    """Finds the number of users at which KV-cache memory becomes the limit.

    The band combines the errors of pool size, lengths and formula, which are taken as independent. banded:
    False leaves out the band.
    """
    shared = workload.shared_prefix_tokens // band.layout.block_size
    start = users_in_flight(band.blocks[1] / distribution.mean, active)

    def occupancy(distribution: BlockDistribution, blocks: int) -> Occupancy | None:
        holders = [Holders(distribution, active)]
        return None if blocks - shared < 2 else Occupancy(holders, blocks - 1 - shared)

    def users(occupancy: Occupancy | None, shift: FormulaShift) -> float:
        if occupancy is None:
            return 0.0
        return kv_wall_users(occupancy, workload.slo, shift=shift, start=start)

    expected = occupancy(distribution, band.blocks[1])
    plain = FormulaShift()
    estimate = users(expected, plain)
    if not banded:
        return PredictedWall(name="kv_cache", low=estimate, x=estimate, high=estimate)
    start = max(int(estimate), 1)
    changed: list[tuple[Occupancy | None, FormulaShift]] = []
    for sign in (1.0, -1.0):  # first the changes that lower the wall, then those that raise it
        factor = LENGTHS_KNOWN**sign
        other = workload.stretched(prompt=factor, output=factor, max_model_len=deployment.max_model_len)
        shift = FormulaShift(
            preempted=FORMULA_BIAS + sign * BAND_SIGMAS * FORMULA_SD, blocked=sign * BAND_SIGMAS * BLOCKED_SD
        )
        changed += [
            (occupancy(distribution, band.blocks[0 if sign > 0 else 2]), plain),
            (occupancy(planned_block_distribution(other, band.layout), band.blocks[1]), plain),
            (expected, shift),
        ]
    moved = [users(*change) for change in changed]
    ends = _combined(estimate, moved[:3], -1.0), _combined(estimate, moved[3:], 1.0)
    return PredictedWall(name="kv_cache", low=ends[0], x=estimate, high=ends[1])


def _combined(estimate: float, moved: Sequence[float], sign: float) -> float:
    """Combines independent changes of the estimate into one end of a band.

    moved: the number of users after each change alone. A change counts as log(moved / estimate); the combined
    change is the root of the sum of squares. sign: -1 for the lower end, 1 for the upper end.
    """
    if estimate <= 0:
        return estimate if sign < 0 else max(moved)
    if min(moved) <= 0:
        return 0.0
    return estimate * math.exp(sign * math.sqrt(sum(math.log(x / estimate) ** 2 for x in moved)))
