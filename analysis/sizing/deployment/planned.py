"""A deployment as `vllm serve` would start it: one model on one kind of GPU, with vLLM's flags.

Knows no workload.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

from loadtest.model.architectures import ModelShape
from loadtest.model.gpus import Gpu
from loadtest.model.kv_cache import KvLayout, kv_bytes_per_token, kv_layout
from loadtest.model.layers.tensors import ExpertPlacement
from loadtest.model.speculation import Speculation
from loadtest.model.startup import StartupOverheads, VllmVersion, startup_overheads
from loadtest.model.weights import WITHOUT_DATA_PARALLEL, lora_bytes, rotary_bytes, weights_bytes
from loadtest.units import GIB

BAND_SIGMAS = 1.645
"""Distance from the estimate to either end of a 90 % band, standard deviations."""
ASYNC_FROM: VllmVersion = (0, 20, 0)
"""First version with two steps under way (max_concurrent_batches), hence twice the batched tokens."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartupCalibration:
    """Corrections of the predicted memory, computed from a start-up on the same card. None: not known.

    Each factor is a logged figure divided by the predicted one. The factor of the weights applies only to
    the same model, the other factors to all models.
    """

    source: str
    activation: float | None = None
    """Factor on the activation peak."""
    cuda_graphs: float | None = None
    """Factor on the memory of CUDA graphs."""
    non_torch_bytes: int | None = None
    """Memory outside of torch, bytes; it does not depend on the model."""
    weights: float | None = None
    """Factor on the weights; only if the start-up was of the same model."""
    same_model: bool = False
    times: float | None = None
    """Factor on all predicted times of steps and requests; only if the run was of the same model."""

    def apply(self, predicted: StartupOverheads) -> StartupOverheads:
        """Returns the overheads after correction, with smaller standard deviations.

        The deviations are smallest if the start-up was of the same model.
        """
        corrected = predicted
        spread = 0.015 if self.same_model else 0.05
        if self.activation is not None:
            # If the log does not split its overhead, this factor also contains the errors of the other parts.
            activation = round(corrected.activation * self.activation)
            sd = spread * activation + (0.01 if self.same_model else 0.04) * GIB
            corrected = replace(
                corrected,
                activation=activation,
                activation_sd=min(sd, corrected.activation_sd),
                non_torch_sd=(0.03 if self.same_model else 0.1) * GIB,
                cuda_graphs_sd=(0.1 if self.same_model else 0.3) * corrected.cuda_graphs,
            )
        if self.cuda_graphs is not None:
            graphs = round(corrected.cuda_graphs * self.cuda_graphs)
            corrected = replace(
                corrected, cuda_graphs=graphs, cuda_graphs_sd=(0.1 if self.same_model else 0.3) * graphs
            )
        if self.non_torch_bytes is not None:
            corrected = replace(corrected, non_torch=self.non_torch_bytes)
        return corrected


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedDeployment:
    """A model, the cards under it, and the flags of `vllm serve`."""

    model: str
    shape: ModelShape
    gpu: Gpu
    version: VllmVersion
    utilization: float
    max_model_len: int
    max_num_seqs: int
    max_num_batched_tokens: int
    dtype: str
    kv_dtype: str = "auto"
    tp: int = 1
    pp: int = 1
    replicas: int = 1
    """Number of engines over which users are spread evenly (data parallel)."""
    experts: ExpertPlacement = WITHOUT_DATA_PARALLEL
    """How the experts are spread over data-parallel engines."""
    max_loras: int = 0
    """LoRA adapters in one batch; 0: without LoRA."""
    max_lora_rank: int = 16
    speculation: Speculation | None = None
    enforce_eager: bool = False
    flashinfer: bool | None = None
    """Whether FlashInfer's sampler is used; None: not known."""
    block_size: int = 16
    stated_weights_bytes: int | None = None
    """Size of the weights on one GPU, as the user states it, bytes; None: predicted."""
    calibration: StartupCalibration | None = None

    def layout(self, stage: int | None = None) -> KvLayout:
        """Returns how the KV cache of a pipeline stage is divided into blocks.

        stage: None selects the stage that holds most.
        """
        return kv_layout(
            self.shape,
            dtype=self.dtype,
            kv_dtype=self.kv_dtype,
            tp=self.tp,
            pp=self.pp,
            stage=stage,
            block_size=self.block_size,
            speculation=self.speculation,
        )

    def weights(self, stage: int = 0) -> int:
        """Returns the bytes of weights on one GPU of the pipeline stage.

        They are counted as in vLLM's log line "Model loading took", with drafts and buffers for adapters.
        """
        if self.stated_weights_bytes is not None:
            return self.stated_weights_bytes
        split = _Split(dtype=self.dtype, tp=self.tp, pp=self.pp, stage=stage, experts=self.experts)
        weights = weights_bytes(self.shape, **split) + rotary_bytes(self.shape, dtype=self.dtype)
        if self.speculation is not None and self.speculation.draft is not None:
            draft = self.speculation.draft
            weights += weights_bytes(draft, **split) + rotary_bytes(draft, dtype=self.dtype)
        if self.max_loras:
            weights += lora_bytes(
                self.shape, max_loras=self.max_loras, max_lora_rank=self.max_lora_rank, **split
            )
        factor = self.calibration.weights if self.calibration else None
        return round(weights * (factor or 1.0))

    def overheads(self, stage: int = 0) -> StartupOverheads:
        """Returns the memory that start-up takes besides the weights, on one GPU of the pipeline stage."""
        overheads = startup_overheads(
            self.shape,
            self.gpu,
            version=self.version,
            max_num_seqs=self.max_num_seqs,
            max_num_batched_tokens=self.max_num_batched_tokens,
            dtype=self.dtype,
            tp=self.tp,
            pp=self.pp,
            enforce_eager=self.enforce_eager,
            last_stage=stage == self.pp - 1,
            flashinfer=self.flashinfer,
            experts=self.experts,
            max_model_len=self.max_model_len,
        )
        return self.calibration.apply(overheads) if self.calibration else overheads

    def kv_bytes_per_token(self) -> int | None:
        """Returns the KV bytes of one token on one GPU, those of a draft included; None: no single figure."""
        draft = self.speculation.draft if self.speculation else None
        split = {"dtype": self.dtype, "kv_dtype": self.kv_dtype}
        own, drafted = (
            kv_bytes_per_token(shape, tp=self.tp, pp=self.pp, **split) if shape else 0
            for shape in (self.shape, draft)
        )
        return None if own is None or drafted is None else own + drafted

    def max_blocks(self, max_model_len: int | None = None) -> int:
        """Returns the KV blocks of one request of max_model_len tokens; by default, of the deployment's own.

        They are counted as for vLLM's log line "Maximum concurrency".
        """
        batches = 2 if self.version >= ASYNC_FROM else 1
        return self.layout().max_blocks(
            max_model_len or self.max_model_len, in_flight=batches * self.max_num_batched_tokens
        )


