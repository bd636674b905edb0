"""Turns the flags of the command into model, card and deployment.

Where a flag is not given, vLLM's default is used.
"""

from dataclasses import dataclass, replace
from pathlib import Path

import msgspec

from analysis.answers.sizing import StatedWorkload
from analysis.sizing.deployment.planned import PlannedDeployment
from analysis.sizing.speculative_config import read_speculative_config
from loadtest.errors import InputError
from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.gpus import Gpu, find_gpu
from loadtest.model.layers.tensors import ExpertPlacement
from loadtest.model.speculation import Speculation
from loadtest.model.startup import (
    CURRENT_VERSION,
    VllmVersion,
    default_batch_limits,
    default_utilization,
    parse_version,
)
from loadtest.units import GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class SizingFlags:
    """Values of the flags; None: not given."""

    config: Path
    name: str | None
    gpu: str | None
    vram_gib: float | None
    bandwidth_gbps: float | None
    tflops: float | None
    gpus: int | None
    tp: int | None
    pp: int | None
    data_parallel_size: int | None
    enable_expert_parallel: bool
    dtype: str
    quantization: str | None
    kv_cache_dtype: str
    gpu_memory_utilization: float | None
    max_model_len: int | None
    max_num_seqs: int | None
    max_num_batched_tokens: int | None
    enforce_eager: bool
    block_size: int
    enable_lora: bool
    max_loras: int | None
    max_lora_rank: int | None
    speculative_config: str | None
    kv_offloading_size: float | None
    flashinfer_sampler: bool | None
    vllm_version: str | None
    weights_gib: float | None
    vllm_log: Path | None
    calibrate: Path | None
    calibrate_config: Path | None
    workload: StatedWorkload


def read_shape(path: Path, quantization: str | None) -> ModelShape:
    """Reads the model of a config.json, and the hf_quant_config.json beside it if there is one.

    Raises InputError if the model cannot be read or is not supported.
    """
    beside = path.with_name("hf_quant_config.json")
    try:
        config = msgspec.json.decode(path.read_bytes(), type=dict[str, object])
        extra = msgspec.json.decode(beside.read_bytes(), type=dict[str, object]) if beside.exists() else None
        return parse_config(config, quantization=quantization, extra=extra)
    except OSError as problem:
        raise InputError(f"--config {path} cannot be read ({problem.strerror}).") from None
    except (msgspec.DecodeError, ValueError) as problem:
        raise InputError(f"--config {path}: {problem}") from None


def gpu_of_flags(flags: SizingFlags) -> Gpu:
    """Returns the named card; figures given by flags replace those of the data sheet.

    Raises InputError for an unknown card, unless flags give all its figures.
    """
    gpu = _named_card(flags)
    if gpu is None:
        if not (flags.vram_gib and flags.bandwidth_gbps and flags.tflops):
            raise InputError("A card that is not named needs --vram-gib, --bandwidth-gbps and --tflops.")
        gpu = Gpu(
            name=flags.gpu or f"{flags.vram_gib:g} GiB card",
            vram_bytes=round(flags.vram_gib * GIB),
            bandwidth_bytes_s=flags.bandwidth_gbps * 1e9,
            flops_s=flags.tflops * 1e12,
        )
    changes: dict[str, float] = {}
    if flags.vram_gib:
        changes |= {"vram_bytes": round(flags.vram_gib * GIB), "vram_sd_bytes": 0.02 * GIB}
    if flags.bandwidth_gbps:
        changes["bandwidth_bytes_s"] = flags.bandwidth_gbps * 1e9
    if flags.tflops:
        changes["flops_s"] = flags.tflops * 1e12
    return replace(gpu, **changes)  # type: ignore[arg-type]


def _named_card(flags: SizingFlags) -> Gpu | None:
    if flags.gpu is None:
        return None
    try:
        return find_gpu(flags.gpu)
    except ValueError as problem:
        if flags.vram_gib and flags.bandwidth_gbps and flags.tflops:
            return None
        raise InputError(str(problem)) from None


