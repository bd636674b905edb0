"""Memory that vLLM's start-up takes beside the weights, by version, with its uncertainty. Knows no
workload."""

import re
from dataclasses import dataclass

from loadtest.model.architectures import ModelShape
from loadtest.model.gpus import Gpu
from loadtest.model.quantisation import dtype_bytes
from loadtest.units import GIB

VllmVersion = tuple[int, int, int]
CURRENT_VERSION: VllmVersion = (0, 32, 0)
SORTING_SAMPLER_FROM: VllmVersion = (0, 11, 1)
"""FlashInfer's sampler is no longer the default (vllm-project/vllm#26859)."""
TRITON_SAMPLER_FROM: VllmVersion = (0, 17, 0)
"""Top-k and top-p need no sort (vllm-project/vllm#33538, February 2026)."""
GRAPHS_COUNTED_FROM: VllmVersion = (0, 21, 0)
"""CUDA graphs count against --gpu-memory-utilization."""
HIGHER_UTILIZATION_FROM: VllmVersion = (0, 20, 0)
"""The default of --gpu-memory-utilization rises from 0.9 to 0.92."""
CALIBRATED_VERSION: VllmVersion = (0, 19, 0)
"""Version of the published start-up logs (llm-d-planner, H100) to which the constants were fitted."""


