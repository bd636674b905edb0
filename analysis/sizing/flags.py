"""The flags that state a planned deployment, and the model, card and deployment that they state.

Where a flag is not given, vLLM's default is used.
"""

import argparse
import functools
from dataclasses import dataclass, fields, replace
from pathlib import Path

import msgspec

from analysis.answers.sizing import StatedWorkload
from analysis.cli import cli_flag, fraction, positive_integer, positive_number
from analysis.sizing.deployment.planned import PlannedDeployment
from analysis.sizing.speculative_config import read_speculative_config
from loadtest.errors import InputError
from loadtest.model.architectures import ModelShape, parse_config
from loadtest.model.gpus import Gpu, find_gpu
from loadtest.model.kv_cache import KV_DTYPES
from loadtest.model.layers.tensors import ExpertPlacement
from loadtest.model.speculation import Speculation
from loadtest.model.startup import (
    CURRENT_VERSION,
    VllmVersion,
    default_batch_limits,
    default_utilization,
    parse_version,
)
from loadtest.model.weights import LORA_RANKS
from loadtest.record import Slo, UserClass
from loadtest.units import GIB
from loadtest.workload.classes import ClassPlan, read_workload_file
from loadtest.workload.distributions import Distribution

DEFAULT_WORKLOAD = {
    "prompt_tokens": "lognormal:512,0.6",
    "output_tokens": "lognormal:128,0.6",
    "think_s": "0",
}
"""What users ask where neither flags nor a workload file say."""
REPLACED_FLAGS = (*DEFAULT_WORKLOAD, "turns", "shared_prefix_tokens")
"""Flags that a workload file replaces."""


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
    workload_file: Path | None
    workload: StatedWorkload


def read_shape(path: Path, quantization: str | None) -> ModelShape:
    """Reads the model of a config.json, and the hf_quant_config.json beside it if there is one.

    Raises InputError if the model cannot be read or is not supported.
    """
    beside = path.with_name("hf_quant_config.json")
    try:
        return _shape_of(path.read_bytes(), beside.read_bytes() if beside.exists() else None, quantization)
    except OSError as problem:
        raise InputError(f"--config {path} cannot be read ({problem.strerror}).") from None
    except (msgspec.DecodeError, ValueError) as problem:
        raise InputError(f"--config {path}: {problem}") from None


@functools.lru_cache(maxsize=8)  # every candidate of a purchase asks for the same model
def _shape_of(config: bytes, extra: bytes | None, quantization: str | None) -> ModelShape:
    content = msgspec.json.decode(config, type=dict[str, object])
    beside = None if extra is None else msgspec.json.decode(extra, type=dict[str, object])
    return parse_config(content, quantization=quantization, extra=beside)


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