def plan_deployment(
    flags: SizingFlags, shape: ModelShape, gpu: Gpu, *, started: VllmVersion | None
) -> PlannedDeployment:
    """Returns the deployment that `vllm serve` would start. Raises InputError if it would not start.

    started: vLLM version of the start-up that corrects the prediction; used if the flags give no version.
    """
    version = _version(flags, started)
    max_model_len = flags.max_model_len or shape.max_position_embeddings
    default_tokens, default_seqs = default_batch_limits(gpu, version=version, max_model_len=max_model_len)
    pp, dp = flags.pp or 1, flags.data_parallel_size or 1
    tp = flags.tp or (max((flags.gpus or 1) // (pp * dp), 1))
    gpus = flags.gpus or tp * pp * dp
    _refuse_impossible(flags, shape, gpu, tp=tp, pp=pp, dp=dp, gpus=gpus)
    _refuse_combinations(flags, shape)
    tokens = flags.max_num_batched_tokens or default_tokens
    if tokens < (flags.max_num_seqs or 0):
        raise InputError("--max-num-batched-tokens must be at least --max-num-seqs, or vLLM does not start.")
    deployment = PlannedDeployment(
        model=flags.name or flags.config.stem,
        shape=shape,
        gpu=gpu,
        version=version,
        utilization=flags.gpu_memory_utilization or default_utilization(version),
        max_model_len=max_model_len,
        max_num_seqs=flags.max_num_seqs or min(default_seqs, tokens),
        max_num_batched_tokens=tokens,
        dtype=_dtype(flags.dtype, shape, gpu),
        kv_dtype=_kv_dtype(flags.kv_cache_dtype, shape),
        tp=tp,
        pp=pp,
        replicas=gpus // (tp * pp),
        experts=ExpertPlacement(
            data_parallel=dp if shape.experts_per_token else 1, expert_parallel=flags.enable_expert_parallel
        ),
        max_loras=(flags.max_loras or 1) if flags.enable_lora else 0,
        max_lora_rank=flags.max_lora_rank or 16,
        speculation=_speculation(flags, shape),
        enforce_eager=flags.enforce_eager,
        flashinfer=flags.flashinfer_sampler,
        block_size=flags.block_size,
        stated_weights_bytes=round(flags.weights_gib * GIB) if flags.weights_gib else None,
    )
    try:
        deployment.layout()
        deployment.weights()
    except ValueError as problem:
        raise InputError(f"--config {flags.config}: {problem}") from None
    return deployment


def _version(flags: SizingFlags, started: VllmVersion | None) -> VllmVersion:
    if flags.vllm_version is None:
        return started or CURRENT_VERSION
    try:
        return parse_version(flags.vllm_version)
    except ValueError as problem:
        raise InputError(f"--vllm-version: {problem}") from None


def _refuse_impossible(
    flags: SizingFlags, shape: ModelShape, gpu: Gpu, *, tp: int, pp: int, dp: int, gpus: int
) -> None:
    if gpus % (tp * pp * dp):
        times = f" times --data-parallel-size {dp}" if dp > 1 else ""
        raise InputError(f"--gpus {gpus} is not a multiple of --tp {tp} times --pp {pp}{times}.")
    if shape.num_heads % tp:
        raise InputError(f"vLLM cannot split {shape.num_heads} heads over {tp} GPUs: choose another --tp.")
    if pp > shape.num_layers:
        raise InputError(f"--pp {pp} is more than the model's {shape.num_layers} layers.")
    if flags.dtype == "bfloat16" and not gpu.full_graphs:
        raise InputError(f"A {gpu.name} has no bfloat16, and vLLM would not start: use --dtype half.")
    if flags.max_model_len == 1:
        raise InputError("--max-model-len 1 leaves no room for an answer.")


def _refuse_combinations(flags: SizingFlags, shape: ModelShape) -> None:
    if flags.enable_expert_parallel and not shape.experts_per_token:
        raise InputError("--enable-expert-parallel is for models with experts, and this one has none.")
    if not flags.enable_lora and (flags.max_loras or flags.max_lora_rank):
        raise InputError("--max-loras and --max-lora-rank need --enable-lora.")
    if flags.speculative_config is not None and (flags.pp or 1) > 1:
        raise InputError("--speculative-config with --pp is not supported: a draft runs on one stage only.")


def _speculation(flags: SizingFlags, shape: ModelShape) -> Speculation | None:
    stated = flags.speculative_config
    return None if stated is None else read_speculative_config(stated, shape)


def _kv_dtype(stated: str, shape: ModelShape) -> str:
    """Returns the type of the KV cache. With `auto`, vLLM uses FP8 if the checkpoint has scales for it."""
    return "fp8" if stated == "auto" and shape.quantisation and shape.quantisation.fp8_cache else stated


def _dtype(stated: str, shape: ModelShape, gpu: Gpu) -> str:
    """Returns the type of the weights.

    With `auto`, vLLM serves float32 checkpoints in bfloat16, and replaces bfloat16 by float16 on cards
    without it.
    """
    if stated in ("half", "float"):
        return {"half": "float16", "float": "float32"}[stated]
    if stated != "auto":
        return stated
    dtype = "bfloat16" if shape.dtype == "float32" else shape.dtype
    return "float16" if dtype == "bfloat16" and not gpu.full_graphs else dtype