class _Split(TypedDict):
    dtype: str
    tp: int
    pp: int
    stage: int
    experts: ExpertPlacement


def serve_flags(deployment: PlannedDeployment, quantization: str | None) -> list[str]:
    """Lists the flags of `vllm serve MODEL` on which the prediction depends, defaults included."""
    flags: Sequence[tuple[str, object]] = (
        ("--dtype", deployment.dtype),
        ("--max-model-len", deployment.max_model_len),
        ("--max-num-seqs", deployment.max_num_seqs),
        ("--max-num-batched-tokens", deployment.max_num_batched_tokens),
        ("--gpu-memory-utilization", f"{deployment.utilization:g}"),
        ("--kv-cache-dtype", deployment.kv_dtype if deployment.kv_dtype != "auto" else None),
        ("--quantization", quantization),
        ("--tensor-parallel-size", deployment.tp if deployment.tp > 1 else None),
        ("--pipeline-parallel-size", deployment.pp if deployment.pp > 1 else None),
        ("--data-parallel-size", _data_parallel_size(deployment)),
        ("--block-size", deployment.block_size if deployment.block_size != 16 else None),
        ("--max-loras", deployment.max_loras or None),
        ("--max-lora-rank", deployment.max_lora_rank if deployment.max_loras else None),
        ("--speculative-config", _speculative_config(deployment.speculation)),
    )
    words = [str(word) for name, value in flags if value is not None for word in (name, value)]
    switches = {
        "--enable-lora": deployment.max_loras > 0,
        "--enable-expert-parallel": deployment.experts.expert_parallel,
        "--enforce-eager": deployment.enforce_eager,
    }
    return words + [name for name, given in switches.items() if given]


def _speculative_config(speculation: Speculation | None) -> str | None:
    if speculation is None:
        return None
    stated = {"method": speculation.method, "num_speculative_tokens": speculation.tokens}
    return f"'{json.dumps(stated | ({'model': speculation.model} if speculation.model else {}))}'"


def _data_parallel_size(deployment: PlannedDeployment) -> int | None:
    """Returns the engines of one server. Replicas of a model with experts are servers of their own, because
    the engines of one server divide the experts."""
    if deployment.experts.data_parallel > 1:
        return deployment.experts.data_parallel
    return deployment.replicas if deployment.replicas > 1 and not deployment.shape.experts_per_token else None
