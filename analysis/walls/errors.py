"""The error wall (a limit in users): load makes more than one request in a hundred fail."""

import numpy as np

from analysis.evidence.evidence import Evidence
from analysis.levels.level import Level, load_points
from analysis.statistics.crossings import miss_crossing
from analysis.walls.placed import PlacedWall, placed_at_crossing

OVERLOAD_LIMIT = 0.01
FIT_REACH = 3.0  # in logits, 17 % of the requests: beyond, who is refused always and pauses hides the slope


def place_errors(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Finds the number of users at which the share of failures that load causes exceeds OVERLOAD_LIMIT.

    Failures that are as frequent at the lowest load do not count (`analysis.levels.failures`). None if the
    share exceeds the limit at no trusted level.
    """
    points = load_points(evidence.levels, lambda level: level.requests.overload)
    crossing = miss_crossing(points, limit=OVERLOAD_LIMIT, reach=FIT_REACH)
    return placed_at_crossing("errors", evidence, crossing, rng) if crossing is not None else None


def served_all(level: Level) -> bool:
    """Whether the share of failures that load causes is within OVERLOAD_LIMIT in this level."""
    overload = level.requests.overload
    return overload.n > 0 and overload.fraction <= OVERLOAD_LIMIT
