"""How many users would a deployment hold? From a config.json and a data sheet, before anything runs.

`python -m analysis.sizing --config FILE --gpu NAME`. The memory law is the one that measured runs are judged
by (analysis/memory.py); latency comes from the simulated engine with a roofline's step times.
"""

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from analysis.answers.capacity import Bound
from analysis.answers.sizing import Effect, OverheadBand, OverheadBytes, Sizing
from analysis.cli import add_slo_flags, count, positive, share
from analysis.reporting import capacity as report
from analysis.reporting import sizing as sizing_report
from analysis.sizing.claims import check_claims, read_claims
from analysis.sizing.deployment import (
    QUANTILE,
    Band,
    Deployment,
    PoolBand,
    log_tokens,
    longest_context,
    max_concurrency,
    pool_band,
    pool_tokens,
    serve_flags,
)
from analysis.sizing.predicted import (
    LENGTHS_KNOWN,
    PAIRS,
    Placed,
    Sized,
    Workload,
    draw_workload,
    simulated,
    size,
)
from analysis.sizing.startup_log import StartupLog, as_started, calibration_of, read_log, read_run
from analysis.sizing.step_model import SPEED_BAND, StepModel
from loadtest.errors import InputError
from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.cards import GIB, Gpu, find_gpu
from loadtest.model.memory import KV_DTYPES, kinds_of, kv_bytes_per_token, parameters
from loadtest.model.startup import CURRENT, default_batch, default_utilization, parse_version
from loadtest.record import Slo
from loadtest.workload.distributions import Distribution

# The answer.


