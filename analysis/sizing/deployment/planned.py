"""A deployment as `vllm serve` would start it: one model on one kind of GPU, with vLLM's flags.

Knows no workload.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadtest.model.architectures import ModelShape
from loadtest.model.gpus import Gpu
from loadtest.model.kv_cache import KvLayout, kv_layout
from loadtest.model.startup import StartupOverheads, VllmVersion, startup_overheads
from loadtest.model.weights import rotary_bytes, weights_bytes
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
        )

    def weights(self, stage: int = 0) -> int:
        """Returns the bytes of weights on one GPU of the pipeline stage.

        They are counted as in vLLM's log line "Model loading took".
        """
        if self.stated_weights_bytes is not None:
            return self.stated_weights_bytes
        weights = weights_bytes(self.shape, dtype=self.dtype, tp=self.tp, pp=self.pp, stage=stage)
        weights += rotary_bytes(self.shape, dtype=self.dtype)
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
        )
        return self.calibration.apply(overheads) if self.calibration else overheads

    def max_blocks(self, max_model_len: int | None = None) -> int:
        """Returns the KV blocks of one request of max_model_len tokens; by default, of the deployment's own.

        They are counted as for vLLM's log line "Maximum concurrency".
        """
        batches = 2 if self.version >= ASYNC_FROM else 1
        return self.layout().max_blocks(
            max_model_len or self.max_model_len, in_flight=batches * self.max_num_batched_tokens
        )


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
        ("--data-parallel-size", deployment.replicas if deployment.replicas > 1 else None),
        ("--block-size", deployment.block_size if deployment.block_size != 16 else None),
    )
    words = [str(word) for name, value in flags if value is not None for word in (name, value)]
    return words + (["--enforce-eager"] if deployment.enforce_eager else [])
