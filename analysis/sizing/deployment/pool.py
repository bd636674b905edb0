"""Computes the KV-cache pool that is left after start-up, with a band.

Also computes the figures that vLLM's log will state for this pool.
"""

import math
from dataclasses import dataclass

from analysis.answers.sizing import IntBand
from analysis.sizing.deployment.planned import BAND_SIGMAS, PlannedDeployment
from loadtest.model.kv_cache import KvLayout
from loadtest.model.memory import MemoryBudget, divide_budget
from loadtest.model.startup import GRAPHS_COUNTED_FROM, StartupOverheads
from loadtest.units import GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class PoolBand:
    """The KV-cache pool on each GPU of one engine.

    With several pipeline stages, it is the pool of the stage with the fewest blocks. Each band has three
    values: lower end, estimate, upper end (90 %).
    """

    pool: MemoryBudget
    layout: KvLayout
    overheads: StartupOverheads
    blocks: IntBand
    kv_bytes: IntBand


def pool_band(deployment: PlannedDeployment) -> PoolBand:
    """Computes the KV-cache pool of one engine. Raises ValueError if nothing is left for the KV cache."""
    return min(
        (_stage_pool_band(deployment, stage) for stage in range(deployment.pp)),
        key=lambda band: band.blocks[1],
    )


def _stage_pool_band(deployment: PlannedDeployment, stage: int) -> PoolBand:
    overheads, layout = deployment.overheads(stage), deployment.layout(stage)
    pool = divide_budget(
        layout,
        vram_bytes=deployment.gpu.vram_bytes,
        gpu_memory_utilization=deployment.utilization,
        weights=deployment.weights(stage),
        activation=overheads.activation,
        cuda_graphs=overheads.cuda_graphs if overheads.graphs_counted else 0,
        non_torch=overheads.non_torch,
    )
    reach = BAND_SIGMAS * _kv_bytes_sd(deployment, overheads, pool)
    ends = [max(round(pool.kv_bytes + sign * reach), 0) for sign in (-1, 0, 1)]
    blocks = [end // layout.bytes_per_block for end in ends]
    return PoolBand(
        pool=pool,
        layout=layout,
        overheads=overheads,
        blocks=(blocks[0], blocks[1], blocks[2]),
        kv_bytes=(ends[0], ends[1], ends[2]),
    )


def _kv_bytes_sd(deployment: PlannedDeployment, overheads: StartupOverheads, pool: MemoryBudget) -> float:
    """Returns the standard deviation of the pool's size, bytes.

    The errors of its parts (weights, overheads, VRAM) are taken as independent.
    """
    calibration = deployment.calibration
    weights_known = deployment.stated_weights_bytes is not None or (calibration and calibration.same_model)
    parts = [
        overheads.activation_sd,
        overheads.cuda_graphs_sd if overheads.graphs_counted else 0.0,
        overheads.non_torch_sd,
        0.0 if weights_known else overheads.weights_sd + 0.003 * pool.weights_bytes,
        0.0 if calibration else deployment.utilization * deployment.gpu.vram_sd_bytes,
        0.15 * GIB * len(deployment.shape.uncounted) * 5,
    ]
    return math.sqrt(sum(part**2 for part in parts))


def max_concurrency(deployment: PlannedDeployment, blocks: int) -> float:
    """Returns how many requests of max_model_len tokens the pool holds: vLLM's "Maximum concurrency"."""
    return blocks / deployment.max_blocks()


def pool_tokens(deployment: PlannedDeployment, band: PoolBand) -> IntBand:
    """Returns the tokens that the pool holds for requests, without vLLM's null block, as a band.

    Tokens are counted as in vLLM's log (`log_tokens`), also where layers hold different numbers of tokens.
    """
    low, middle, high = (log_tokens(deployment, max(blocks - 1, 0)) for blocks in band.blocks)
    return low, middle, high


def log_tokens(deployment: PlannedDeployment, blocks: int) -> int:
    """Returns the tokens that vLLM's log line "GPU KV cache size" states for `blocks` blocks.

    vLLM counts the null block too.
    """
    layout = deployment.layout()
    if layout.uniform:
        return blocks * layout.block_size
    if deployment.version >= GRAPHS_COUNTED_FROM:
        return int(max_concurrency(deployment, blocks) * deployment.max_model_len)
    return blocks // len(layout.groups) * layout.block_size


def longest_context(deployment: PlannedDeployment, blocks: int) -> int:
    """Returns the largest max_model_len with which vLLM starts.

    One request of this length and the null block must fit into the pool of `blocks` blocks.
    """
    low, high = 0, deployment.shape.max_position_embeddings
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if deployment.max_blocks(middle) <= blocks - 1 else (low, middle - 1)
    return low
