"""Builds the answer for a deployment and a workload, or the refusal.

The answer contains memory, limits (walls), warnings and assumptions.
"""

import math
from collections.abc import Callable, Sequence

import msgspec

from analysis.answers.capacity import Bound
from analysis.answers.sizing import (
    AtLoad,
    FloatBand,
    IntBand,
    OverheadBand,
    OverheadBytes,
    SizedClass,
    Sizing,
    UnmetObjective,
)
from analysis.sizing.deployment.planned import BAND_SIGMAS, PlannedDeployment, serve_flags
from analysis.sizing.deployment.pool import PoolBand, log_tokens, max_concurrency, pool_tokens
from analysis.sizing.engine import LENGTHS_KNOWN, PredictedWall, SizedEngine, size_engine
from analysis.sizing.latency.load import at_load, quantile_s, simulate_closed_loop, simulate_open_loop
from analysis.sizing.latency.service import planned_bands
from analysis.sizing.sensitivity import effects_of_inputs
from analysis.sizing.unmet import unmet_objectives, unmet_sentence
from analysis.sizing.workload import PlannedClass, PlannedWorkload
from analysis.statistics.arrays import Floats
from analysis.walls.names import WallName
from loadtest.model.kv_cache import cache_kinds
from loadtest.model.step_time import PredictedStepTime, SpeedBands
from loadtest.model.weights import parameter_count
from loadtest.workload.classes import users_by_weight

AT_ONCE = 2
"""Loads that are simulated side by side. It does not depend on the machine, because the answer must not."""


def size_deployment(
    deployment: PlannedDeployment,
    workload: PlannedWorkload,
    *,
    quantization: str | None,
    notes: Sequence[str] = (),
    at_users: int | None = None,
    at_rate: float | None = None,
) -> Sizing:
    """Builds the answer for all replicas together. Raises ValueError if nothing is left for the KV cache.

    It is refused, with the figures of memory and the limits, if one user alone does not meet an objective.

    quantization: the value of vLLM's flag; None if not given. notes: warnings to show before the others.
    at_users, at_rate: a load to predict too; the rate is that of one replica.
    """
    sized = size_engine(deployment, workload, at_once=AT_ONCE)
    walls = sorted(sized.walls, key=lambda placed: placed.x)
    engines = deployment.replicas
    low, x, high = sized.users_band
    xs = (low * engines, x * engines, high * engines)
    blocks, layout = sized.band.blocks, sized.band.layout
    in_flight = x * sized.pace.active(max(int(x), 1))
    each = sized.mean_blocks(in_flight)
    names = {placed.name for placed in walls}
    bands = planned_bands(deployment)
    unmet = unmet_objectives(sized)
    classes = [] if unmet else sized_classes(sized)
    where = f"{deployment.tp * deployment.pp} x {deployment.gpu.name}"
    return msgspec.structs.replace(
        _without_pool(deployment, sized.band),
        pool_bytes=sized.band.kv_bytes,
        pool_tokens=pool_tokens(deployment, sized.band),
        blocks=blocks,
        vllm_kv_cache_tokens=log_tokens(deployment, blocks[1]),
        vllm_max_concurrency=max_concurrency(deployment, blocks[1]),
        vllm_max_concurrency_band=_of_band(blocks, lambda count: max_concurrency(deployment, count)),
        tokens_per_user=each * layout.block_size if layout.uniform else None,
        kv_bytes_per_user=each * layout.bytes_per_block,
        in_flight_at_estimate=in_flight * engines,
        users=(math.floor(xs[0]), math.floor(xs[1]), math.floor(xs[2])),
        users_x=xs,
        binding=walls[0].name,
        bounds=[_bound(placed, engines, classes) for placed in walls],
        classes=classes,
        not_met=[name for name in ("ttft", "tpot") if name not in names],
        refused=bool(unmet),
        reasons=[unmet_sentence(objective, where=where) for objective in unmet],
        objectives_unmet=unmet,
        decode_tok_s_alone=_decode_tok_s_alone(sized.steps, workload, bands),
        at=_at(sized, bands, at_users, at_rate),
        vllm_flags=[] if unmet else serve_flags(deployment, quantization),
        sensitivity=[] if unmet else effects_of_inputs(sized),
        assumptions=sizing_assumptions(deployment, workload, bands),
        warnings=[*notes, *sizing_warnings(sized, unmet)],
    )


def refuse_sizing(deployment: PlannedDeployment, reason: str) -> Sizing:
    """Builds the refusal for a deployment that cannot hold a single request.

    It contains the figures of memory, and the reason.
    """
    return msgspec.structs.replace(_without_pool(deployment, None), refused=True, reasons=[reason])


