"""TODO."""

from typing import Literal

WallName = Literal[
    "kv_cache", "prefix_cache", "ttft", "tpot", "throughput", "max_num_seqs", "errors", "not_reached"
]
Basis = Literal["measured", "interpolated", "extrapolated", "model"]
