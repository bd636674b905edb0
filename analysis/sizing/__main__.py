"""How many users would a deployment hold? From a config.json and a data sheet, before anything runs.

`python -m analysis.sizing --config FILE --gpu NAME`. The memory law is the one that measured runs are judged
by (analysis/memory.py); latency comes from the simulated engine with a roofline's step times.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import msgspec

from analysis.answers.sizing import Sizing
from analysis.cli import add_slo_flags, fraction, positive_integer, positive_number
from analysis.reporting import sizing as sizing_report
from analysis.reporting.console import complain, put
from analysis.sizing.answer import refused_sizing, size_deployment
from analysis.sizing.claims import check_claims, read_claims
from analysis.sizing.deployment import (
    PlannedDeployment,
    longest_context,
    pool_band,
)
from analysis.sizing.predicted import (
    draw_workload,
)
from analysis.sizing.startup_log import (
    StartupLog,
    as_started,
    calibration_of,
    read_startup_log,
    startup_of_run,
)
from loadtest.errors import InputError
from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.cards import Gpu, find_gpu
from loadtest.model.kv_cache import KV_DTYPES
from loadtest.model.startup import CURRENT_VERSION, default_batch_limits, default_utilization, parse_version
from loadtest.record import Slo
from loadtest.units import GIB
from loadtest.workload.distributions import Distribution

# The command line.


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit code: 0 answered, 2 unreadable, 3 refused."""
    options = _parser().parse_args(argv)
    try:
        if options.claim is not None:
            claims = read_claims(options.claim)
            put(sizing_report.claims_text(check_claims(claims), form=options.format))
            return 0
        found = run(options)
    except InputError as problem:
        complain(str(problem))
        return 2
    except KeyboardInterrupt:
        return 130
    put(sizing_report.sizing_text(found, form=options.format))
    if options.figure is not None and not found.refused:
        return _figure(found, options.figure)
    return 3 if found.refused else 0


def _figure(found: Sizing, path: Path) -> int:
    from analysis.reporting import figures as plots
    from analysis.reporting.figure_style import svg

    try:
        path.write_text(svg(lambda axes: plots.vram_parts(axes, found), (7.2, 2.6)), encoding="utf-8")
    except OSError as problem:
        complain(f"--figure {path} cannot be written ({problem.strerror}).")
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
        return refused_sizing(deployment, str(problem))
    longest = longest_context(deployment, band.blocks[1])
    if longest < deployment.max_model_len:
        if options.max_model_len is not None or longest < 2:
            return refused_sizing(
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
    return size_deployment(deployment, workload, quantization=options.quantization, notes=notes)


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
        return read_startup_log(options.vllm_log)
    return startup_of_run(options.calibrate) if options.calibrate is not None else None


def _deployment(
    options: argparse.Namespace, shape: ModelShape, gpu: Gpu, log: StartupLog | None
) -> PlannedDeployment:
    version = log.version if log is not None and log.version is not None else CURRENT_VERSION
    if options.vllm_version is not None:
        try:
            version = parse_version(options.vllm_version)
        except ValueError as problem:
            raise InputError(f"--vllm-version: {problem}") from None
    tokens, seqs = default_batch_limits(gpu)
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
    deployment = PlannedDeployment(
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


def _notes(options: argparse.Namespace, deployment: PlannedDeployment, log: StartupLog | None) -> list[str]:
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


def _calibrated(
    options: argparse.Namespace, deployment: PlannedDeployment, log: StartupLog
) -> PlannedDeployment:
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
    add("--vram-gib", type=positive_number, metavar="X", help="memory as the driver reports it")
    add("--bandwidth-gbps", type=positive_number, metavar="Y", help="memory bandwidth, GB/s")
    add("--tflops", type=positive_number, metavar="Z", help="dense 16-bit TFLOP/s")
    add("--gpus", type=positive_integer, metavar="N", help="cards in all; those beyond tp x pp are replicas")
    add("--tp", "--tensor-parallel-size", type=positive_integer, metavar="N", help="default: all cards")
    add("--pp", "--pipeline-parallel-size", type=positive_integer, metavar="N")
    add("--dtype", default="auto", choices=["auto", "half", "float16", "bfloat16", "float", "float32"])
    add("--quantization", "-q", metavar="METHOD", help="as vLLM's flag: fp8, bitsandbytes, modelopt, ...")
    add("--kv-cache-dtype", default="auto", choices=KV_DTYPES)
    add(
        "--gpu-memory-utilization",
        type=fraction,
        metavar="F",
        help="default: the version's, 0.92 from 0.20 on",
    )
    add(
        "--max-model-len",
        type=positive_integer,
        metavar="N",
        help="default: the model's, lowered to what fits",
    )
    add("--max-num-seqs", type=positive_integer, metavar="N", help="default: vLLM's for a card of this size")
    add("--max-num-batched-tokens", type=positive_integer, metavar="N", help="the same")
    add("--enforce-eager", action="store_true")
    add("--block-size", type=positive_integer, default=16, metavar="N")
    add("--vllm-version", metavar="X.Y.Z", help=f"default: {'.'.join(map(str, CURRENT_VERSION))}")
    add("--weights-gib", type=positive_number, metavar="X", help="weights of one GPU, when known")
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
