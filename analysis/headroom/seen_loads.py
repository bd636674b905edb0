"""What share of requests missed an objective at each load that was seen, and where it crosses its limit.

A load is the mean number of requests in flight in one replica over a window.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.production.engines import EngineHistory, Production
from analysis.statistics.arrays import Floats, Ints
from analysis.statistics.crossings import Crossing, LoadPoint, miss_crossing
from analysis.statistics.samples import MissShare

GRAIN = 10
"""Loads are counted in parts of a request, so many to one: the mean of a window is no whole number."""
GROUP_WINDOWS, GROUP_REQUESTS, GROUP_SPAN = 3, 100, 1.1
"""Windows are grouped by load: the highest of a group is at most so many times its lowest. A group with fewer
windows or requests is left out, as where a load was only passed through; the highest takes lower loads on
instead, for the peak must not be left out."""
CONFIDENCE_ERROR = 0.05
EngineLoad = Callable[[EngineHistory], Floats]
"""Returns an engine's load at each of its scrapes."""
WindowMisses = Callable[[EngineHistory, int], tuple[float, float] | None]
"""Returns how many of a window's requests missed, and how many there were; None where that is not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SeenCrossing:
    """Where the share of misses crosses its limit, as far as loads were seen. In requests in flight."""

    lowest: float
    """Lowest load that was seen, as the mean of a group of windows."""

    x: float | None
    """None where it stays within the limit."""
    low: float | None
    high: float | None
    held: float | None
    """Highest load at which the limit surely holds; None where that is shown of none."""
    highest: float
    """Highest load that was seen, as the mean of a group of windows."""
    requests: int
    broken: bool
    """Whether the share is surely beyond its limit at every load that was seen."""


def seen_points(
    production: Production, missed: WindowMisses, load: EngineLoad = lambda engine: engine.in_flight
) -> list[LoadPoint]:
    """Groups the windows of all engines by their mean load. `users` of a point is its load times GRAIN."""
    loads, misses, counts = _windows(production, missed, load)
    groups = _grouped(loads, counts)
    return [_point(loads[group], misses[group], counts[group]) for group in groups]


def seen_crossing(production: Production, missed: WindowMisses, *, limit: float) -> SeenCrossing | None:
    """Finds where misses cross the limit, by windows grouped by load. Returns None without such groups."""
    points = seen_points(production, missed)
    if not points:
        return None
    crossing = _crossing(points, limit)
    held = [point.users / GRAIN for point in points if point.misses.bounds(CONFIDENCE_ERROR)[1] <= limit]
    if crossing is not None:
        held = [load for load in held if load <= crossing.x / GRAIN]
    low, high = _band(crossing) if crossing else (None, None)
    return SeenCrossing(
        x=crossing.x / GRAIN if crossing else None,
        low=low,
        high=high,
        held=max(held, default=None),
        lowest=min(point.users for point in points) / GRAIN,
        highest=max(point.users for point in points) / GRAIN,
        requests=sum(point.misses.n for point in points),
        broken=all(point.misses.bounds(CONFIDENCE_ERROR)[0] > limit for point in points),
    )


def _crossing(points: Sequence[LoadPoint], limit: float) -> Crossing | None:
    """Returns the crossing; None where the lowest load is already beyond the limit, too: nothing brackets
    it."""
    crossing = miss_crossing(points, limit=limit)
    return None if crossing is None or crossing.between[0] == 0 else crossing


def _band(crossing: Crossing) -> tuple[float, float]:
    """Returns the band of a crossing, in requests in flight. It reaches at least from the last load within
    the limit to the first beyond it: in production these may lie far apart, and the curve between them is not
    known to be logistic."""
    low, high = crossing.bound(CONFIDENCE_ERROR)
    return min(low, crossing.between[0]) / GRAIN, max(high, crossing.between[1]) / GRAIN


def _windows(production: Production, missed: WindowMisses, load: EngineLoad) -> tuple[Floats, Floats, Floats]:
    """Returns load, misses and requests of each window with requests, shape (w,) each."""
    rows = []
    for engine in production.engines:
        edges = np.searchsorted(engine.unix_s, engine.edges_unix_s, side="right")
        held = load(engine)
        for window in range(max(len(edges) - 1, 0)):
            inside = held[edges[window] : edges[window + 1]]
            counted = missed(engine, window)
            if len(inside) and not np.isnan(inside).all() and counted is not None and counted[1] > 0:
                rows.append((float(np.nanmean(inside)), *counted))
    loads, misses, counts = np.array(rows).reshape(-1, 3).T
    some = loads > 0
    return loads[some], misses[some], counts[some]


def _grouped(loads: Floats, counts: Floats) -> list[Ints]:
    """Returns the windows of each group, from the highest load down."""
    groups: list[list[int]] = []
    group: list[int] = []

    def enough() -> bool:
        return len(group) >= GROUP_WINDOWS and bool(counts[group].sum() >= GROUP_REQUESTS)

    for at in np.argsort(-loads, kind="stable").tolist():
        if group and loads[group[0]] > GROUP_SPAN * loads[at] and (groups or enough()):
            groups += [group] if enough() else []
            group = []
        group.append(at)
    groups += [group] if enough() else []
    return [np.array(one) for one in groups]


def _point(loads: Floats, misses: Floats, counts: Floats) -> LoadPoint:
    n, missed = float(counts.sum()), float(misses.sum())
    share, windows = missed / n, len(loads)
    effect = 1.0
    if windows > 1 and 0.0 < share < 1.0:
        spread = float(np.sum((misses - share * counts) ** 2)) * windows / (windows - 1)
        effect = max(spread / (n * share * (1.0 - share)), 1.0)
    return LoadPoint(
        users=max(round(GRAIN * float(loads @ counts) / n), 1),
        misses=MissShare(misses=math.floor(min(missed, n)), n=round(n), effect=effect),
        batches=max(windows, 2),
    )
