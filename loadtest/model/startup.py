"""Estimates the memory that vLLM takes at start-up besides the weights, and the uncertainty of the estimate.
Knows no workload."""

import re
from dataclasses import dataclass

from loadtest.model.architectures import ModelShape
from loadtest.model.gpus import Gpu
from loadtest.model.quantisation import dtype_bytes
from loadtest.units import GIB

VllmVersion = tuple[int, int, int]
CURRENT_VERSION: VllmVersion = (0, 32, 0)
"""Version of vLLM that is assumed if none is known."""
SORTING_SAMPLER_FROM: VllmVersion = (0, 11, 1)
"""First version whose default sampler sorts. Before, it was FlashInfer's (vllm-project/vllm#26859)."""
TRITON_SAMPLER_FROM: VllmVersion = (0, 17, 0)
"""First version in which top-k and top-p need no sort (vllm-project/vllm#33538, February 2026)."""
GRAPHS_COUNTED_FROM: VllmVersion = (0, 21, 0)
"""First version in which CUDA graphs are part of the budget of --gpu-memory-utilization."""
HIGHER_UTILIZATION_FROM: VllmVersion = (0, 20, 0)
"""First version in which --gpu-memory-utilization is 0.92 by default; before, it was 0.9."""
CALIBRATED_VERSION: VllmVersion = (0, 19, 0)
"""Version of the published start-up logs (llm-d-planner, H100) to which the constants here were fitted."""


def parse_version(text: str) -> VllmVersion:
    """Reads a version such as "0.19.0", "v0.10.1.1" or "0.32.0+cpu". Raises ValueError
    for any other text."""
    match = re.match(r"v?(\d+)\.(\d+)(?:\.(\d+))?", text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a version of vLLM: write it like 0.32.0.")
    major, minor, patch = (int(group or 0) for group in match.groups())
    return major, minor, patch


def default_utilization(version: VllmVersion) -> float:
    """Returns the default of --gpu-memory-utilization in this version of vLLM."""
    return 0.92 if version >= HIGHER_UTILIZATION_FROM else 0.9


def default_batch_limits(gpu: Gpu) -> tuple[int, int]:
    """Returns the default max_num_batched_tokens and the default max_num_seqs of `vllm serve` on this GPU.

    Source: get_batch_defaults in arg_utils of vLLM 0.32.
    """
    if gpu.vram_bytes >= 160 * GIB:
        return 16384, 1024
    if gpu.vram_bytes >= 70 * GIB and "A100" not in gpu.name:
        return 8192, 1024
    return 2048, 256


def sampling_bytes_per_logit(version: VllmVersion, dtype: str) -> float:
    """Returns the peak bytes per logit of the sampling step that vLLM profiles at start-up.

    The step has max_num_seqs * vocab_size logits. The bytes come from start-up logs and depend on the version
    of vLLM:
    - Before 0.11.1: 13.2 bytes.
    - 0.11.1 to 0.16: 38.8 bytes. The sampler of these versions sorts, which needs more memory.
    - Later: 13.45 bytes plus one element of the model's type (logs of Llama models, vLLM 0.19, H100).
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
    """Returns the peak bytes of vLLM's profile run at start-up.

    The peak is the larger of these two, plus the workspace of the experts:
    - Sampling (only in the last pipeline stage): one row of logits for each of `max_num_seqs` sequences.
    - Forward pass: 3 rows as wide as the MLP and 4 rows of the hidden size for each of
      `max_num_batched_tokens` tokens.

    For Granite 3.1 8B on an H100 the formula gives 0.84 GiB, and vLLM logs 0.85 GiB.
    """
    model_dtype = dtype or shape.dtype
    width = dtype_bytes(model_dtype)
    rows = min(max_num_seqs, max_num_batched_tokens)
    sampling = sampling_bytes_per_logit(version, model_dtype) * rows * shape.vocab_size if last_stage else 0.0
    forward = max_num_batched_tokens * (3 * shape.mlp_width // tp + 4 * shape.hidden_size) * width
    return round(max(sampling, forward) + _expert_workspace(shape, max_num_batched_tokens, width, tp))


def _expert_workspace(shape: ModelShape, tokens: int, width: int, tp: int) -> int:
    """Returns the bytes of the workspace of vLLM's fused_moe kernel; 0 for MXFP4, whose kernels have none.

    For each token and each expert chosen for it, the workspace holds two rows: the widest intermediate row,
    and the row after the activation. vLLM keeps the workspace allocated while it profiles sampling.
    """
    if shape.quantisation is not None and shape.quantisation.method == "mxfp4":
        return 0
    gate_up = 2 * shape.expert_width // tp
    row = max(gate_up, shape.hidden_size) + gate_up // 2
    return tokens * shape.experts_per_token * row * width


@dataclass(frozen=True, kw_only=True, slots=True)
class StartupOverheads:
    """Bytes that vLLM takes on one GPU at start-up besides the weights, each with a standard deviation."""

    activation: int
    activation_sd: float
    cuda_graphs: int
    cuda_graphs_sd: float
    graphs_counted: bool
    """Whether CUDA graphs are part of the budget; before vLLM 0.21 they come on top of it."""
    non_torch: int
    non_torch_sd: float
    weights_sd: float
    """Standard deviation of the bytes of the weights, which the loader rounds and repacks."""


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
    """Estimates the memory that vLLM takes at start-up from the GPU's data, the config and vLLM's flags.

    Standard deviations say how far published start-up logs lie from these estimates. Those of activation and
    of non-torch memory are doubled for versions and GPUs without published logs.
    """
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
    """Returns the bytes of the CUDA graphs of one pipeline stage, for about 51 batch sizes.

    The formula follows the median of the published logs, whose values range from 0.49 to 1.9 GiB. GPUs
    without full graphs have only piecewise graphs, which take half as much.
    """
    whole = (0.35 + 0.014 * shape.num_layers / pp) * GIB
    return round(whole if gpu.full_graphs else whole / 2)


def _non_torch(gpu: Gpu, version: VllmVersion, tp: int) -> tuple[int, float]:
    """Returns the bytes that libraries and collectives take on one GPU, and their standard deviation.

    Logged values behind the constants:
    - vLLM 0.19, one H100: 0.25 GiB (0.07 with two pipeline stages, 0.46 with another kernel).
    - vLLM 0.19, two or four H100 with tensor parallelism: 2.07 to 2.17 GiB.
    - vLLM 0.10: 0.07 GiB, and 0.12 GiB more with two A100.
    """
    recent = version >= TRITON_SAMPLER_FROM
    alone = 0.25 if recent else 0.1
    if tp == 1:
        return round(alone * GIB), 0.13 * GIB
    if recent and gpu.big_buffers:
        return round(2.1 * GIB), 0.13 * GIB
    return round((alone + 0.3) * GIB), 0.3 * GIB
