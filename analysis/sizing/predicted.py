"""Where the walls of a deployment would stand: the memory law on drawn lengths, and the objectives on a
simulated engine. Knows no files and no words.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.evidence.think_time import Active, Thinking, always
from analysis.sizing.deployment import BAND_SIGMAS, PlannedDeployment, PoolBand, pool_band
from analysis.sizing.step_model import SPEED_BAND, StepModel, step_model
from analysis.statistics.arrays import Floats, Ints
from analysis.walls.block_law import BlockLaw, Occupancy
from analysis.walls.kv_shift import BLOCKED_SD, FORMULA_BIAS, FORMULA_SD, Shift, wall
from analysis.walls.max_num_seqs import slots_wall
from analysis.walls.names import WallName
from loadtest.model.kv_cache import KvLayout
from loadtest.record import Slo
from loadtest.simulator.requests import Request
from loadtest.simulator.virtual import EngineTrace, closed_loop
from loadtest.workload.distributions import Distribution

LENGTH_PAIRS = 2000
LENGTHS_KNOWN = 1.1
"""Lengths before a deployment are a guess: their mean is taken as known to 10 % (90 %)."""
REACH_FACTOR = 1.5
"""Walls further than so many times the first one are not placed."""
MIN_P95_REQUESTS = 120
"""Requests behind a p95, at least."""
LOAD_FACTOR = 1.5
"""Users between two simulated loads, as a factor."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlannedWorkload:
    """What users do: pairs of lengths, shape (n,), and how long they think."""

    prompt: Ints
    output: Ints
    think: Distribution
    slo: Slo
    clipped: int = 0
    """Pairs that max_model_len cut."""

    def stretched(self, *, prompt: float = 1.0, output: float = 1.0, limit: int) -> "PlannedWorkload":
        longer = np.maximum(np.rint(self.prompt * prompt).astype(np.int64), 1)
        answers = np.maximum(np.rint(self.output * output).astype(np.int64), 1)
        longer, answers = _fitted(longer, answers, limit)
        return replace(self, prompt=longer, output=answers)


def _fitted(prompt: Ints, output: Ints, limit: int) -> tuple[Ints, Ints]:
    """Prompt and output cut to `limit` tokens together, the answer last."""
    prompt = np.minimum(prompt, limit - 1)
    return prompt, np.minimum(output, limit - prompt)


def draw_workload(
    prompt: Distribution, output: Distribution, think: Distribution, *, slo: Slo, limit: int, seed: int = 0
) -> PlannedWorkload:
    """PAIRS draws of each law, cut to `limit` tokens together."""
    rng = random.Random(seed)
    drawn = [(prompt.draw_count(rng), output.draw_count(rng)) for _ in range(LENGTH_PAIRS)]
    lengths = np.array(drawn, dtype=np.int64)
    clipped = int(np.sum(lengths.sum(axis=1) > limit))
    prompts, outputs = _fitted(lengths[:, 0], lengths[:, 1], limit)
    return PlannedWorkload(prompt=prompts, output=outputs, think=think, slo=slo, clipped=clipped)


def block_law_of(workload: PlannedWorkload, layout: KvLayout) -> BlockLaw:
    """Blocks of a request over its steps j = 0..o-1, for any layout of the cache.

    Full attention is analysis.memory.block_law; elsewhere each group of layers adds the blocks that it has in
    reach, and a growth by g blocks at once counts as g growths, which is exact for "does it still fit".
    """
    longest = int((workload.prompt + workload.output).max())
    blocks = np.array([layout.blocks(tokens) if tokens else 0 for tokens in range(longest + 1)])
    size = int(blocks.max()) + 2
    steps = np.bincount(workload.prompt, minlength=longest + 1).astype(np.float64)
    at_length = np.cumsum(steps - np.bincount(workload.prompt + workload.output, minlength=longest + 1))
    held = np.bincount(blocks, weights=at_length, minlength=size)
    lives = len(workload.prompt)
    # A step from x to x + 1 tokens is made by every life that holds x and is not at its end.
    rises = np.diff(blocks)
    passes = (np.cumsum(steps) - np.cumsum(_at(workload.prompt + workload.output - 1, longest + 1)))[:-1]
    growth = np.zeros(size)
    for place in np.flatnonzero((rises > 0) & (passes > 0)):
        growth[blocks[place] : blocks[place + 1]] += passes[place]
    return BlockLaw(
        held=held / held.sum(),
        growth=growth / lives,
        entry=np.bincount(blocks[workload.prompt], minlength=size) / lives,
        steps=float(held.sum()) / lives,
    )


