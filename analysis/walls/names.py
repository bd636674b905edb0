"""Names of the walls (limits in users), and of the ways in which the position of a wall is known.

A new wall needs its name here, a module beside this one, a line in `analysis.capacity.judgement`, and its
words in `analysis.reporting.words`. If it needs a figure that is not measured yet, begin in
`loadtest.record`.
"""

from typing import Literal

WallName = Literal[
    "kv_cache", "prefix_cache", "ttft", "tpot", "stall", "throughput", "max_num_seqs", "errors", "not_reached"
]
Basis = Literal["measured", "interpolated", "extrapolated", "model"]
"""measured: a trusted level lies within one user or 5 % of the wall. interpolated: the wall lies between
trusted levels. extrapolated: it lies outside them. model: no level moved the formula."""
