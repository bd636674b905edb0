"""Divides the memory of one GPU as vLLM does at start-up. Knows no model."""

import math
from dataclasses import dataclass

from loadtest.model.kv_cache import KvLayout
from loadtest.units import GIB


@dataclass(frozen=True, kw_only=True, slots=True)
class MemoryBudget:
    """The memory that vLLM may use on one GPU, and its parts."""

    budget_bytes: int
    weights_bytes: int
    activation_bytes: int
    cuda_graphs_bytes: int
    non_torch_bytes: int
    kv_bytes: int
    """Bytes left for the KV cache, before rounding down to whole blocks."""
    bytes_per_block: int
    block_size: int
    """Number of tokens of a block."""
    num_gpu_blocks: int
    """Whole blocks of the KV cache, including the null block, which holds no tokens."""

    @property
    def kv_bytes_per_token(self) -> int:
        """KV-cache bytes of one token. Valid only if all layers have full attention."""
        return self.bytes_per_block // self.block_size

    @property
    def tokens(self) -> int:
        """Number of tokens that fit into the KV cache (the null block holds none). Valid only if all layers
        have full attention."""
        return (self.num_gpu_blocks - 1) * self.block_size


def divide_budget(
    layout: KvLayout,
    *,
    vram_bytes: int,
    gpu_memory_utilization: float,
    weights: int,
    activation: int,
    cuda_graphs: int,
    non_torch: int,
) -> MemoryBudget:
    """Computes the size of the KV-cache pool that vLLM allocates on one GPU, and all parts of the budget.

    All sizes are in bytes. `vram_bytes` is the GPU's memory as the driver reports it. `cuda_graphs` is the
    part of the budget for CUDA graphs; before vLLM 0.21 it is 0, as the budget did not include them.

    Raises ValueError if nothing is left for the KV cache.
    """
    budget = math.ceil(vram_bytes * gpu_memory_utilization)
    kv_bytes = budget - weights - activation - cuda_graphs - non_torch
    blocks = kv_bytes // layout.bytes_per_block
    if blocks < 2:
        raise ValueError(
            f"Nothing is left for the KV cache: of a budget of {budget / GIB:.2f} GiB, weights take "
            f"{weights / GIB:.2f} GiB and the rest of the start-up "
            f"{(activation + cuda_graphs + non_torch) / GIB:.2f} GiB."
        )
    return MemoryBudget(
        budget_bytes=budget,
        weights_bytes=weights,
        activation_bytes=activation,
        cuda_graphs_bytes=cuda_graphs,
        non_torch_bytes=non_torch,
        kv_bytes=kv_bytes,
        bytes_per_block=layout.bytes_per_block,
        block_size=layout.block_size,
        num_gpu_blocks=blocks,
    )