def parse_version(text: str) -> VllmVersion:
    """Reads a version such as "0.19.0", "v0.10.1.1" or "0.32.0+cpu". Raises ValueError."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a version of vLLM: write it like 0.32.0.")
    major, minor, patch = (int(group or 0) for group in match.groups())
    return major, minor, patch


def default_utilization(version: VllmVersion) -> float:
    """Default of --gpu-memory-utilization."""
    return 0.92 if version >= HIGHER_UTILIZATION_FROM else 0.9


def default_batch_limits(gpu: Gpu) -> tuple[int, int]:
    """Defaults of (max_num_batched_tokens, max_num_seqs) of `vllm serve` (arg_utils.get_batch_defaults,
    0.32)."""
    if gpu.vram_bytes >= 160 * GIB:
        return 16384, 1024
    if gpu.vram_bytes >= 70 * GIB and "A100" not in gpu.name:
        return 8192, 1024
    return 2048, 256


def sampling_bytes_per_logit(version: VllmVersion, dtype: str) -> float:
    """Peak bytes of the profiled sampling step for each of max_num_seqs * vocab_size logits.

    A sampler that sorts (0.11.1 to 0.16) holds the sorted values, their 64-bit indices and copies: 38.8 bytes
    by start-up logs. Other versions hold the logits as computed and in float32, and two arrays of
    probabilities: 13.45 bytes plus the model's type, fitted to the logs of Llama models (vLLM 0.19 on an
    H100).
    """
    if SORTING_SAMPLER_FROM <= version < TRITON_SAMPLER_FROM:
        return 38.8
    if version < SORTING_SAMPLER_FROM:
        return 13.2  # Qwen2-7B on an A100, vLLM 0.10.1.1
    return 13.45 + dtype_bytes(dtype)


def activation_bytes(
    shape: ModelShape,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    version: VllmVersion = CURRENT_VERSION,
    dtype: str | None = None,
    tp: int = 1,
    last_stage: bool = True,
) -> int:
    """Peak bytes of vLLM's profile run: the larger of two needs, plus the workspace of the experts. The needs
    are sampling `max_num_seqs` rows of logits, and a forward pass of `max_num_batched_tokens` with 3 MLP rows
    and 4 hidden rows per token (Granite 3.1 8B on an H100: 0.84 GiB here, 0.85 logged)."""
    model_dtype = dtype or shape.dtype
    width = dtype_bytes(model_dtype)
    rows = min(max_num_seqs, max_num_batched_tokens)
    sampling = sampling_bytes_per_logit(version, model_dtype) * rows * shape.vocab_size if last_stage else 0.0
    forward = max_num_batched_tokens * (3 * shape.mlp_width // tp + 4 * shape.hidden_size) * width
    return round(max(sampling, forward) + _expert_workspace(shape, max_num_batched_tokens, width, tp))


def _expert_workspace(shape: ModelShape, tokens: int, width: int, tp: int) -> int:
    """Bytes of vLLM's fused_moe: for each token and chosen expert the widest intermediate row and the row
    after the activation. They stay allocated while sampling is profiled. MXFP4 has other kernels."""
    if shape.quantisation is not None and shape.quantisation.method == "mxfp4":
        return 0
    gate_up = 2 * shape.expert_width // tp
    row = max(gate_up, shape.hidden_size) + gate_up // 2
    return tokens * shape.experts_per_token * row * width


@dataclass(frozen=True, kw_only=True, slots=True)
class StartupOverheads:
    """Bytes that start-up takes on one GPU beside the weights, each with its standard deviation."""

    activation: int
    activation_sd: float
    cuda_graphs: int
    cuda_graphs_sd: float
    graphs_counted: bool
    """Whether CUDA graphs count against the budget; before 0.21 they come on top of it."""
    non_torch: int
    non_torch_sd: float
    weights_sd: float
    """Standard deviation of the weights themselves: what the loader rounds and repacks."""


def startup_overheads(
    shape: ModelShape,
    gpu: Gpu,
    *,
    version: VllmVersion,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    dtype: str | None = None,
    tp: int = 1,
    pp: int = 1,
    enforce_eager: bool = False,
    last_stage: bool = True,
) -> StartupOverheads:
    """Estimates start-up's memory from the data sheet and the config alone. The deviations are those of the
    published logs around these figures, doubled for versions and GPUs that no log covers."""
    activation = activation_bytes(
        shape,
        max_num_seqs=max_num_seqs,
        max_num_batched_tokens=max_num_batched_tokens,
        version=version,
        dtype=dtype,
        tp=tp,
        last_stage=last_stage,
    )
    unfamiliar = 1.0 if version[:2] == CALIBRATED_VERSION[:2] and gpu.big_buffers else 2.0
    graphs = 0 if enforce_eager else _cuda_graphs(shape, gpu, pp)
    non_torch, non_torch_sd = _non_torch(gpu, version, tp)
    experts = 1.5 if shape.experts_per_token else 1.0
    return StartupOverheads(
        activation=activation,
        activation_sd=unfamiliar * experts * (0.05 * activation + 0.04 * GIB),
        cuda_graphs=graphs,
        cuda_graphs_sd=0.4 * graphs,
        graphs_counted=version >= GRAPHS_COUNTED_FROM,
        non_torch=non_torch,
        non_torch_sd=unfamiliar * non_torch_sd,
        weights_sd=0.05 * GIB,
    )


def _cuda_graphs(shape: ModelShape, gpu: Gpu, pp: int) -> int:
    """Bytes of about 51 captured sizes: 0.35 GiB and 0.014 GiB per layer, the median of the published logs
    (0.49 to 1.9 GiB). GPUs without full graphs have only piecewise ones, half of it."""
    whole = (0.35 + 0.014 * shape.num_layers / pp) * GIB
    return round(whole if gpu.full_graphs else whole / 2)


def _non_torch(gpu: Gpu, version: VllmVersion, tp: int) -> tuple[int, float]:
    """Bytes of libraries and collectives, and their standard deviation. vLLM 0.19 logs 0.25 GiB on one H100
    (0.07 with two pipeline stages, 0.46 with another kernel) and 2.07 to 2.17 on two and four; 0.10 logs
    0.07, and 0.12 more on two A100."""
    recent = version >= TRITON_SAMPLER_FROM
    alone = 0.25 if recent else 0.1
    if tp == 1:
        return round(alone * GIB), 0.13 * GIB
    if recent and gpu.big_buffers:
        return round(2.1 * GIB), 0.13 * GIB
    return round((alone + 0.3) * GIB), 0.3 * GIB