def _at(places: Ints, size: int) -> Floats:
    return np.bincount(places, minlength=size).astype(np.float64)


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictedWall:
    """One wall, in users of one engine."""

    name: WallName
    low: float
    x: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class LatencyCurve:
    """p95 of TTFT and TPOT over users, as simulated, users rising."""

    users: tuple[int, ...]
    ttft_s: tuple[float, ...]
    tpot_s: tuple[float, ...]
    reach: float
    """Users beyond which nothing was simulated."""

    def walls(self, slo: Slo, *, ttft_scale: float = 1.0, tpot_scale: float = 1.0) -> list[PredictedWall]:
        """Where the objectives are crossed, were all TTFTs and TPOTs longer by these factors.

        All times scale with the step times, so a band of speed is a band of the objective.
        """
        crossed: list[tuple[WallName, tuple[float, float, float]]] = [
            ("ttft", self._crossings(self.ttft_s, slo.ttft_p95_s / ttft_scale)),
            ("tpot", self._crossings(self.tpot_s, slo.tpot_p95_s / tpot_scale)),
        ]
        return [
            PredictedWall(name=name, low=low, x=x, high=min(high, max(self.reach, x)))
            for name, (low, x, high) in crossed
            if x < self.reach
        ]

    def _crossings(self, seconds: Sequence[float], limit_s: float) -> tuple[float, float, float]:
        """On a slower, the stated and a faster machine."""
        rising = np.log(np.maximum(np.maximum.accumulate(seconds), 1e-9))
        low, x, high = (
            float(np.interp(math.log(limit_s * speed), rising, self.users, left=0.0, right=math.inf))
            for speed in (1 / SPEED_BAND, 1.0, SPEED_BAND)
        )
        return low, x, high


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class SizedEngine:
    """Everything about one engine that the answer is made of."""

    deployment: PlannedDeployment
    workload: PlannedWorkload
    band: PoolBand
    law: BlockLaw
    steps: StepModel
    active: Active
    walls: Sequence[PredictedWall]
    curve: LatencyCurve | None

    @property
    def first(self) -> PredictedWall:
        return min(self.walls, key=lambda placed: placed.x)


def size_engine(
    deployment: PlannedDeployment, workload: PlannedWorkload, *, latency: bool = True
) -> SizedEngine:
    """Places the walls; `latency=False` leaves out those of the objectives, and all bands.

    Raises ValueError where nothing is left for the KV cache.
    """
    band = pool_band(deployment)
    law = block_law_of(workload, band.layout)
    steps = step_model(deployment, kv_bytes_per_token=_read_per_token(band, law, workload))
    active = _active(steps, workload, deployment)
    walls = [_memory_wall(band, law, workload, active, deployment, banded=latency)]
    slots = slots_wall(deployment.max_num_seqs, active=active)
    walls.append(PredictedWall(name="max_num_seqs", low=slots, x=slots, high=slots))
    curve = None
    if latency:
        reach = REACH_FACTOR * min(placed.x for placed in walls)
        curve = simulate_curve(deployment, steps, workload, reach=reach)
        walls += curve.walls(workload.slo)
    return SizedEngine(
        deployment=deployment,
        workload=workload,
        band=band,
        law=law,
        steps=steps,
        active=active,
        walls=walls,
        curve=curve,
    )


def _read_per_token(band: PoolBand, law: BlockLaw, workload: PlannedWorkload) -> float:
    """Bytes that one GPU reads for each token held, a step: windows hold fewer blocks than tokens."""
    prompt, output = workload.prompt.astype(np.float64), workload.output.astype(np.float64)
    tokens = float(np.sum(prompt * output + output * (output - 1) / 2) / np.sum(output))
    return law.mean * band.layout.bytes_per_block / max(tokens, 1.0)


def _active(steps: StepModel, workload: PlannedWorkload, deployment: PlannedDeployment) -> Active:
    """Share of time in flight: R/(R + Z), R = idle + slope * n by the step model."""
    if workload.think.mean <= 0:
        return always
    out, prompt = float(workload.output.mean()), float(workload.prompt.mean())
    tokens = prompt + out / 2
    each = steps.per_sequence_s + steps.per_kv_token_s * tokens + steps.per_prefill_token_s * prompt / out
    base = steps.base_s(deployment.max_num_seqs / 4)
    return Thinking(
        think_s=workload.think.mean,
        idle_s=out * base + prompt * steps.per_prefill_token_s,
        slope_s=out * each,
    ).active


