"""Compares sizing before deployment with published start-up logs: `python -m benchmarks sizing`.

The logs are not part of the repository. SEATCOUNT_STARTUPS names a JSON Lines file with one start-up per
line: model, GPU, flags, architecture numbers, and what vLLM logged. The constants of
loadtest/model/startup.py were fitted to Llama's rows of vLLM 0.19; every other family is held out.
"""

import json
import os
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from analysis.sizing.deployment.planned import PlannedDeployment, StartupCalibration
from analysis.sizing.deployment.pool import PoolBand, log_tokens, max_concurrency, pool_band
from loadtest.model.architectures import parse_config
from loadtest.model.gpus import H100, find_gpu
from loadtest.model.kv_cache import kv_bytes_per_token
from loadtest.model.quantisation import UnsupportedModelError
from loadtest.model.startup import CURRENT_VERSION, default_batch_limits, default_utilization, parse_version
from loadtest.units import GIB

STARTUPS = "SEATCOUNT_STARTUPS"
FITTED = "Llama-3"

_Row = Mapping[str, object]

W8A8: dict[str, object] = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 8, "type": "int", "strategy": "channel"}}
    },
    "ignore": ["lm_head"],
}
W4A16: dict[str, object] = {
    "quant_method": "compressed-tensors",
    "config_groups": {
        "group_0": {"targets": ["Linear"], "weights": {"num_bits": 4, "strategy": "group", "group_size": 32}}
    },
    "ignore": ["lm_head", "re:.*self_attn.*", "re:.*shared_experts.*", "re:.*mlp\\.(gate|up|down)_proj.*"],
}

DEEPSEEK_R1: dict[str, object] = {
    "model_type": "deepseek_v3",
    "hidden_size": 7168,
    "intermediate_size": 18432,
    "num_hidden_layers": 61,
    "num_attention_heads": 128,
    "q_lora_rank": 1536,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "moe_intermediate_size": 2048,
    "n_routed_experts": 256,
    "n_shared_experts": 1,
    "num_experts_per_tok": 8,
    "first_k_dense_replace": 3,
    "max_position_embeddings": 163840,
    "quantization_config": {"quant_method": "fp8", "weight_block_size": [128, 128]},
}