def _without_pool(deployment: PlannedDeployment, band: PoolBand | None) -> Sizing:
    """Builds the part of the answer that can be given even without a KV-cache pool.

    band: the pool and its overheads; None if no memory is left for a pool.
    """
    overheads = band.overheads if band else deployment.overheads(deployment.pp - 1)
    weights = band.pool.weights_bytes if band else deployment.weights()
    spread = (
        0.0 if deployment.stated_weights_bytes else BAND_SIGMAS * (overheads.weights_sd + 0.003 * weights)
    )
    shape, layout = deployment.shape, deployment.layout()
    return Sizing(
        model=deployment.model,
        gpu=deployment.gpu.name,
        gpus=deployment.tp * deployment.pp * deployment.replicas,
        tensor_parallel=deployment.tp,
        pipeline_parallel=deployment.pp,
        replicas=deployment.replicas,
        vllm_version=".".join(map(str, deployment.version)),
        parameters=parameter_count(shape),
        weights_bytes=weights,
        weights_band_bytes=_around(weights, spread),
        kv_bytes_per_token=deployment.kv_bytes_per_token(),
        kv_fixed_bytes_per_request=layout.fixed_blocks * layout.bytes_per_block,
        kv_layout=cache_kinds(shape),
        vram_bytes=deployment.gpu.vram_bytes,
        budget_bytes=math.ceil(deployment.gpu.vram_bytes * deployment.utilization),
        overhead_bytes=OverheadBytes(
            activation=overheads.activation, cuda_graphs=overheads.cuda_graphs, non_torch=overheads.non_torch
        ),
        overhead_band_bytes=OverheadBand(
            activation=_around(overheads.activation, BAND_SIGMAS * overheads.activation_sd),
            cuda_graphs=_around(overheads.cuda_graphs, BAND_SIGMAS * overheads.cuda_graphs_sd),
            non_torch=_around(overheads.non_torch, BAND_SIGMAS * overheads.non_torch_sd),
            graphs_in_budget=overheads.graphs_counted,
        ),
        block_size=layout.block_size,
        max_model_len=deployment.max_model_len,
        calibrated_by=deployment.calibration.source if deployment.calibration else None,
        times_factor=deployment.calibration.times if deployment.calibration else None,
    )


def _around(estimate: int, reach: float) -> IntBand:
    return max(round(estimate - reach), 0), estimate, round(estimate + reach)


def _of_band(band: IntBand, function: Callable[[int], float]) -> FloatBand:
    low, estimate, high = (function(end) for end in band)
    return low, estimate, high


def _bound(placed: PredictedWall, engines: int, classes: Sequence[SizedClass]) -> Bound:
    low, x, high = (users * engines for users in (placed.low, placed.x, placed.high))
    return Bound(
        name=placed.name,
        users=math.floor(x),
        interval=(math.floor(low), math.floor(high)),
        basis="model",
        users_x=x,
        interval_x=(low, high),
        user_class=_nearest_class(placed.name, classes),
    )


def _nearest_class(wall: WallName, classes: Sequence[SizedClass]) -> str | None:
    """Returns the class that is nearest to its objective of latency; None for another wall and without
    classes."""
    ratios = {}
    for one in classes:
        band, objective_s = {
            "ttft": (one.ttft_p95_s, one.ttft_objective_s),
            "tpot": (one.tpot_p95_s, one.tpot_objective_s),
        }.get(wall, (None, 1.0))
        if band is not None:
            ratios[one.name] = band[1] / objective_s
    return max(ratios, key=ratios.__getitem__, default=None)


def sized_classes(sized: SizedEngine) -> list[SizedClass]:
    """Simulates the users to plan with, and returns what each class of a mix gets; empty without a mix."""
    workload, bands = sized.workload, planned_bands(sized.deployment)
    if not workload.is_mix:
        return []
    users = max(math.floor(sized.users_band[0]), 1)
    times = simulate_closed_loop(sized.service, users)
    counts = users_by_weight([one.weight for one in workload.classes], users * sized.deployment.replicas)
    held = sized.blocks_of_classes(users)
    found = []
    for position, (one, slo) in enumerate(zip(workload.classes, workload.slos, strict=True)):
        mine = times.of_class(position)
        found.append(
            SizedClass(
                name=one.name,
                users=counts[position],
                ttft_p95_s=_p95_band_s(mine.ttft_s, bands.ttft),
                tpot_p95_s=_p95_band_s(mine.decoded_s, bands.tpot),
                ttft_objective_s=slo.ttft_p95_s,
                tpot_objective_s=slo.tpot_p95_s,
                kv_share=float(held[position] / held.sum()),
            )
        )
    return found


