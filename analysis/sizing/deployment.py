"""One model on one kind of GPU with vLLM's flags, and the KV pool that its start-up leaves, with a band.

Knows no workload.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from loadtest.model.architectures import ModelShape
from loadtest.model.cards import Gpu
from loadtest.model.kv_cache import KvLayout, kv_layout
from loadtest.model.memory import MemoryBudget, divide_budget
from loadtest.model.startup import GRAPHS_COUNTED_FROM, StartupOverheads, VllmVersion, startup_overheads
from loadtest.model.weights import rotary_bytes, weights_bytes
from loadtest.units import GIB

BAND_SIGMAS = 1.645  # bands cover 90 %
ASYNC_FROM: VllmVersion = (0, 20, 0)  # two steps under way (max_concurrent_batches), so twice the tokens
Band = tuple[int, int, int]
"""Lower end, estimate, upper end."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StartupCalibration:
    """What a start-up on the same card showed of the figures that are only estimated otherwise.

    Factors are logged over predicted, so that they carry over to another model.
    """

    source: str
    activation: float | None = None
    cuda_graphs: float | None = None
    non_torch_bytes: int | None = None
    weights: float | None = None
    """Only of the same model."""
    same_model: bool = False

    def apply(self, found: StartupOverheads) -> StartupOverheads:
        """With the spread that is left: another model's peak carries over within a few percent."""
        spread = 0.015 if self.same_model else 0.05
        if self.activation is not None:
            # Where the log does not split its overhead, the peak's factor holds the other parts' errors too.
            activation = round(found.activation * self.activation)
            sd = spread * activation + (0.01 if self.same_model else 0.04) * GIB
            found = replace(
                found,
                activation=activation,
                activation_sd=min(sd, found.activation_sd),
                non_torch_sd=(0.03 if self.same_model else 0.1) * GIB,
                cuda_graphs_sd=(0.1 if self.same_model else 0.3) * found.cuda_graphs,
            )
        if self.cuda_graphs is not None:
            graphs = round(found.cuda_graphs * self.cuda_graphs)
            found = replace(
                found, cuda_graphs=graphs, cuda_graphs_sd=(0.1 if self.same_model else 0.3) * graphs
            )
        if self.non_torch_bytes is not None:
            found = replace(found, non_torch=self.non_torch_bytes)
        return found


@dataclass(frozen=True, kw_only=True, slots=True)
class PlannedDeployment:
    """As `vllm serve` would be started."""

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
    """Engines beside each other, users spread evenly (data parallel)."""
    enforce_eager: bool = False
    block_size: int = 16
    stated_weights_bytes: int | None = None
    """Of one GPU, when known."""
    calibration: StartupCalibration | None = None

    def layout(self, stage: int | None = None) -> KvLayout:
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
        """Bytes that "Model loading took" will say, on one GPU of that stage."""
        if self.stated_weights_bytes is not None:
            return self.stated_weights_bytes
        found = weights_bytes(self.shape, dtype=self.dtype, tp=self.tp, pp=self.pp, stage=stage)
        found += rotary_bytes(self.shape, dtype=self.dtype)
        factor = self.calibration.weights if self.calibration else None
        return round(found * (factor or 1.0))

    def overheads(self, stage: int = 0) -> StartupOverheads:
        found = startup_overheads(
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
        )
        return self.calibration.apply(found) if self.calibration else found

    def max_blocks(self, max_model_len: int | None = None) -> int:
        """Of one request at max_model_len, as vLLM's "Maximum concurrency" reckons."""
        batches = 2 if self.version >= ASYNC_FROM else 1
        return self.layout().max_blocks(
            max_model_len or self.max_model_len, in_flight=batches * self.max_num_batched_tokens
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolBand:
    """The pool of one engine: of each GPU, on the stage that has least."""

    pool: MemoryBudget
    layout: KvLayout
    overheads: StartupOverheads
    blocks: Band
    kv_bytes: Band


def pool_band(deployment: PlannedDeployment) -> PoolBand:
    """Raises ValueError when nothing is left for the KV cache."""
    return min(
        (_of_stage(deployment, stage) for stage in range(deployment.pp)), key=lambda band: band.blocks[1]
    )


def _of_stage(deployment: PlannedDeployment, stage: int) -> PoolBand:
    found, layout = deployment.overheads(stage), deployment.layout(stage)
    pool = divide_budget(
        layout,
        vram_bytes=deployment.gpu.vram_bytes,
        gpu_memory_utilization=deployment.utilization,
        weights=deployment.weights(stage),
        activation=found.activation,
        cuda_graphs=found.cuda_graphs if found.graphs_counted else 0,
        non_torch=found.non_torch,
    )
    reach = BAND_SIGMAS * _spread(deployment, found, pool)
    ends = [max(round(pool.kv_bytes + side * reach), 0) for side in (-1, 0, 1)]
    blocks = [end // layout.bytes_per_block for end in ends]
    return PoolBand(
        pool=pool,
        layout=layout,
        overheads=found,
        blocks=(blocks[0], blocks[1], blocks[2]),
        kv_bytes=(ends[0], ends[1], ends[2]),
    )


def _spread(deployment: PlannedDeployment, found: StartupOverheads, pool: MemoryBudget) -> float:
    """Standard deviation of the pool, bytes: the parts err independently."""
    calibration = deployment.calibration
    weights_known = deployment.stated_weights_bytes is not None or (calibration and calibration.same_model)
    parts = [
        found.activation_sd,
        found.cuda_graphs_sd if found.graphs_counted else 0.0,
        found.non_torch_sd,
        0.0 if weights_known else found.weights_sd + 0.003 * pool.weights_bytes,
        0.0 if calibration else deployment.utilization * deployment.gpu.vram_sd_bytes,
        0.15 * GIB * len(deployment.shape.uncounted) * 5,
    ]
    return math.sqrt(sum(part**2 for part in parts))


def max_concurrency(deployment: PlannedDeployment, blocks: int) -> float:
    """What vLLM's log line says: requests of max_model_len tokens that the pool holds at once, at worst."""
    return blocks / deployment.max_blocks()


def pool_tokens(deployment: PlannedDeployment, band: PoolBand) -> Band:
    """Tokens that requests share: whole blocks without the null block. Of mixed layouts, tokens of requests
    at max_model_len, as vLLM's log counts them."""
    low, middle, high = (log_tokens(deployment, max(blocks - 1, 0)) for blocks in band.blocks)
    return low, middle, high


def log_tokens(deployment: PlannedDeployment, blocks: int) -> int:
    """What the log's line "GPU KV cache size" says, the null block counted in."""
    layout = deployment.layout()
    if layout.uniform:
        return blocks * layout.block_size
    if deployment.version >= GRAPHS_COUNTED_FROM:
        return int(max_concurrency(deployment, blocks) * deployment.max_model_len)
    return blocks // len(layout.groups) * layout.block_size


def longest_context(deployment: PlannedDeployment, blocks: int) -> int:
    """The largest max_model_len that vLLM would start with: one request must fit without the null block."""
    low, high = 0, deployment.shape.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if deployment.max_blocks(middle) <= blocks - 1 else (low, middle - 1)
    return low


def serve_flags(deployment: PlannedDeployment, quantization: str | None) -> list[str]:
    """Of `vllm serve MODEL`: those that the prediction rests on, so that no change of defaults moves it."""
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