# Fields of the published config.json that the rows lack, by a part of the model's name.
FACTS: dict[str, dict[str, object]] = {
    "gemma-2": {"model_type": "gemma2"},
    "gemma-3-1b": {
        "model_type": "gemma3_text",
        "max_position_embeddings": 32768,
        "rope_local_base_freq": 10000,
    },
    "gemma-3": {
        "model_type": "gemma3_text",
        "max_position_embeddings": 131072,
        "rope_local_base_freq": 10000,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    },
    "gemma-7b": {"model_type": "gemma", "max_position_embeddings": 8192},
    "granite-3.1": {"model_type": "granite", "vocab_size": 49155, "tie_word_embeddings": True},
    "Llama-4-Scout": {
        "model_type": "llama4_text",
        "intermediate_size_mlp": 16384,
        "num_local_experts": 16,
        "max_position_embeddings": 10485760,
    },
    "Llama-3": {"model_type": "llama", "max_position_embeddings": 131072},
    "codellama": {"model_type": "llama", "max_position_embeddings": 16384},
    "Mistral-Small": {"model_type": "mistral", "max_position_embeddings": 131072},
    "Mixtral": {"model_type": "mixtral", "max_position_embeddings": 32768},
    "llava-v1.6-mistral": {"model_type": "mistral", "max_position_embeddings": 32768},
    "Qwen1.5-MoE": {"model_type": "qwen2_moe", "shared_expert_intermediate_size": 5632},
    "Qwen2.5": {"model_type": "qwen2", "max_position_embeddings": 32768},
    "Qwen2-7B": {"model_type": "qwen2", "max_position_embeddings": 32768},
    "Qwen3-30B": {"model_type": "qwen3_moe"},
    "Qwen3-VL-30B": {
        "model_type": "qwen3_moe",
        "hidden_size": 2048,
        "num_hidden_layers": 48,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "head_dim": 128,
        "max_position_embeddings": 262144,
    },
    "Qwen3": {"model_type": "qwen3"},
    "gpt-oss": {
        "model_type": "gpt_oss",
        "max_position_embeddings": 131072,
        "quantization_config": {"quant_method": "mxfp4"},
    },
    "Kimi-VL": {
        "model_type": "deepseek_v3",
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "moe_intermediate_size": 1408,
        "n_routed_experts": 64,
        "n_shared_experts": 2,
        "first_k_dense_replace": 1,
        "max_position_embeddings": 131072,
    },
    "DeepSeek-R1": DEEPSEEK_R1,
    "Kimi-K2": {
        "model_type": "deepseek_v3",
        "q_lora_rank": 1536,
        "qk_nope_head_dim": 128,
        "v_head_dim": 128,
        "moe_intermediate_size": 2048,
        "n_routed_experts": 384,
        "n_shared_experts": 1,
        "first_k_dense_replace": 1,
        "quantization_config": W4A16,
    },
    "phi-2": {"model_type": "phi", "max_position_embeddings": 2048},
}
SIGLIP = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "num_hidden_layers": 27,
    "patch_size": 14,
    "image_size": 896,
}
PIXTRAL = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "patch_size": 14}
CLIP = PIXTRAL | {"image_size": 336}
LLAMA4_TOWER = {
    "hidden_size": 1408,
    "intermediate_size": 5632,
    "num_hidden_layers": 34,
    "patch_size": 14,
    "image_size": 336,
    "projector_input_dim": 4096,
    "projector_output_dim": 4096,
    "vision_output_dim": 4096,
}
MOONVIT = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27, "patch_size": 14}
QWEN3_VL: dict[str, object] = {
    "hidden_size": 1152,
    "intermediate_size": 4304,
    "depth": 27,
    "patch_size": 16,
    "temporal_patch_size": 2,
    "in_channels": 3,
    "spatial_merge_size": 2,
    "out_hidden_size": 2048,
    "num_position_embeddings": 2304,
    "deepstack_visual_indexes": [8, 16, 24],
}
TOWERS: dict[str, tuple[str, Mapping[str, object]]] = {
    "gemma-3": ("gemma3", SIGLIP),
    "Mistral-Small-3.1": ("mistral3", PIXTRAL),
    "llava-v1.6": ("llava_next", CLIP),
    "Llama-4-Scout": ("llama4", LLAMA4_TOWER),
    "Kimi-VL": ("kimi_vl", MOONVIT),
    "Qwen3-VL": ("qwen3_vl_moe", QWEN3_VL),
}
"""Multimodal models, by a part of their name: the outer model_type, and known fields of the vision config."""


@dataclass(frozen=True, kw_only=True)
class Startup:
    """One start-up log: the deployment, and what vLLM logged (memory in bytes). None: not logged."""

    name: str
    deployment: PlannedDeployment
    weights: float | None
    kv_bytes: float | None
    tokens: float | None
    activation: float | None
    non_torch: float | None
    concurrency: float | None
    placed: bool
    """Whether GPU and version are known, so that the pool can be predicted and not only its arithmetic."""

    @property
    def fitted(self) -> bool:
        return FITTED.lower() in self.name.lower() and self.deployment.version[:2] == (0, 19)


def main() -> None:
    """Prints predicted and logged values, and the median errors."""
    path = os.environ.get(STARTUPS)
    if path is None:
        print(f"sizing: set {STARTUPS} to a JSON Lines file of start-up logs to compare with.")
        return
    rows = [json.loads(line) for line in Path(path).read_text().splitlines() if line.strip()]
    startups, skipped = [], []
    for row in rows:
        try:
            startups.append(read(row))
        except (UnsupportedModelError, ValueError) as problem:
            skipped.append((str(row.get("model")), str(problem)))
    _print_rows(startups)
    _print_bytes(startups)
    _print_tokens(startups)
    _print_groups(startups)
    _print_calibrated(startups)
    for name, why in skipped:
        print(f"  left out: {name}: {why[:90]}")


