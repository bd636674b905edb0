"""GPU memory of a run: measured by the driver, or computed from the preset of an embedded server."""

import math
from dataclasses import dataclass

from analysis.compare.sides import MeasuredDeployment
from loadtest.simulator.presets import Preset


@dataclass(frozen=True, kw_only=True, slots=True)
class Vram:
    """GPU memory of a run, bytes; None where it is not known."""

    held: float | None
    """Memory that vLLM takes at its start and holds at any load."""
    no_load: float | None
    """Held memory without the KV cache."""
    at_peak: float | None
    """Memory without load, plus the KV cache in use at the fullest trusted level."""
    predicted: bool = False
    """Whether the figures are computed from architecture and data sheet, not measured."""


def vram_of(side: MeasuredDeployment) -> Vram:
    """Returns the GPU memory of a run: measured for a real server, computed for an embedded server."""
    if side.preset is not None:
        return _predicted_vram(side, side.preset)
    seen = [float(v) for run in side.runs for v in run.server.vram_used_bytes if not math.isnan(v)]
    base = side.answer.memory.vram_base_bytes
    return Vram(held=max(seen, default=None), no_load=base, at_peak=_at_peak(side, base))


def _predicted_vram(side: MeasuredDeployment, preset: Preset) -> Vram:
    pool, server = preset.pool(), side.info.server
    base = pool.weights_bytes + pool.activation_bytes + pool.cuda_graphs_bytes + pool.non_torch_bytes
    blocks, size = server.num_gpu_blocks or pool.num_gpu_blocks, server.block_size or pool.block_size
    held = base + blocks * size * pool.kv_bytes_per_token
    return Vram(held=held, no_load=base, at_peak=_at_peak(side, base), predicted=True)


def _at_peak(side: MeasuredDeployment, base: int | None) -> float | None:
    memory = side.answer.memory
    usage = [
        level.server.kv_cache_usage
        for level in side.levels
        if level.trusted and not math.isnan(level.server.kv_cache_usage)
    ]
    if base is None or memory.pool_tokens is None or memory.bytes_per_token is None or not usage:
        return None
    return base + max(usage) * memory.pool_tokens * memory.bytes_per_token