def add_sizing_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that state a planned deployment and its workload, but not the objectives."""
    _add_model_flags(parser)
    _add_server_flags(parser)
    _add_workload_flags(parser)
    _add_calibration_flags(parser)


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model and cards").add_argument
    add("--config", type=Path, metavar="FILE", help="the model's config.json")
    add("--name", metavar="TEXT", help="the model's name in the answer (default: the file's)")
    add(
        "--gpu",
        metavar="NAME",
        help="T4, L4, A10G, L40S, RTX 4090, A100, H100, H200, B200, MI300X, ...; with --for-users several, "
        "with commas between",
    )
    add("--vram-gib", type=positive_number, metavar="X", help="memory as the driver reports it")
    add("--bandwidth-gbps", type=positive_number, metavar="Y", help="memory bandwidth, GB/s")
    add("--tflops", type=positive_number, metavar="Z", help="dense 16-bit TFLOP/s")
    add(
        "--gpus",
        type=positive_integer,
        metavar="N",
        help="number of cards; those beyond tp x pp hold replicas",
    )
    add("--weights-gib", type=positive_number, metavar="X", help="weights of one GPU, when known")


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("flags of vllm serve").add_argument
    add("--tp", "--tensor-parallel-size", type=positive_integer, metavar="N", help="default: all cards")
    add("--pp", "--pipeline-parallel-size", type=positive_integer, metavar="N", help="default: 1")
    add(
        "--data-parallel-size",
        type=positive_integer,
        metavar="N",
        help="engines of one server, which divide a model's experts (default: 1)",
    )
    add("--enable-expert-parallel", action="store_true", help="divide whole experts, not their widths")
    add("--dtype", default="auto", choices=["auto", "half", "float16", "bfloat16", "float", "float32"])
    add("--quantization", "-q", metavar="METHOD", help="fp8, bitsandbytes, modelopt, ...")
    add("--kv-cache-dtype", default="auto", choices=KV_DTYPES)
    add(
        "--gpu-memory-utilization",
        type=fraction,
        metavar="F",
        help="default: that of the version, 0.92 from 0.20 on",
    )
    add(
        "--max-model-len",
        type=positive_integer,
        metavar="N",
        help="default: the model's own, lowered to what fits",
    )
    default = "default: vLLM's for a card of this size"
    add("--max-num-seqs", type=positive_integer, metavar="N", help=default)
    add("--max-num-batched-tokens", type=positive_integer, metavar="N", help=default)
    add("--enforce-eager", action="store_true", help="without CUDA graphs")
    add("--block-size", type=positive_integer, default=16, metavar="N", help="default: %(default)s")
    add("--enable-lora", action="store_true", help="with buffers for adapters")
    add("--max-loras", type=positive_integer, metavar="N", help="adapters in one batch (default: 1)")
    add("--max-lora-rank", type=int, choices=LORA_RANKS, help="default: 16")
    add(
        "--speculative-config",
        metavar="JSON",
        help="method (draft_model, eagle3, mtp, ngram), num_speculative_tokens, model (its config.json)",
    )
    add("--kv-offloading-size", type=positive_number, metavar="GIB", help="CPU memory for evicted KV blocks")
    add(
        "--flashinfer-sampler",
        action=argparse.BooleanOptionalAction,
        help="whether FlashInfer samples (VLLM_USE_FLASHINFER_SAMPLER); counts before 0.17",
    )
    add("--vllm-version", metavar="X.Y.Z", help=f"default: {'.'.join(map(str, CURRENT_VERSION))}")


def _add_workload_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("workload").add_argument
    add(
        "--workload",
        type=Path,
        metavar="FILE",
        help="the workload file of a load test: classes of users, such as chat and agents, each with its "
        "lengths, pauses and objectives (docs/workloads.md); in place of the flags below",
    )
    for name, default in DEFAULT_WORKLOAD.items():
        add(cli_flag(name), metavar="DIST", help=f"default: {default}")
    add(
        "--turns",
        type=positive_integer,
        metavar="N",
        help="turns of a conversation; each request sends its history (default: 1)",
    )
    add(
        "--shared-prefix-tokens",
        type=positive_integer,
        metavar="N",
        help="tokens of a text that every prompt begins with, such as a system prompt, on top of the prompt",
    )
    one = parser.add_argument_group("one load, to predict its latency too").add_mutually_exclusive_group()
    one.add_argument("--at-users", type=positive_integer, metavar="N", help="this number of users")
    one.add_argument(
        "--at-rate", type=positive_number, metavar="R", help="requests a second into one replica (Poisson)"
    )


def _add_calibration_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("calibration").add_argument
    add(
        "--vllm-log",
        type=Path,
        metavar="FILE",
        help="log of a real start-up on the same card: narrows the band",
    )
    add("--calibrate", type=Path, metavar="RUN", help="run folder of a load test, in place of a log")
    add(
        "--calibrate-config",
        type=Path,
        metavar="FILE",
        help="config.json of the model that started there, when it is another one",
    )


def sizing_flags(options: argparse.Namespace) -> SizingFlags:
    """Returns the flags of a command whose parser has those of `add_sizing_flags` and the objectives.

    Raises InputError without --config, and for flags that contradict each other.
    """
    if options.config is None:
        raise InputError("Give --config, the model's config.json.")
    if options.slo_stall_p95_s is not None:
        raise InputError(
            "--slo-stall-p95-s: stalls are not predicted before a deployment. Leave it out, and measure them "
            "with a load test."
        )
    objectives = {name: getattr(options, f"slo_{name}") for name in Slo.__struct_fields__}
    workload = _stated_workload(
        options, Slo(**{name: value for name, value in objectives.items() if value is not None})
    )
    names = {field.name for field in fields(SizingFlags)} - {"workload", "workload_file"}
    values = {name: getattr(options, name) for name in names}
    return SizingFlags(workload=workload, workload_file=options.workload, **values)


def _stated_workload(options: argparse.Namespace, slo: Slo) -> StatedWorkload:
    """Returns what the flags or the workload file say of the users.

    Raises InputError for both at once, a file that cannot be used, and conversations in an open loop.
    """
    path: Path | None = options.workload
    given = [name for name in REPLACED_FLAGS if getattr(options, name) is not None]
    if path is not None and given:
        raise InputError(
            f"{cli_flag(given[0])} cannot be combined with --workload: the file {path} says what users ask."
        )
    lengths: dict[str, str | None] = dict.fromkeys(DEFAULT_WORKLOAD)
    if path is None:
        lengths = {name: getattr(options, name) or default for name, default in DEFAULT_WORKLOAD.items()}
    stated = StatedWorkload(
        **lengths,
        slo=slo,
        turns=options.turns or 1,
        shared_prefix_tokens=options.shared_prefix_tokens or 0,
        classes=_classes_of(path) if path is not None else [],
        at_users=options.at_users,
        at_rate=options.at_rate,
    )
    _check_distributions(stated)
    for one in stated.user_classes if stated.at_rate is not None else []:
        if ClassPlan.of(one).has_history:
            where = f"turns and steps of class '{one.name}'" if one.name else "--turns"
            raise InputError(f"--at-rate cannot be combined with {where}: an open loop has no conversations.")
    return stated


def _classes_of(path: Path) -> list[UserClass]:
    try:
        return read_workload_file(path)
    except OSError as problem:
        raise InputError(f"--workload {path} cannot be read ({problem.strerror}).") from None
    except ValueError as problem:
        raise InputError(str(problem)) from None


def _check_distributions(stated: StatedWorkload) -> None:
    """Raises InputError, with the flag, for a distribution that cannot be read."""
    for name in DEFAULT_WORKLOAD:
        text = getattr(stated, name)
        try:
            if text is not None:
                Distribution.parse(text)
        except ValueError as problem:
            raise InputError(f"{cli_flag(name)}: {problem}") from None
