"""TODO."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.statistics.crossings import LoadPoint
from analysis.statistics.samples import Quantiles, Share, Window


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Level:
    """A plateau of constant users. Server figures are nan where /metrics did not give them."""

    users: int
    run_id: str
    window: Window
    n: int
    """Requests that ended in the window, whatever their outcome, ours-cancelled left out."""
    cancelled: int
    errors: int
    in_flight: float
    e2e_mean_s: float
    e2e: Quantiles
    ttft: Quantiles
    tpot: Quantiles
    decode: Quantiles
    gap: Quantiles
    gap_is_itl: bool
    ttft_miss: Share
    tpot_miss: Share
    overload: Share
    output_tok_s: float
    output_tok_se: float
    goodput_rps: float
    running: float
    kv_usage: float
    waiting_fraction: float
    """Share of scrapes in which somebody waited, for whatever reason."""
    preemptions: float
    finished: int
    blocked: Share | None
    """Scrapes in which a request waited for KV blocks."""
    queue: Share
    """Scrapes in which a request waited while the pool had room: for a slot, where there are `slots`."""
    slots: int | None
    """`max_num_seqs`, where running stood flat at it with a queue and room in the pool."""
    most_running: int | None
    """Of requests, where the pool had room and others waited."""
    prefix_hit_rate: float
    """Prompt tokens that the prefix cache held, of those looked up."""
    vram_bytes: float
    lag_s: float
    why_not: tuple[str, ...]

    @property
    def trusted(self) -> bool:
        return not self.why_not

    @property
    def preempted_fraction(self) -> float:
        return self.preemptions / self.finished if self.finished else math.nan


def load_points(
    levels: Sequence[Level],
    misses: Callable[[Level], Share],
    p95: Callable[[Level], float | None] = lambda _: None,
) -> list[LoadPoint]:
    """The trusted levels, as what crosses a limit."""
    return [
        LoadPoint(users=level.users, misses=misses(level), batches=level.window.batches, p95=p95(level))
        for level in levels
        if level.trusted
    ]
