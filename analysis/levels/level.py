"""One level: a constant number of users, its steady window, and what was measured in that window."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from analysis.levels.classes import ClassFigures
from analysis.levels.failures.classes import FailureTotal, failure_totals, failures_without_levels
from analysis.levels.requests import RequestFigures, RequestLatency
from analysis.levels.server import ServerFigures
from analysis.notes import Note
from analysis.reading.runs import Run
from analysis.statistics.crossings import LoadPoint
from analysis.statistics.samples import MissShare, Window


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Level:
    """Measurements of one level. Figures that were not measured are nan or None, never 0."""

    users: int
    run_id: str
    window: Window
    in_flight: float
    """Mean number of requests in flight over the window."""
    paused: float
    """Mean number of users who paused because a request failed, over the window."""
    requests: RequestFigures
    server: ServerFigures
    classes: tuple[ClassFigures, ...] = ()
    """Figures of each class of users, in the order of the workload file; empty without one."""
    lag_s: float
    """Mean lag of the event loop that takes the times, in seconds, over the window, in the worst worker."""
    why_not: tuple[Note, ...]
    """Doubts because of which the level is not trusted; empty where it is trusted."""

    @property
    def trusted(self) -> bool:
        """Whether the level is free of doubts, so that fits may use it."""
        return not self.why_not

    def latency_of(self, user_class: str | None) -> RequestLatency:
        """Returns the latency of the requests of one class of users; None: of all requests."""
        found = (one.latency for one in self.classes if one.name == user_class)
        return self.requests if user_class is None else next(found)

    @property
    def preempted_fraction(self) -> float:
        """Preemptions per finished request; nan where no request finished."""
        finished = self.requests.finished
        return self.server.preemptions / finished if finished else math.nan


def failures_of(runs: Sequence[Run], levels: Sequence[Level]) -> list[FailureTotal]:
    """Returns all failures in the windows of the levels by class, and whether load causes them.

    The cause is judged by the trusted levels, if there are any. If no request ended in the windows of the
    levels, the failures of the whole runs are returned.
    """
    if not any(level.requests.ended for level in levels):
        return failures_without_levels([run.requests for run in runs])
    windows, trusted = (
        [(level.users, level.requests.ended, level.requests.failures) for level in chosen]
        for chosen in (levels, [level for level in levels if level.trusted])
    )
    return failure_totals(windows, judged_by=trusted or windows)


def load_points(
    levels: Sequence[Level],
    misses: Callable[[Level], MissShare],
    p95: Callable[[Level], float | None] = lambda _: None,
) -> list[LoadPoint]:
    """Returns a point with users, misses and p95 for each trusted level.

    From such points, the caller computes at how many users a limit is passed.
    """
    return [
        LoadPoint(
            users=level.users,
            misses=misses(level),
            batches=level.window.batches,
            p95=p95(level),
            run=level.run_id,
        )
        for level in levels
        if level.trusted
    ]