def answer(
    deployment: Deployment, workload: Workload, *, quantization: str | None, notes: Sequence[str] = ()
) -> Sizing:
    """Raises ValueError where nothing is left for the KV cache."""
    sized = size(deployment, workload)
    walls = sorted(sized.walls, key=lambda placed: placed.x)
    engines = deployment.replicas
    low, high = min(one.low for one in walls), min(one.high for one in walls)
    xs = (low * engines, walls[0].x * engines, high * engines)
    blocks = sized.band.blocks
    layout = sized.band.layout
    placed = {one.name for one in walls}
    return msgspec.structs.replace(
        facts(deployment, sized.band),
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


def facts(deployment: Deployment, band: PoolBand | None) -> Sizing:
    """What is known of the memory, even where it is too small (`band` None)."""
    found = band.overheads if band else deployment.overheads(deployment.pp - 1)
    weights = band.pool.weights_bytes if band else deployment.weights()
    spread = 0.0 if deployment.stated_weights_bytes else QUANTILE * (found.weights_sd + 0.003 * weights)
    shape, layout = deployment.shape, deployment.layout()
    return Sizing(
        model=deployment.model,
        gpu=deployment.gpu.name,
        gpus=deployment.tp * deployment.pp * deployment.replicas,
        tensor_parallel=deployment.tp,
        pipeline_parallel=deployment.pp,
        replicas=deployment.replicas,
        vllm_version=".".join(map(str, deployment.version)),
        parameters=parameters(shape),
        weights_bytes=weights,
        weights_band_bytes=_around(weights, spread),
        kv_bytes_per_token=kv_bytes_per_token(
            shape, dtype=deployment.dtype, tp=deployment.tp, pp=deployment.pp, kv_dtype=deployment.kv_dtype
        ),
        kv_fixed_bytes_per_request=layout.fixed_blocks * layout.bytes_per_block,
        kv_layout=kinds_of(shape),
        vram_bytes=deployment.gpu.vram_bytes,
        budget_bytes=math.ceil(deployment.gpu.vram_bytes * deployment.utilization),
        overhead_bytes=OverheadBytes(
            activation=found.activation, cuda_graphs=found.cuda_graphs, non_torch=found.non_torch
        ),
        overhead_band_bytes=OverheadBand(
            activation=_around(found.activation, QUANTILE * found.activation_sd),
            cuda_graphs=_around(found.cuda_graphs, QUANTILE * found.cuda_graphs_sd),
            non_torch=_around(found.non_torch, QUANTILE * found.non_torch_sd),
            graphs_in_budget=found.graphs_counted,
        ),
        block_size=layout.block_size,
        max_model_len=deployment.max_model_len,
        calibrated_by=deployment.calibration.source if deployment.calibration else None,
    )


def refusal(deployment: Deployment, reason: str) -> Sizing:
    """What is known where nothing can be held."""
    return msgspec.structs.replace(facts(deployment, None), refused=True, reasons=[reason])


def _around(middle: int, reach: float) -> Band:
    return max(round(middle - reach), 0), middle, round(middle + reach)


def _of_band(band: Band, function: Callable[[int], float]) -> tuple[float, float, float]:
    low, middle, high = (function(one) for one in band)
    return low, middle, high


def _bound(placed: Placed, engines: int) -> Bound:
    low, x, high = (one * engines for one in (placed.low, placed.x, placed.high))
    return Bound(
        name=placed.name,
        users=math.floor(x),
        interval=(math.floor(low), math.floor(high)),
        basis="model",
        users_x=x,
        interval_x=(low, high),
    )


def _alone(steps: StepModel, workload: Workload) -> tuple[float, float, float]:
    tokens = float(workload.prompt.mean() + workload.output.mean() / 2)
    rate = 1.0 / (steps.base_s(1) + steps.per_sequence_s + steps.per_kv_token_s * tokens)
    return rate / SPEED_BAND, rate, rate * SPEED_BAND


def _sensitivity(sized: Sized, workload: Workload) -> list[Effect]:
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
    now = simulated(deployment, sized.steps, workload, users) if users else (1.0, 1.0)
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


def _asked_otherwise(sized: Sized, workload: Workload, users: int, now: tuple[float, float]) -> float:
    """The first wall of another workload. The curve of latency is kept, stretched by what the change does at
    one load near the first wall, `users`, where the p95 of TTFT and TPOT are `now`."""
    moved = size(sized.deployment, workload, latency=False)
    scale = (1.0, 1.0)
    if users:
        after = simulated(sized.deployment, sized.steps, workload, users)
        ttft, tpot = (late / soon if soon > 0 < late else 1.0 for soon, late in zip(now, after, strict=True))
        scale = (ttft, tpot)
    return min([one.x for one in moved.walls] + _latency(sized, *scale))


def _served_otherwise(sized: Sized, deployment: Deployment) -> float:
    """The first wall of a changed server, its latency taken as the same; 0 where it would not start."""
    try:
        moved = size(deployment, sized.workload, latency=False)
    except ValueError:
        return 0.0
    return min([one.x for one in moved.walls] + _latency(sized, 1.0, 1.0))


def _first(sized: Sized, *, scale: float) -> float:
    """The first wall, were every step so many times longer."""
    others = [one.x for one in sized.walls if one.name not in ("ttft", "tpot")]
    return min(others + _latency(sized, scale, scale))


def _latency(sized: Sized, ttft: float, tpot: float) -> list[float]:
    if sized.curve is None:
        return []
    return [one.x for one in sized.curve.walls(sized.workload.slo, ttft_scale=ttft, tpot_scale=tpot)]


def _assumptions(deployment: Deployment, workload: Workload) -> list[str]:
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


def _warnings(deployment: Deployment, workload: Workload, sized: Sized) -> list[str]:
    found = [
        f"{part[0].upper()}{part[1:]} of this model is not counted: give --weights-gib."
        for part in deployment.shape.uncounted
    ]
    if workload.clipped > PAIRS / 100:
        found.append(
            f"{100 * workload.clipped / PAIRS:.0f} % of the requests were longer than max_model_len "
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


# The command line.


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 answered, 2 unreadable, 3 refused."""
    options = _parser().parse_args(argv)
    try:
        if options.claim is not None:
            claims = read_claims(options.claim)
            report.put(sizing_report.claims_text(check_claims(claims), form=options.format))
            return 0
        found = run(options)
    except InputError as problem:
        report.complain(str(problem))
        return 2
    except KeyboardInterrupt:
        return 130
    report.put(sizing_report.written(found, form=options.format))
    if options.figure is not None and not found.refused:
        return _figure(found, options.figure)
    return 3 if found.refused else 0


def _figure(found: Sizing, path: Path) -> int:
    from analysis.reporting import figures as plots

    try:
        path.write_text(plots.svg(lambda axes: plots.vram_parts(axes, found), (7.2, 2.6)), encoding="utf-8")
    except OSError as problem:
        report.complain(f"--figure {path} cannot be written ({problem.strerror}).")
        return 2
    return 0


def run(options: argparse.Namespace) -> Sizing:
    """Raises InputError for what cannot be read or does not go together."""
    if options.config is None or (options.gpu is None and options.vram_gib is None):
        raise InputError(
            "Give --config and --gpu (or --vram-gib, --bandwidth-gbps and --tflops), or --claim."
        )
    laws = [_law(options, name) for name in ("prompt_tokens", "output_tokens", "think_s")]
    shape = _shape(options.config, options.quantization)
    gpu = _gpu(options)
    log = _log(options)
    deployment = _deployment(options, shape, gpu, log)
    notes = _notes(options, deployment, log)
    if log is not None:
        deployment = _calibrated(options, deployment, log)
    slo = Slo(**{name: value for name in Slo.__struct_fields__ if (value := getattr(options, f"slo_{name}"))})
    try:
        band = pool_band(deployment)
    except ValueError as problem:
        return refusal(deployment, str(problem))
    longest = longest_context(deployment, band.blocks[1])
    if longest < deployment.max_model_len:
        if options.max_model_len is not None or longest < 2:
            return refusal(
                deployment,
                f"vLLM would not start: the pool holds no request of {deployment.max_model_len:,} tokens, "
                f"at most one of {longest:,}. Lower --max-model-len.",
            )
        notes.append(
            f"The model's own context of {deployment.max_model_len:,} tokens does not fit the pool, and vLLM "
            f"would not start with it: sized with --max-model-len {longest:,}."
        )
        deployment = replace(deployment, max_model_len=longest)
    workload = draw_workload(laws[0], laws[1], laws[2], slo=slo, limit=deployment.max_model_len)
    return answer(deployment, workload, quantization=options.quantization, notes=notes)


def _law(options: argparse.Namespace, name: str) -> Distribution:
    try:
        return Distribution.parse(getattr(options, name))
    except ValueError as problem:
        raise InputError(f"--{name.replace('_', '-')}: {problem}") from None


def _shape(path: Path, quantization: str | None) -> ModelShape:
    """Of a config.json, with the hf_quant_config.json beside it where there is one."""
    beside = path.with_name("hf_quant_config.json")
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        extra = msgspec.json.decode(beside.read_bytes(), type=dict[str, object]) if beside.exists() else None
        return parse_config(config, quantization=quantization, extra=extra)
    except OSError as problem:
        raise InputError(f"--config {path} cannot be read ({problem.strerror}).") from None
    except (msgspec.DecodeError, ValueError) as problem:
        raise InputError(f"--config {path}: {problem}") from None


def _gpu(options: argparse.Namespace) -> Gpu:
    try:
        gpu = find_gpu(options.gpu) if options.gpu is not None else None
    except ValueError as problem:
        if not (options.vram_gib and options.bandwidth_gbps and options.tflops):
            raise InputError(str(problem)) from None
        gpu = None
    if gpu is None:
        if not (options.vram_gib and options.bandwidth_gbps and options.tflops):
            raise InputError("A card that is not named needs --vram-gib, --bandwidth-gbps and --tflops.")
        gpu = Gpu(
            name=options.gpu or f"{options.vram_gib:g} GiB card",
            vram_bytes=round(options.vram_gib * GIB),
            bandwidth_bytes_s=options.bandwidth_gbps * 1e9,
            flops_s=options.tflops * 1e12,
        )
    changes: dict[str, float] = {}
    if options.vram_gib:
        changes |= {"vram_bytes": round(options.vram_gib * GIB), "vram_sd_bytes": 0.02 * GIB}
    if options.bandwidth_gbps:
        changes["bandwidth_bytes_s"] = options.bandwidth_gbps * 1e9
    if options.tflops:
        changes["flops_s"] = options.tflops * 1e12
    return replace(gpu, **changes)  # type: ignore[arg-type]


def _log(options: argparse.Namespace) -> StartupLog | None:
    if options.vllm_log is not None:
        return read_log(options.vllm_log)
    return read_run(options.calibrate) if options.calibrate is not None else None


def _deployment(
    options: argparse.Namespace, shape: ModelShape, gpu: Gpu, log: StartupLog | None
) -> Deployment:
    version = log.version if log is not None and log.version is not None else CURRENT
    if options.vllm_version is not None:
        try:
            version = parse_version(options.vllm_version)
        except ValueError as problem:
            raise InputError(f"--vllm-version: {problem}") from None
    tokens, seqs = default_batch(gpu)
    pp = options.pp or 1
    tp = options.tp or (max((options.gpus or 1) // pp, 1))
    gpus = options.gpus or tp * pp
    if gpus % (tp * pp):
        raise InputError(f"--gpus {gpus} is not a multiple of --tp {tp} times --pp {pp}.")
    if shape.num_heads % tp:
        raise InputError(f"vLLM cannot split {shape.num_heads} heads over {tp} GPUs: choose another --tp.")
    if options.dtype == "bfloat16" and not gpu.full_graphs:
        raise InputError(f"A {gpu.name} has no bfloat16, and vLLM would not start: use --dtype half.")
    if options.max_model_len == 1:
        raise InputError("--max-model-len 1 leaves no room for an answer.")
    if (options.max_num_batched_tokens or tokens) < (options.max_num_seqs or 0):
        raise InputError("--max-num-batched-tokens must be at least --max-num-seqs, or vLLM does not start.")
    if pp > shape.num_layers:
        raise InputError(f"--pp {pp} is more than the model's {shape.num_layers} layers.")
    deployment = Deployment(
        model=options.name or options.config.stem,
        shape=shape,
        gpu=gpu,
        version=version,
        utilization=options.gpu_memory_utilization or default_utilization(version),
        max_model_len=options.max_model_len or shape.max_position_embeddings,
        max_num_seqs=options.max_num_seqs or min(seqs, options.max_num_batched_tokens or tokens),
        max_num_batched_tokens=options.max_num_batched_tokens or tokens,
        dtype=_dtype(options.dtype, shape, gpu),
        kv_dtype=_kv_dtype(options.kv_cache_dtype, shape),
        tp=tp,
        pp=pp,
        replicas=gpus // (tp * pp),
        enforce_eager=options.enforce_eager,
        block_size=options.block_size,
        stated_weights_bytes=round(options.weights_gib * GIB) if options.weights_gib else None,
    )
    try:
        deployment.layout()
        deployment.weights()
    except ValueError as problem:
        raise InputError(f"--config {options.config}: {problem}") from None
    return deployment


def _kv_dtype(stated: str, shape: ModelShape) -> str:
    """vLLM takes FP8 where the checkpoint brings scales for it."""
    return "fp8" if stated == "auto" and shape.quantisation and shape.quantisation.fp8_cache else stated


def _dtype(stated: str, shape: ModelShape, gpu: Gpu) -> str:
    """vLLM serves float32 checkpoints in 16 bits unless told otherwise."""
    if stated in ("half", "float"):
        return {"half": "float16", "float": "float32"}[stated]
    if stated != "auto":
        return stated
    found = "bfloat16" if shape.dtype == "float32" else shape.dtype
    return "float16" if found == "bfloat16" and not gpu.full_graphs else found


def _notes(options: argparse.Namespace, deployment: Deployment, log: StartupLog | None) -> list[str]:
    found = []
    name = options.config.name.lower()
    if deployment.shape.quantisation is None and any(
        word in name for word in ("fp8", "awq", "gptq", "int8", "int4", "nvfp4", "w8a8", "w4a16")
    ):
        found.append(
            f"{options.config.name} sounds quantised, but neither it nor a hf_quant_config.json beside it "
            "says so: sized in 16 bits. Put that file beside it, or give --quantization."
        )
    if deployment.kv_dtype != options.kv_cache_dtype:
        found.append(
            "The checkpoint brings scales for an FP8 KV cache, which vLLM then uses: so it is sized."
        )
    if log is not None and log.version is not None and log.version[:2] != deployment.version[:2]:
        found.append("The start-up that calibrates was of another version of vLLM than the one sized.")
    return found


def _calibrated(options: argparse.Namespace, deployment: Deployment, log: StartupLog) -> Deployment:
    if log.vram_bytes is not None:
        if abs(log.vram_bytes / deployment.gpu.vram_bytes - 1) > 0.03:
            raise InputError(
                f"{log.source} is of a card with {log.vram_bytes / GIB:.2f} GiB, not of a "
                f"{deployment.gpu.name}: calibrate with a start-up on the same card."
            )
        gpu = replace(deployment.gpu, vram_bytes=log.vram_bytes, vram_sd_bytes=0.005 * GIB)
        deployment = replace(deployment, gpu=gpu)
    shape, same = deployment.shape, True
    if options.calibrate_config is not None:
        shape = _shape(options.calibrate_config, log.quantization)
        same = options.calibrate_config.read_bytes() == options.config.read_bytes()
    started = as_started(deployment, log, shape)
    weights = log.weights_bytes
    if options.calibrate_config is None and weights and abs(weights / started.weights() - 1) > 0.03:
        raise InputError(
            f"{log.source} loaded {weights / GIB:.2f} GiB of weights, this model has "
            f"{started.weights() / GIB:.2f}: name the other model's config.json with --calibrate-config."
        )
    return replace(deployment, calibration=calibration_of(started, log, same_model=same))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.sizing",
        description="How many users would this deployment hold? From the model's config.json and the GPU's "
        "data sheet, without a server and without a GPU.",
        epilog="Exit codes: 0 answered, 2 wrong usage or unreadable input, 3 refused: it does not fit.",
    )
    add = parser.add_argument
    add("--config", type=Path, metavar="FILE", help="the model's config.json")
    add("--name", metavar="TEXT", help="the model's name in the answer (default: the file's)")
    add("--gpu", metavar="NAME", help="T4, L4, A10G, L40S, RTX 4090, A100, H100, H200, B200, MI300X, ...")
    add("--vram-gib", type=positive, metavar="X", help="memory as the driver reports it")
    add("--bandwidth-gbps", type=positive, metavar="Y", help="memory bandwidth, GB/s")
    add("--tflops", type=positive, metavar="Z", help="dense 16-bit TFLOP/s")
    add("--gpus", type=count, metavar="N", help="cards in all; those beyond tp x pp are replicas")
    add("--tp", "--tensor-parallel-size", type=count, metavar="N", help="default: all cards")
    add("--pp", "--pipeline-parallel-size", type=count, metavar="N")
    add("--dtype", default="auto", choices=["auto", "half", "float16", "bfloat16", "float", "float32"])
    add("--quantization", "-q", metavar="METHOD", help="as vLLM's flag: fp8, bitsandbytes, modelopt, ...")
    add("--kv-cache-dtype", default="auto", choices=KV_DTYPES)
    add("--gpu-memory-utilization", type=share, metavar="F", help="default: the version's, 0.92 from 0.20 on")
    add("--max-model-len", type=count, metavar="N", help="default: the model's, lowered to what fits")
    add("--max-num-seqs", type=count, metavar="N", help="default: vLLM's for a card of this size")
    add("--max-num-batched-tokens", type=count, metavar="N", help="the same")
    add("--enforce-eager", action="store_true")
    add("--block-size", type=count, default=16, metavar="N")
    add("--vllm-version", metavar="X.Y.Z", help=f"default: {'.'.join(map(str, CURRENT))}")
    add("--weights-gib", type=positive, metavar="X", help="weights of one GPU, when known")
    add("--prompt-tokens", default="lognormal:512,0.6", metavar="LAW", help="default: %(default)s")
    add("--output-tokens", default="lognormal:128,0.6", metavar="LAW", help="default: %(default)s")
    add("--think-s", default="0", metavar="LAW", help="default: %(default)s")
    add_slo_flags(parser)
    add("--vllm-log", type=Path, metavar="FILE", help="a real start-up on the same card: narrows the band")
    add("--calibrate", type=Path, metavar="RUN", help="the same, from a run folder of a load test")
    add(
        "--calibrate-config",
        type=Path,
        metavar="FILE",
        help="config.json of the model that started up there, when it is another one",
    )
    add("--claim", type=Path, metavar="FILE", help="check claimed figures (TOML) against physics instead")
    add("--format", default="text", choices=["text", "markdown", "json"])
    add("--figure", type=Path, metavar="FILE", help="where the VRAM goes, as SVG")
    return parser


if __name__ == "__main__":
    sys.exit(main())
