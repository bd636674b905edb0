"""The walls by name, and how each can be known.

A new wall needs its name here, a file beside this one, a line in `analysis.capacity.judgement`, and its words
in `analysis.reporting.words`. A figure that nobody measures yet begins in `loadtest.record`.
"""

from typing import Literal

WallName = Literal[
    "kv_cache", "prefix_cache", "ttft", "tpot", "throughput", "max_num_seqs", "errors", "not_reached"
]
Basis = Literal["measured", "interpolated", "extrapolated", "model"]
"""measured: a trusted level is within one user or 5 % of the wall; model: no level moved the formula."""