def _memory_wall(
    band: PoolBand,
    law: BlockLaw,
    workload: PlannedWorkload,
    active: Active,
    deployment: PlannedDeployment,
    *,
    banded: bool,
) -> PredictedWall:
    """Band: of the pool, of the lengths and of the formula itself, combined as independent."""
    start = max(int(band.blocks[1] / law.mean), 1)

    def x(law: BlockLaw, blocks: int, shift: Shift) -> float:
        if blocks < 2:
            return 0.0
        return wall(Occupancy(law, blocks - 1, active), workload.slo, shift=shift, start=start)

    plain = Shift()
    middle = x(law, band.blocks[1], plain)
    if not banded:
        return PredictedWall(name="kv_cache", low=middle, x=middle, high=middle)
    limit = deployment.max_model_len
    ends = []
    for side in (1.0, -1.0):  # first all that lowers the wall
        lengths = LENGTHS_KNOWN**side
        other = workload.stretched(prompt=lengths, output=lengths, limit=limit)
        shift = Shift(
            preempted=FORMULA_BIAS + side * BAND_SIGMAS * FORMULA_SD, blocked=side * BAND_SIGMAS * BLOCKED_SD
        )
        moved = [
            x(law, band.blocks[0 if side > 0 else 2], plain),
            x(block_law_of(other, band.layout), band.blocks[1], plain),
            x(law, band.blocks[1], shift),
        ]
        ends.append(_combined(middle, moved, -side))
    return PredictedWall(name="kv_cache", low=ends[0], x=middle, high=ends[1])


def _combined(middle: float, moved: Sequence[float], side: float) -> float:
    """Relative moves added in squares; side: -1 for the lower end."""
    if middle <= 0:
        return middle if side < 0 else max(moved)
    if min(moved) <= 0:
        return 0.0
    return middle * math.exp(side * math.sqrt(sum(math.log(one / middle) ** 2 for one in moved)))


def simulate_curve(
    deployment: PlannedDeployment, steps: StepModel, workload: PlannedWorkload, *, reach: float
) -> LatencyCurve:
    """From `reach` users down, until both objectives are met with room for the band of speed."""
    slo, users = workload.slo, max(int(reach), 1)
    loads: list[tuple[int, float, float]] = []
    while True:
        ttft, tpot = simulated_p95_s(deployment, steps, workload, users)
        loads.append((users, ttft, tpot))
        held = ttft * SPEED_BAND < slo.ttft_p95_s and tpot * SPEED_BAND < slo.tpot_p95_s
        if users == 1 or held:
            break
        users = max(int(users / LOAD_FACTOR), 1)
    found, ttfts, tpots = zip(*reversed(loads), strict=True)
    return LatencyCurve(users=found, ttft_s=ttfts, tpot_s=tpots, reach=reach)


def simulated_p95_s(
    deployment: PlannedDeployment, steps: StepModel, workload: PlannedWorkload, users: int
) -> tuple[float, float]:
    """p95 of TTFT and of TPOT of so many users on an engine whose pool never binds, seconds."""
    rng = random.Random(users)
    wanted = users + min(max(2 * users, MIN_P95_REQUESTS), LENGTH_PAIRS // 2)
    order = np.resize(np.arange(len(workload.prompt)), wanted)
    requests = (
        Request(prompt_tokens=int(workload.prompt[at]), output_tokens=int(workload.output[at]))
        for at in order
    )
    thinks = workload.think.mean > 0
    life_s = float(workload.output.mean()) * steps.base_s(users) + workload.think.mean
    trace = closed_loop(
        steps.engine(deployment, min(users, deployment.max_num_seqs)),
        requests,
        users=users,
        think_s=(lambda: workload.think.draw(rng)) if thinks else None,
        start_spread_s=life_s,
    )
    return _p95(trace, skip=users)


def _p95(trace: EngineTrace, *, skip: int) -> tuple[float, float]:
    """The first request of every user is left out: they start in an empty server."""
    requests = trace.requests[skip:] or trace.requests
    first = [(one.first_token_s or 0.0) - one.arrival_s for one in requests]
    gaps = [
        ((one.end_s or 0.0) - (one.first_token_s or 0.0)) / (one.output_tokens - 1)
        for one in requests
        if one.output_tokens > 1
    ]
    return float(np.quantile(first, 0.95)), float(np.quantile(gaps, 0.95)) if gaps else 0.0
