"""Estimates the memory that vLLM takes at start-up besides the weights, and the uncertainty of the estimate.
Knows no workload."""

import math
import re
from dataclasses import dataclass

from loadtest.model.architectures import ModelShape
from loadtest.model.gpus import Gpu
from loadtest.model.layers.tensors import ExpertPlacement
from loadtest.model.quantisation import dtype_bytes
from loadtest.model.weights import WITHOUT_DATA_PARALLEL
from loadtest.units import GIB

VllmVersion = tuple[int, int, int]
CURRENT_VERSION: VllmVersion = (0, 32, 0)
"""Version of vLLM that is assumed if none is known."""
V1_ENGINE_FROM: VllmVersion = (0, 8, 0)
"""First version whose default engine is V1, with chunked prefill for every model."""
V1_EVERYWHERE_FROM: VllmVersion = (0, 10, 0)
"""First version with V1 on GPUs before compute capability 8.0 as well."""
FLASHINFER_API_FROM: VllmVersion = (0, 9, 0)
"""First version that samples with FlashInfer 0.2.3 and later (vllm-project/vllm#15777)."""
SORTING_SAMPLER_FROM: VllmVersion = (0, 11, 1)
"""First version that samples with FlashInfer only on request (vllm-project/vllm#26859)."""
TRITON_SAMPLER_FROM: VllmVersion = (0, 17, 0)
"""First version in which top-k and top-p need no sort (vllm-project/vllm#33538, February 2026)."""
GRAPHS_COUNTED_FROM: VllmVersion = (0, 21, 0)
"""First version in which CUDA graphs are part of the budget of --gpu-memory-utilization."""
HIGHER_UTILIZATION_FROM: VllmVersion = (0, 20, 0)
"""First version in which --gpu-memory-utilization is 0.92 by default; before, it was 0.9."""
LARGEST_BATCHES_FROM: VllmVersion = (0, 28, 0)
"""First version with larger batches on GPUs of 160 GiB and more (vllm-project/vllm#51726)."""
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


def default_batch_limits(
    gpu: Gpu, *, version: VllmVersion = CURRENT_VERSION, max_model_len: int = 0
) -> tuple[int, int]:
    """Returns the default max_num_batched_tokens and the default max_num_seqs of `vllm serve` on this GPU.

    `max_model_len` matters only to engine V0, which computes prompts of up to 32,768 tokens whole. Sources:
    arg_utils of vLLM 0.7, 0.9 and 0.32, and vllm-project/vllm#12369, #16158, #17073 and #17885.
    """
    if _engine_v0(gpu, version):
        return 2048 if max_model_len > 32768 else max(max_model_len, 2048), 256
    if version >= LARGEST_BATCHES_FROM and gpu.vram_bytes >= 160 * GIB:
        return 16384, 1024
    if _takes_large_batches(gpu, version):
        return 8192, 1024
    return 2048, 1024 if version < (0, 8, 4) else 256


def _engine_v0(gpu: Gpu, version: VllmVersion) -> bool:
    return version < (V1_ENGINE_FROM if gpu.full_graphs else V1_EVERYWHERE_FROM)


def _takes_large_batches(gpu: Gpu, version: VllmVersion) -> bool:
    """Whether vLLM's defaults count the GPU among the large ones: by its name before 0.8.5, by its memory
    from then on, and without the A100 from 0.9 on."""
    if version < (0, 8, 5):
        return "H100" in gpu.name or "H200" in gpu.name
    return gpu.vram_bytes >= 70 * GIB and (version < (0, 9, 0) or "A100" not in gpu.name)


def flashinfer_share(gpu: Gpu, version: VllmVersion) -> float:
    """Returns the share of servers whose sampler is FlashInfer's, by default.

    From 0.8 to 0.11.0 it was used where it was installed, which images did and `pip install vllm` did not;
    before 0.9 only in releases before 0.2.3. The shares are a guess between the two.
    """
    if _engine_v0(gpu, version) or version >= SORTING_SAMPLER_FROM or gpu.name.startswith("AMD"):
        return 0.0
    return 0.5 if version >= FLASHINFER_API_FROM else 0.25


def sampling_bytes_per_logit(version: VllmVersion, dtype: str, *, flashinfer: bool = False) -> float:
    """Returns the peak bytes per logit of the sampling step that vLLM profiles at start-up.

    The step has max_num_seqs * vocab_size logits. The bytes come from start-up logs and depend on the version
    of vLLM and its sampler:
    - Before 0.17: 38.8 bytes. PyTorch's sampler sorts, which needs more memory (logs of vLLM 0.6 to 0.15).
    - Before 0.17 with FlashInfer's sampler: 13.2 bytes (Qwen2-7B on an A100, vLLM 0.10.1.1).
    - Later: 13.45 bytes plus one element of the model's type (logs of Llama models, vLLM 0.19, H100).
    """
    if version >= TRITON_SAMPLER_FROM:
        return 13.45 + dtype_bytes(dtype)
    return 13.2 if flashinfer else 38.8


