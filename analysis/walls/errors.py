"""The error wall: because of its load, the server refuses more than one request in a hundred."""

import numpy as np

from analysis.evidence.evidence import Evidence
from analysis.levels.level import load_points
from analysis.statistics.crossings import miss_crossing
from analysis.walls.placed import PlacedWall, placed_at_crossing

OVERLOAD_LIMIT = 0.01


def place_errors(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Places the wall where the share of refused requests crosses OVERLOAD_LIMIT; None if no level does."""
    points = load_points(evidence.levels, lambda level: level.requests.overload)
    crossing = miss_crossing(points, limit=OVERLOAD_LIMIT)
    return placed_at_crossing("errors", evidence, crossing, rng) if crossing is not None else None
