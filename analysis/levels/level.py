"""One level: a constant number of users, the window in which it was steady, and what was measured there."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.levels.requests import RequestFigures
from analysis.levels.server import ServerFigures
from analysis.notes import Note
from analysis.statistics.crossings import LoadPoint
from analysis.statistics.samples import MissShare, Window


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Level:
    """What is known of one level. Figures that were not measured are nan or None, never 0."""

    users: int
    run_id: str
    window: Window
    in_flight: float
    """Mean over the window."""
    requests: RequestFigures
    server: ServerFigures
    lag_s: float
    """Lag of the event loop that stamps the times, mean over the window, in the worst process."""
    why_not: tuple[Note, ...]
    """Why the level is not trusted; empty when it is."""

    @property
    def trusted(self) -> bool:
        """True when the level may be fitted."""
        return not self.why_not

    @property
    def preempted_fraction(self) -> float:
        """Preemptions for each finished request."""
        finished = self.requests.finished
        return self.server.preemptions / finished if finished else math.nan


def load_points(
    levels: Sequence[Level],
    misses: Callable[[Level], MissShare],
    p95: Callable[[Level], float | None] = lambda _: None,
) -> list[LoadPoint]:
    """Trusted levels as points of a curve that may cross a limit."""
    return [
        LoadPoint(users=level.users, misses=misses(level), batches=level.window.batches, p95=p95(level))
        for level in levels
        if level.trusted
    ]