def activation_bytes(
    shape: ModelShape,
    *,
    max_num_seqs: int,
    max_num_batched_tokens: int,
    version: VllmVersion = CURRENT_VERSION,
    dtype: str | None = None,
    tp: int = 1,
    last_stage: bool = True,
    flashinfer: bool = False,
    experts: ExpertPlacement = WITHOUT_DATA_PARALLEL,
    max_model_len: int = 0,
) -> int:
    """Returns the peak bytes of vLLM's profile run at start-up.

    The peak is the larger of these two, plus the workspaces of the experts and of sparse attention:
    - Sampling (only in the last pipeline stage): one row of logits for each of `max_num_seqs` sequences.
    - Forward pass: 3 rows as wide as the MLP and 4 rows of the hidden size for each of
      `max_num_batched_tokens` tokens.

    For Granite 3.1 8B on an H100 the formula gives 0.84 GiB, and vLLM logs 0.85 GiB.
    """
    model_dtype = dtype or shape.dtype
    width = dtype_bytes(model_dtype)
    rows = min(max_num_seqs, max_num_batched_tokens)
    per_logit = sampling_bytes_per_logit(version, model_dtype, flashinfer=flashinfer) if last_stage else 0.0
    sampling = per_logit * rows * shape.vocab_size
    forward = max_num_batched_tokens * (3 * shape.mlp_width // tp + 4 * shape.hidden_size) * width
    workspace = _expert_workspace(shape, max_num_batched_tokens, width, tp, experts)
    return round(max(sampling, forward) + workspace + shape.workspace_bytes * max_model_len)


def _expert_workspace(shape: ModelShape, tokens: int, width: int, tp: int, experts: ExpertPlacement) -> int:
    """Returns the bytes of the workspace of vLLM's fused_moe kernel; 0 for MXFP4, whose kernels have none.

    For each token and each expert chosen for it, the workspace holds two rows: the widest intermediate row,
    and the row after the activation. vLLM keeps the workspace allocated while it profiles sampling.
    Data-parallel engines compute their experts for the tokens of all engines.
    """
    if shape.quantisation is not None and shape.quantisation.method == "mxfp4":
        return 0
    gate_up = 2 * shape.expert_width // (1 if experts.expert_parallel else tp * experts.data_parallel)
    row = max(gate_up, shape.hidden_size) + gate_up // 2
    return tokens * experts.data_parallel * shape.experts_per_token * row * width


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
    flashinfer: bool | None = None,
    experts: ExpertPlacement = WITHOUT_DATA_PARALLEL,
    max_model_len: int = 0,
) -> StartupOverheads:
    """Estimates the memory that vLLM takes at start-up from the GPU's data, the config and vLLM's flags.

    Standard deviations say how far published start-up logs lie from these estimates. Those of activation and
    of non-torch memory are doubled for versions and GPUs without published logs. `flashinfer` says whether
    FlashInfer's sampler is used; None: not known, so the estimate lies between the two samplers.
    """
    sorting, fused = (
        activation_bytes(
            shape,
            max_num_seqs=max_num_seqs,
            max_num_batched_tokens=max_num_batched_tokens,
            version=version,
            dtype=dtype,
            tp=tp,
            last_stage=last_stage,
            flashinfer=sampler,
            experts=experts,
            max_model_len=max_model_len,
        )
        for sampler in (False, True)
    )
    share = flashinfer_share(gpu, version) if flashinfer is None else float(flashinfer)
    activation = round(sorting + share * (fused - sorting))
    sampler_sd = (sorting - fused) * math.sqrt(share * (1.0 - share))
    unfamiliar = 1.0 if version[:2] == CALIBRATED_VERSION[:2] and gpu.big_buffers else 2.0
    graphs = 0 if enforce_eager else _cuda_graphs(shape, gpu, pp)
    non_torch, non_torch_sd = _non_torch(gpu, version, tp * experts.data_parallel)
    routed = (1.5 if shape.experts_per_token else 1.0) * (2.0 if experts.data_parallel > 1 else 1.0)
    return StartupOverheads(
        activation=activation,
        activation_sd=math.hypot(unfamiliar * routed * (0.05 * activation + 0.04 * GIB), sampler_sd),
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
    - vLLM 0.6 to 0.10, one GPU: 0.01 to 0.12 GiB; two A100: 0.12 GiB more; eight A100: 2.1 GiB.
    - vLLM 0.8, four GPUs without NVLink: 0.2 GiB; 16 H20 in two nodes: about 4.4 GiB.
    """
    recent = version >= TRITON_SAMPLER_FROM
    alone = 0.25 if recent else 0.1
    if tp == 1:
        return round(alone * GIB), (0.13 if recent else 0.07) * GIB
    if recent and gpu.big_buffers:
        return round(2.1 * GIB), (0.13 if tp <= 4 else 0.4) * GIB
    peers = tp - 1
    collectives, sd = (0.25 if gpu.nvlink_bytes_s else 0.1) * peers, 0.25 + 0.06 * peers
    if gpu.big_buffers:  # When these buffers came is not known: between none and all of them.
        collectives, sd = max(collectives, 1.1), max(sd, 0.5)
    return round((alone + collectives) * GIB), sd * GIB
