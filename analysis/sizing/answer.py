"""TODO."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import msgspec

from analysis.answers.capacity import Bound
from analysis.answers.sizing import Effect, OverheadBand, OverheadBytes, Sizing
from analysis.sizing.deployment import (
    BAND_SIGMAS,
    Band,
    PlannedDeployment,
    PoolBand,
    log_tokens,
    max_concurrency,
    pool_tokens,
    serve_flags,
)
from analysis.sizing.predicted import (
    LENGTH_PAIRS,
    LENGTHS_KNOWN,
    PlannedWorkload,
    PredictedWall,
    SizedEngine,
    simulated_p95_s,
    size_engine,
)
from analysis.sizing.step_model import SPEED_BAND, StepModel
from loadtest.model.kv_cache import cache_kinds, kv_bytes_per_token
from loadtest.model.weights import parameter_count
from loadtest.workload.distributions import Distribution

# The answer.


def size_deployment(
    deployment: PlannedDeployment,
    workload: PlannedWorkload,
    *,
    quantization: str | None,
    notes: Sequence[str] = (),
) -> Sizing:
    """Raises ValueError where nothing is left for the KV cache."""
    sized = size_engine(deployment, workload)
    walls = sorted(sized.walls, key=lambda placed: placed.x)
    engines = deployment.replicas
    low, high = min(one.low for one in walls), min(one.high for one in walls)
    xs = (low * engines, walls[0].x * engines, high * engines)
    blocks = sized.band.blocks
    layout = sized.band.layout
    placed = {one.name for one in walls}
    return msgspec.structs.replace(
        memory_facts(deployment, sized.band),
        pool_bytes=sized.band.kv_bytes,
        pool_tokens=pool_tokens(deployment, sized.band),
        blocks=blocks,
        vllm_kv_cache_tokens=log_tokens(deployment, blocks[1]),
        vllm_max_concurrency=max_concurrency(deployment, blocks[1]),
        vllm_max_concurrency_band=_of_band(blocks, lambda count: max_concurrency(deployment, count)),
        tokens_per_user=sized.law.mean * layout.block_size if layout.uniform else None,
        kv_bytes_per_user=sized.law.mean * layout.bytes_per_block,
        in_flight_at_estimate=xs[1] * sized.active(max(int(walls[0].x), 1)),
        users=(math.floor(xs[0]), math.floor(xs[1]), math.floor(xs[2])),
        users_x=xs,
        binding=walls[0].name,
        bounds=[_bound(one, engines) for one in walls],
        not_met=[name for name in ("ttft", "tpot") if name not in placed],
        decode_tok_s_alone=_alone(sized.steps, workload),
        vllm_flags=serve_flags(deployment, quantization),
        sensitivity=_sensitivity(sized, workload),
        assumptions=_assumptions(deployment, workload),
        warnings=[*notes, *_warnings(deployment, workload, sized)],
    )


def memory_facts(deployment: PlannedDeployment, band: PoolBand | None) -> Sizing:
    """What is known of the memory, even where it is too small (`band` None)."""
    found = band.overheads if band else deployment.overheads(deployment.pp - 1)
    weights = band.pool.weights_bytes if band else deployment.weights()
    spread = 0.0 if deployment.stated_weights_bytes else BAND_SIGMAS * (found.weights_sd + 0.003 * weights)
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
        kv_bytes_per_token=kv_bytes_per_token(
            shape, dtype=deployment.dtype, tp=deployment.tp, pp=deployment.pp, kv_dtype=deployment.kv_dtype
        ),
        kv_fixed_bytes_per_request=layout.fixed_blocks * layout.bytes_per_block,
        kv_layout=cache_kinds(shape),
        vram_bytes=deployment.gpu.vram_bytes,
        budget_bytes=math.ceil(deployment.gpu.vram_bytes * deployment.utilization),
        overhead_bytes=OverheadBytes(
            activation=found.activation, cuda_graphs=found.cuda_graphs, non_torch=found.non_torch
        ),
        overhead_band_bytes=OverheadBand(
            activation=_around(found.activation, BAND_SIGMAS * found.activation_sd),
            cuda_graphs=_around(found.cuda_graphs, BAND_SIGMAS * found.cuda_graphs_sd),
            non_torch=_around(found.non_torch, BAND_SIGMAS * found.non_torch_sd),
            graphs_in_budget=found.graphs_counted,
        ),
        block_size=layout.block_size,
        max_model_len=deployment.max_model_len,
        calibrated_by=deployment.calibration.source if deployment.calibration else None,
    )


def refused_sizing(deployment: PlannedDeployment, reason: str) -> Sizing:
    """What is known where nothing can be held."""
    return msgspec.structs.replace(memory_facts(deployment, None), refused=True, reasons=[reason])


def _around(middle: int, reach: float) -> Band:
    return max(round(middle - reach), 0), middle, round(middle + reach)


def _of_band(band: Band, function: Callable[[int], float]) -> tuple[float, float, float]:
    low, middle, high = (function(one) for one in band)
    return low, middle, high


def _bound(placed: PredictedWall, engines: int) -> Bound:
    low, x, high = (one * engines for one in (placed.low, placed.x, placed.high))
    return Bound(
        name=placed.name,
        users=math.floor(x),
        interval=(math.floor(low), math.floor(high)),
        basis="model",
        users_x=x,
        interval_x=(low, high),
    )


def _alone(steps: StepModel, workload: PlannedWorkload) -> tuple[float, float, float]:
    tokens = float(workload.prompt.mean() + workload.output.mean() / 2)
    rate = 1.0 / (steps.base_s(1) + steps.per_sequence_s + steps.per_kv_token_s * tokens)
    return rate / SPEED_BAND, rate, rate * SPEED_BAND


def _sensitivity(sized: SizedEngine, workload: PlannedWorkload) -> list[Effect]:
    """Each input moved alone, the largest effect first."""
    deployment, limit, think = sized.deployment, sized.deployment.max_model_len, workload.think
    longer = Distribution(think.kind, 1.1 * think.a, think.b * (1.1 if think.kind == "uniform" else 1.0))
    lower, fewer = deployment.utilization - 0.02, max(deployment.max_num_seqs // 2, 1)
    asked = {
        "prompt_tokens": workload.stretched(prompt=1.1, limit=limit),
        "output_tokens": workload.stretched(output=1.1, limit=limit),
        **({"think_s": replace(workload, think=longer)} if think.mean > 0 else {}),
    }
    served = {
        ("gpu_memory_utilization", f"{lower:.2f}"): replace(deployment, utilization=lower),
        ("max_num_seqs", f"{fewer}"): replace(deployment, max_num_seqs=fewer),
        ("kv_cache_dtype", "fp8"): replace(deployment, kv_dtype="fp8"),
    }
    users = max(int(min(sized.first.x, sized.curve.reach)), 1) if sized.curve else 0
    now = simulated_p95_s(deployment, sized.steps, workload, users) if users else (1.0, 1.0)
    found = [
        (name, "10 % longer", _asked_otherwise(sized, other, users, now)) for name, other in asked.items()
    ]
    found += [(name, change, _served_otherwise(sized, other)) for (name, change), other in served.items()]
    found.append(("speed of the GPU", f"{SPEED_BAND:g} times slower", _first(sized, scale=SPEED_BAND)))
    effects = [
        Effect(
            input=name, change=change, effect_users=round((x - sized.first.x) * deployment.replicas, 1) + 0.0
        )
        for name, change, x in found
    ]
    return sorted(effects, key=lambda effect: -abs(effect.effect_users))


def _asked_otherwise(
    sized: SizedEngine, workload: PlannedWorkload, users: int, now: tuple[float, float]
) -> float:
    """The first wall of another workload. The curve of latency is kept, stretched by what the change does at
    one load near the first wall, `users`, where the p95 of TTFT and TPOT are `now`."""
    moved = size_engine(sized.deployment, workload, latency=False)
    scale = (1.0, 1.0)
    if users:
        after = simulated_p95_s(sized.deployment, sized.steps, workload, users)
        ttft, tpot = (late / soon if soon > 0 < late else 1.0 for soon, late in zip(now, after, strict=True))
        scale = (ttft, tpot)
    return min([one.x for one in moved.walls] + _latency(sized, *scale))


def _served_otherwise(sized: SizedEngine, deployment: PlannedDeployment) -> float:
    """The first wall of a changed server, its latency taken as the same; 0 where it would not start."""
    try:
        moved = size_engine(deployment, sized.workload, latency=False)
    except ValueError:
        return 0.0
    return min([one.x for one in moved.walls] + _latency(sized, 1.0, 1.0))


def _first(sized: SizedEngine, *, scale: float) -> float:
    """The first wall, were every step so many times longer."""
    others = [one.x for one in sized.walls if one.name not in ("ttft", "tpot")]
    return min(others + _latency(sized, scale, scale))


def _latency(sized: SizedEngine, ttft: float, tpot: float) -> list[float]:
    if sized.curve is None:
        return []
    return [one.x for one in sized.curve.walls(sized.workload.slo, ttft_scale=ttft, tpot_scale=tpot)]


def _assumptions(deployment: PlannedDeployment, workload: PlannedWorkload) -> list[str]:
    found = [
        f"Lengths are guesses until they are measured: their means are taken as known to "
        f"{100 * (LENGTHS_KNOWN - 1):.0f} %.",
        "Step times are a roofline of the data sheet (75 % of the bandwidth, 40 % of the FLOP/s), good to a "
        f"factor of {SPEED_BAND:g}.",
        "No prefix is shared: with shared system prompts or long conversations the pool holds more.",
    ]
    if deployment.calibration is None:
        found.append(
            "What start-up takes is estimated: --vllm-log or --calibrate with a start-up of any model on "
            "this card narrows the band."
        )
    if deployment.replicas > 1:
        found.append("Users are spread evenly over the replicas.")
    return found


def _warnings(deployment: PlannedDeployment, workload: PlannedWorkload, sized: SizedEngine) -> list[str]:
    found = [
        f"{part[0].upper()}{part[1:]} of this model is not counted: give --weights-gib."
        for part in deployment.shape.uncounted
    ]
    if workload.clipped > LENGTH_PAIRS / 100:
        found.append(
            f"{100 * workload.clipped / LENGTH_PAIRS:.0f} % of the requests were longer than max_model_len "
            f"({deployment.max_model_len:,}) and are counted as cut there."
        )
    spread = float(workload.output.std() / workload.output.mean())
    if spread < 0.1:
        found.append(
            f"Output lengths hardly vary (CV {spread:.2f}): requests march in step, and the memory wall "
            "may be off by users."
        )
    if sized.first.low < 1:
        found.append("The band reaches below one user: this deployment is at the edge of its memory.")
    return found
