"""The error wall (a limit in users): under load, the server refuses more than one request in a hundred."""

import numpy as np

from analysis.evidence.evidence import Evidence
from analysis.levels.level import load_points
from analysis.statistics.crossings import miss_crossing
from analysis.walls.placed import PlacedWall, placed_at_crossing

OVERLOAD_LIMIT = 0.01


def place_errors(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Finds the number of users at which the share of refused requests exceeds OVERLOAD_LIMIT.

    None if it does so at no trusted level.
    """
    points = load_points(evidence.levels, lambda level: level.requests.overload)
    crossing = miss_crossing(points, limit=OVERLOAD_LIMIT)
    return placed_at_crossing("errors", evidence, crossing, rng) if crossing is not None else None
