"""Finds the limits (walls) of one engine: the users at which memory, slots, TTFT or TPOT allows no more.

Reads no files.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields

import numpy as np

from analysis.evidence.think_time import ActiveShare
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
from analysis.sizing.latency.pace import Pace, predicted_pace
from analysis.sizing.latency.service import planned_bands, planned_service, planned_step_time
from analysis.sizing.workload import PlannedWorkload, planned_block_distribution
from analysis.statistics.arrays import Floats
from analysis.virtual.service import Service
from analysis.walls.max_num_seqs import max_num_seqs_wall
from analysis.walls.names import WallName
from loadtest.model.step_time import PredictedStepTime
from loadtest.record import Slo
from loadtest.workload.classes import texts_in_flight, users_by_weight

LENGTHS_KNOWN = 1.1
"""Factor by which the mean lengths may be off (90 %): before a deployment they are a guess."""
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
class ExpectedEngine:
    """One engine and its users by averages: nothing of it is simulated."""

    deployment: PlannedDeployment
    workload: PlannedWorkload
    band: PoolBand
    distributions: Sequence[BlockDistribution]
    """KV blocks that a request of each class holds, without those of shared texts."""
    steps: PredictedStepTime
    pace: Pace

    def mean_blocks(self, in_flight: float) -> float:
        """Returns the mean KV blocks of its own that a request holds, where so many are in flight."""
        return float(self.pace.shares_in_flight(in_flight) @ [one.mean for one in self.distributions])

    def blocks_of_classes(self, users: int) -> Floats:
        """Returns the mean KV blocks that the requests of each class hold together, with their shared texts,
        at so many users of all classes. Shape (classes,)."""
        holders = holders_of_classes(self)
        counts = users_by_weight([one.weight for one in holders], users)
        return np.array(
            [
                count * one.active(users) * one.distribution.mean
                + one.shared_blocks * texts_in_flight(one.shared_texts, count * one.active(users))
                for count, one in zip(counts, holders, strict=True)
            ]
        )

    @property
    def requests_in_pool(self) -> float:
        """Number of requests whose mean blocks fill the estimated pool, in the mix that random users send."""
        shares = self.workload.user_shares
        return self.band.blocks[1] / float(shares @ [one.mean for one in self.distributions])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SizedEngine(ExpectedEngine):
    """One engine with its limits (walls) and everything from which they were computed."""

    service: Service
    """The engine and its users, as they are simulated."""
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


def expected_engine(deployment: PlannedDeployment, workload: PlannedWorkload) -> ExpectedEngine:
    """Predicts one engine by averages. Raises ValueError if nothing is left for the KV cache."""
    band = pool_band(deployment)
    distributions = [planned_block_distribution(one, band.layout) for one in workload.classes]
    blocks = float(workload.user_shares @ [one.mean for one in distributions])
    steps = planned_step_time(deployment, kv_bytes_per_token=_read_bytes_per_token(band, blocks, workload))
    return ExpectedEngine(
        deployment=deployment,
        workload=workload,
        band=band,
        distributions=distributions,
        steps=steps,
        pace=predicted_pace(steps, workload),
    )


def simulated_service(engine: ExpectedEngine) -> Service:
    """Builds the service that is simulated for one engine."""
    return planned_service(engine.deployment, engine.workload, engine.steps, engine.pace, engine.band)


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
    engine = expected_engine(deployment, workload)
    service = simulated_service(engine)
    walls = [_memory_wall(engine, banded=latency)]
    slots = max_num_seqs_wall(deployment.max_num_seqs, active=engine.pace.active)
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
    known = {field.name: getattr(engine, field.name) for field in fields(engine)}
    return SizedEngine(**known, service=service, walls=walls, curve=curve)


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


def _read_bytes_per_token(band: PoolBand, blocks: float, workload: PlannedWorkload) -> float:
    """Returns the KV-cache bytes that one GPU reads in a step for each token of a request, on average.

    Sliding windows lower the result: a request then holds fewer blocks than its tokens would need. blocks:
    mean number that a request holds.
    """
    if band.layout.uniform:
        return band.layout.bytes_per_block / band.layout.block_size
    return blocks * band.layout.bytes_per_block / max(workload.mean_held_tokens, 1.0)


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


def holders_of_classes(
    engine: ExpectedEngine, distributions: Sequence[BlockDistribution] | None = None
) -> list[Holders]:
    """Returns the classes of users as the pool of KV-cache blocks sees them.

    distributions: the blocks that requests hold in place of the engine's own.
    """
    block, pace = engine.band.layout.block_size, engine.pace
    each = pace.requests_each(engine.requests_in_pool)
    return [
        Holders(
            distribution=distribution,
            active=pace.of_class(position),
            weight=one.weight,
            requests_each=float(each[position]),
            shared_blocks=one.shared_tokens // block,
            shared_texts=one.shared_texts,
        )
        for position, (one, distribution) in enumerate(
            zip(engine.workload.classes, distributions or engine.distributions, strict=True)
        )
    ]


def _memory_wall(engine: ExpectedEngine, *, banded: bool) -> PredictedWall:
    """Finds the number of users at which KV-cache memory becomes the limit.

    The band combines the errors of pool size, lengths and formula, which are taken as independent. banded:
    False leaves out the band.
    """
    band, workload = engine.band, engine.workload
    start = users_in_flight(engine.requests_in_pool, engine.pace.active)

    def users(holders: Sequence[Holders], blocks: int, shift: FormulaShift) -> float:
        return kv_wall_users(Occupancy(holders, max(blocks - 1, 1)), workload.slo, shift=shift, start=start)

    holders, plain = holders_of_classes(engine), FormulaShift()
    estimate = users(holders, band.blocks[1], plain)
    if not banded:
        return PredictedWall(name="kv_cache", low=estimate, x=estimate, high=estimate)
    start = max(int(estimate), 1)
    moved: list[float] = []
    for sign in (1.0, -1.0):  # first the changes that lower the wall, then those that raise it
        factor, longest = LENGTHS_KNOWN**sign, engine.deployment.max_model_len
        other = workload.stretched(prompt=factor, output=factor, max_model_len=longest)
        stretched = [planned_block_distribution(one, band.layout) for one in other.classes]
        shift = FormulaShift(
            preempted=FORMULA_BIAS + sign * BAND_SIGMAS * FORMULA_SD, blocked=sign * BAND_SIGMAS * BLOCKED_SD
        )
        moved += [
            users(holders, band.blocks[0 if sign > 0 else 2], plain),
            users(holders_of_classes(engine, stretched), band.blocks[1], plain),
            users(holders, band.blocks[1], shift),
        ]
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