def read(row: _Row) -> Startup:
    """Builds a Startup from a row. Raises ValueError or UnsupportedModelError if the row lacks facts."""
    name = str(row["model"])
    shape = parse_config(_config(row), quantization=_online(row))
    placed = bool(row.get("gpu")) and bool(row.get("vllm_version"))
    gpu = find_gpu(str(row["gpu"])) if row.get("gpu") else H100
    if row.get("gpu_memory_gib"):
        gpu = replace(gpu, vram_bytes=round(_number(row, "gpu_memory_gib") * GIB), vram_sd_bytes=0.01 * GIB)
    version = parse_version(str(row["vllm_version"])) if row.get("vllm_version") else CURRENT_VERSION
    context = int(_number(row, "max_model_len", shape.max_position_embeddings))
    tokens, seqs = default_batch_limits(gpu, version=version, max_model_len=context)
    dtype = str(row.get("dtype") or shape.dtype)
    deployment = PlannedDeployment(
        model=name,
        shape=shape,
        gpu=gpu,
        version=version,
        utilization=_number(row, "gpu_memory_utilization", default_utilization(version)),
        max_model_len=context,
        max_num_seqs=int(_number(row, "max_num_seqs", seqs)),
        max_num_batched_tokens=int(_number(row, "max_num_batched_tokens", tokens)),
        dtype=dtype,
        kv_dtype=str(row.get("kv_cache_dtype") or "auto"),
        tp=int(_number(row, "tp", 1)),
        pp=int(_number(row, "pp", 1)),
        enforce_eager=bool(row.get("enforce_eager")),
        block_size=int(_number(row, "block_size", 16)),
    )
    kv_bytes = _gib(row, "kv_cache_gib_logged")
    if deployment.pp > 1 and row.get("gpu_blocks_logged"):
        # The logged GiB are those of the first stage; the smallest pool, that of the last stage, decides.
        stage = deployment.layout(deployment.pp - 1)
        kv_bytes = _number(row, "gpu_blocks_logged") * stage.bytes_per_block
    tokens_logged = _optional(row, "kv_cache_tokens_logged")
    if kv_bytes is None and tokens_logged is not None and deployment.layout().uniform:
        layout = deployment.layout()
        kv_bytes = tokens_logged / layout.block_size * layout.bytes_per_block
    return Startup(
        name=name,
        deployment=deployment,
        weights=_gib(row, "weights_gib_logged"),
        kv_bytes=kv_bytes,
        tokens=tokens_logged,
        activation=_gib(row, "activation_gib_logged"),
        non_torch=_gib(row, "non_torch_gib_logged"),
        concurrency=_optional(row, "max_concurrency_logged"),
        placed=placed,
    )


def _optional(row: _Row, name: str) -> float | None:
    value = row.get(name)
    return float(value) if isinstance(value, int | float) else None


def _number(row: _Row, name: str, default: float | None = None) -> float:
    value = _optional(row, name)
    if value is None:
        value = default
    if value is None:
        raise ValueError(f"the row has no {name}")
    return value


def _gib(row: _Row, name: str) -> float | None:
    value = _optional(row, name)
    return None if value is None else value * GIB


def _config(row: _Row) -> dict[str, object]:
    """Builds the config.json of the row's model."""
    name = str(row["model"])
    facts = next((found for part, found in FACTS.items() if part.lower() in name.lower()), None)
    if facts is None:
        raise UnsupportedModelError("its architecture is not in this benchmark's table")
    config = {key: value for key, value in row.items() if value is not None}
    extra = row.get("arch_extra")
    config |= dict(extra) if isinstance(extra, Mapping) else {}
    config = {"torch_dtype": "bfloat16", "max_position_embeddings": 40960} | config | facts
    if "num_experts" in config:
        config.setdefault("num_local_experts", config["num_experts"])
    if "w8a8" in name:
        config["quantization_config"] = W8A8
    if isinstance(extra, Mapping) and "dcp" in extra:
        raise UnsupportedModelError("its cache is spread by decode context parallelism")
    if isinstance(extra, Mapping) and "mla_latent_padded_to" in extra:
        raise UnsupportedModelError("its latent vectors are padded, as by one backend of engine V0")
    if name.endswith("-FP8"):
        config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [128, 128]}
    extra = config.get("arch_extra")
    if isinstance(extra, Mapping) and extra.get("vision_tower"):
        outer, tower = next(found for part, found in TOWERS.items() if part in name)
        return {"model_type": outer, "text_config": config, "vision_config": tower}
    return config