def _p95_band_s(values_s: Floats, ends: tuple[float, float]) -> FloatBand | None:
    if not len(values_s):
        return None
    p95_s = quantile_s(values_s, 0.95)
    return p95_s * ends[0], p95_s, p95_s * ends[1]


def _at(sized: SizedEngine, bands: SpeedBands, users: int | None, rate: float | None) -> AtLoad | None:
    """Predicts the stated load; None if none is stated."""
    replicas = sized.deployment.replicas
    if rate is not None:
        return at_load(simulate_open_loop(sized.service, rate), bands, users=None, rate=rate, replicas=1)
    if users is None:
        return None
    each = max(round(users / replicas), 1)
    times = simulate_closed_loop(sized.service, each, together=sized.workload.one_length)
    return at_load(times, bands, users=users, rate=None, replicas=replicas)


def _decode_tok_s_alone(steps: PredictedStepTime, workload: PlannedWorkload, bands: SpeedBands) -> FloatBand:
    """Returns the decode rate of a request that runs alone, tokens/s: lower end, estimate, upper end."""
    rate = 1.0 / steps.decode_s(1, workload.mean_held_tokens)
    return rate / bands.tpot[1], rate, rate / bands.tpot[0]


def _times_text(deployment: PlannedDeployment, bands: SpeedBands) -> str:
    low, high = bands.tpot
    band = f"The band of times per output token is {low:.2f} to {high:.2f} times the estimate."
    text = "Times follow from the data sheet and from what published measurements reach of it."
    if deployment.calibration is not None and deployment.calibration.times is not None:
        factor, source = deployment.calibration.times, deployment.calibration.source
        return f"{text} They are {factor:.2f} times as long as that, as requests took in {source}. {band}"
    if bands.known:
        return f"{text} {band}"
    unknown = "There are none of this card, so the bands are those of cards that the fit did not see."
    return f"{text} {unknown} {band}"


def sizing_assumptions(
    deployment: PlannedDeployment, workload: PlannedWorkload, bands: SpeedBands
) -> list[str]:
    """Returns what this prediction assumes."""
    assumptions = [
        "Prompt and answer lengths are guesses until they are measured: the band of the KV cache allows for "
        f"means that are {100 * (LENGTHS_KNOWN - 1):.0f} % off.",
        _times_text(deployment, bands),
    ]
    if not workload.caches_prefixes and not workload.is_mix:
        assumptions.append(
            "Requests share no prefix. Where they share a system prompt, or conversations have many turns, "
            "prompts take less time: say so with --shared-prefix-tokens and --turns."
        )
    if deployment.calibration is None:
        assumptions.append(
            "The memory that vLLM's start-up takes is estimated. The log of a start-up of any model on this "
            "card (--vllm-log), or a run (--calibrate), narrows the band."
        )
    if deployment.replicas > 1:
        assumptions.append("Users are spread evenly over the replicas.")
    return assumptions


def sizing_warnings(sized: SizedEngine, unmet: Sequence[UnmetObjective]) -> list[str]:
    """Returns what makes this prediction weaker than others. unmet: objectives that one user alone misses."""
    warnings = [
        f"{part[0].upper()}{part[1:]} of this model is not counted in its weights: give --weights-gib."
        for part in sized.deployment.shape.uncounted
    ]
    for one in sized.workload.classes:
        warnings += _warnings_of_class(one, sized.deployment.max_model_len)
    if sized.binding_wall.low < 1 and not unmet:
        warnings.append(
            "The lower end of the band is below one user: this deployment may not hold a single one."
        )
    return warnings


def _warnings_of_class(users: PlannedClass, max_model_len: int) -> list[str]:
    of_class = f" of class '{users.name}'" if users.name else ""
    warnings = []
    if users.clipped > len(users.prompt) / 100:
        warnings.append(
            f"{100 * users.clipped / len(users.prompt):.0f} % of the requests{of_class} were longer than "
            f"max_model_len ({max_model_len:,} tokens) and are cut to it."
        )
    spread = float(users.output.std() / users.output.mean())
    if spread < 0.1:
        warnings.append(
            f"Answer lengths{of_class} hardly vary (coefficient of variation {spread:.2f}): requests then "
            "start and end together, and the KV cache may hold some users more or fewer."
        )
    if users.think.kind == "fixed" and users.think.mean > 0:
        warnings.append(
            f"All pauses{of_class} have the same length: users who were answered together come back together "
            "and wait for each other. People's pauses vary; say so, for example with exp:10."
        )
    return warnings
