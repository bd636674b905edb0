"""The error wall (a limit in users): load makes more than one request in a hundred fail."""

from dataclasses import replace

import numpy as np

from analysis.evidence.evidence import Evidence
from analysis.levels.level import Level, load_points
from analysis.statistics.crossings import Crossing, miss_crossing
from analysis.walls.placed import PlacedWall, placed_at_crossing

OVERLOAD_LIMIT = 0.01
FIT_REACH = 3.0  # in logits, 17 % of the requests: beyond, who is refused always and pauses hides the slope


def place_errors(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Finds the number of users at which the share of failures that load causes exceeds OVERLOAD_LIMIT.

    Failures that are as frequent at the lowest load do not count (`analysis.levels.failures`). A server that
    takes so many requests and no more turns requests away from one user to the next, which no logistic curve
    does: the lower bound is therefore at most the last number of users within the limit. None if the share
    exceeds the limit at no trusted level.
    """
    points = load_points(evidence.levels, lambda level: level.requests.overload)
    crossing = miss_crossing(points, limit=OVERLOAD_LIMIT, reach=FIT_REACH)
    if crossing is None:
        return None
    return placed_at_crossing("errors", evidence, _perhaps_a_step(crossing), rng)


def _perhaps_a_step(crossing: Crossing) -> Crossing:
    """Returns the crossing with a lower bound of at most the last number of users within the limit."""
    last = crossing.between[0]
    if last < 1:
        return crossing

    def bound(error: float) -> tuple[float, float]:
        low, high = crossing.bound(error)
        return min(low, float(last)), high

    return replace(crossing, bound=bound)


def served_all(level: Level) -> bool:
    """Whether the share of failures that load causes is within OVERLOAD_LIMIT in this level."""
    overload = level.requests.overload
    return overload.n > 0 and overload.fraction <= OVERLOAD_LIMIT