def _online(row: _Row) -> str | None:
    """Returns "fp8" if the model is stored in 16 bits and quantised when loaded; else None."""
    stored = "quantization_config" in json.dumps(_config(row))
    return "fp8" if row.get("quantised") and not stored else None


def _print_rows(startups: Sequence[Startup]) -> None:
    print("sizing: predicted / logged, GiB on one GPU; * held out")
    for one in (one for one in startups if one.placed):
        try:
            band = pool_band(one.deployment)
        except ValueError as problem:
            print(f"  {one.name}: {problem}")
            continue
        found, mark = one.deployment, " " if one.fitted else "*"
        flags = f"{found.gpu.name[-12:]} v{'.'.join(map(str, found.version))} tp{found.tp} pp{found.pp}"
        cells = [
            _pair(found.weights(), one.weights),
            _pair(band.overheads.activation, one.activation),
            _pair(band.overheads.non_torch, one.non_torch),
            _pair(band.pool.kv_bytes, one.kv_bytes),
        ]
        if one.kv_bytes:
            inside = band.kv_bytes[0] <= one.kv_bytes <= band.kv_bytes[2]
            cells.append(
                f"{100 * (band.pool.kv_bytes / one.kv_bytes - 1):+5.1f} % {'in' if inside else 'OUT'}"
            )
        print(f" {mark}{one.name[:38]:38s} {flags:38s} {'  '.join(cells)}")


def _pair(predicted: float, logged: float | None) -> str:
    text = "-" if logged is None else f"{logged / GIB:.2f}"
    return f"{predicted / GIB:6.2f}/{text:6s}"


def _print_bytes(startups: Sequence[Startup]) -> None:
    """Prints the error of KV bytes a token, for layouts that have one such figure.

    The logged value is GiB over tokens. Its rounding (0.005 GiB and a block) is subtracted from the error.
    """
    errors = []
    for one in startups:
        found = one.deployment
        per = kv_bytes_per_token(
            found.shape, dtype=found.dtype, kv_dtype=found.kv_dtype, tp=found.tp, pp=found.pp
        )
        if per is None or one.kv_bytes is None or one.tokens is None:
            continue
        missing = abs(per * one.tokens - one.kv_bytes) - 0.005 * GIB - per * found.block_size
        errors.append(max(missing, 0.0) / one.kv_bytes)
    exact = sum(error == 0 for error in errors)
    if not errors:
        return
    print(
        "sizing: KV bytes a token, full attention and MLA: median error "
        f"{100 * statistics.median(errors):.2f} %, exact within rounding in {exact} of {len(errors)}"
    )


def _print_tokens(startups: Sequence[Startup]) -> None:
    """Prints the errors of tokens and concurrency, computed from the logged pool as vLLM does."""
    print("sizing: block arithmetic, from the logged GiB (which have two decimals)")
    errors, lines = [], []
    for one in startups:
        if one.kv_bytes is None or one.tokens is None:
            continue
        layout = one.deployment.layout(one.deployment.pp - 1)
        blocks = int(one.kv_bytes // layout.bytes_per_block)
        error = log_tokens(one.deployment, blocks) / one.tokens - 1
        errors.append(abs(error))
        said = max_concurrency(one.deployment, blocks)
        if abs(error) > 0.005:
            lines.append(f"  {one.name}: {log_tokens(one.deployment, blocks):,} of {one.tokens:,.0f} tokens")
        if one.concurrency and abs(said / one.concurrency - 1) > 0.01:
            lines.append(f"  {one.name}: concurrency {said:.2f}, logged {one.concurrency:.2f}")
    if errors:
        print(f"  median error {100 * statistics.median(errors):.3f} % over {len(errors)}; off by more:")
        print("\n".join(lines) or "  none")


def _print_calibrated(startups: Sequence[Startup]) -> None:
    """Prints the pool's error without calibration, and calibrated on a start-up of another model.

    Both have the same GPU, version and parallelism.
    """
    errors: list[float] = []
    inside = 0
    known = [one for one in startups if one.kv_bytes and one.placed and not one.fitted]
    held = [pool_band(one.deployment) for one in known]
    plain = [_error(band, one) for band, one in zip(held, known, strict=True)]
    covered = sum(
        band.kv_bytes[0] <= (one.kv_bytes or 0) <= band.kv_bytes[2]
        for band, one in zip(held, known, strict=True)
    )
    print(
        f"sizing: uncalibrated, {len({one.name for one in known})} models held out: median error "
        f"{100 * statistics.median(map(abs, plain)):.2f} %, band covers {covered} of {len(plain)}"
    )
    for one in startups:
        teachers = [other for other in startups if _teaches(other, one)]
        if one.kv_bytes is None or not teachers:
            continue
        for teacher in teachers:
            deployment = replace(one.deployment, calibration=learn(teacher))
            band = pool_band(deployment)
            errors.append(abs(_error(band, one)))
            inside += band.kv_bytes[0] <= one.kv_bytes <= band.kv_bytes[2]
    if errors:
        print(
            f"sizing: calibrated on one other model: median error {100 * statistics.median(errors):.2f} %, "
            f"band covers {inside} of {len(errors)} pairs"
        )


def _print_groups(startups: Sequence[Startup]) -> None:
    """Prints the pool's error and how often its band holds, by version, by card and by family of models."""
    known = [(one, pool_band(one.deployment)) for one in startups if one.kv_bytes and one.placed]
    groupings: dict[str, Callable[[Startup], str]] = {
        "version": lambda one: ".".join(map(str, one.deployment.version[:2])),
        "card": lambda one: one.deployment.gpu.name,
        "GPUs of one model": lambda one: str(one.deployment.tp * one.deployment.pp),
        "family": lambda one: one.deployment.shape.model_type,
    }
    for name, group_of in groupings.items():
        print(f"sizing: pool, nothing calibrated, by {name}: start-ups, median error, band holds, its width")
        for group in sorted({group_of(one) for one, _ in known}):
            rows = [(one, band) for one, band in known if group_of(one) == group]
            held = sum(band.kv_bytes[0] <= (one.kv_bytes or 0) <= band.kv_bytes[2] for one, band in rows)
            error = statistics.median(abs(_error(band, one)) for one, band in rows)
            width = statistics.median(
                (band.kv_bytes[2] - band.kv_bytes[0]) / 2 / band.kv_bytes[1] for _, band in rows
            )
            print(f"  {group:24s} {len(rows):3d}  {100 * error:5.2f} %  {held:3d}  +-{100 * width:4.1f} %")


def _error(band: PoolBand, one: Startup) -> float:
    return band.pool.kv_bytes / (one.kv_bytes or 1.0) - 1.0


def _teaches(teacher: Startup, one: Startup) -> bool:
    """Whether `teacher` can calibrate `one`: another model on the same GPU, version and parallelism."""
    a, b = teacher.deployment, one.deployment
    return (
        teacher.name != one.name
        and one.placed
        and teacher.placed
        and (a.gpu.name, a.version, a.tp, a.pp) == (b.gpu.name, b.version, b.tp, b.pp)
        and teacher.activation is not None
        and teacher.non_torch is not None
    )


def learn(teacher: Startup) -> StartupCalibration:
    predicted = teacher.deployment.overheads(teacher.deployment.pp - 1)
    return StartupCalibration(
        source=teacher.name,
        activation=(teacher.activation or 0.0) / predicted.activation,
        non_torch_bytes=round(teacher.non_torch or 0.0),
    )
