"""The latency walls (limits in users): the p95 of TTFT, of TPOT, or of stalls, misses its objective.

A stall is the longest gap between two events of an answer.
"""

import numpy as np

from analysis.evidence.evidence import Evidence
from analysis.levels.level import load_points
from analysis.statistics.crossings import MISS_LIMIT, miss_crossing, p95_crossing
from analysis.walls.placed import PlacedWall, placed_at_crossing


def place_ttft(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Finds the number of users at which the p95 of TTFT exceeds its objective.

    None where no trusted level misses the objective.
    """
    points = load_points(
        evidence.levels, lambda level: level.requests.ttft_miss, lambda level: level.requests.ttft_s.p95
    )
    crossing = p95_crossing(points, objective=evidence.slo.ttft_p95_s)
    return placed_at_crossing("ttft", evidence, crossing, rng) if crossing is not None else None


def place_tpot(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Finds the number of users at which the p95 of TPOT exceeds its objective.

    None where no trusted level misses the objective.
    """
    points = load_points(
        evidence.levels, lambda level: level.requests.tpot_miss, lambda level: level.requests.tpot_s.p95
    )
    crossing = p95_crossing(points, objective=evidence.slo.tpot_p95_s)
    return placed_at_crossing("tpot", evidence, crossing, rng) if crossing is not None else None


def place_stall(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Finds the number of users at which the p95 of stalls exceeds its objective.

    Only the share of misses places it: an answer meets the prompt of another user or none, so that the p95
    jumps where that share passes 5 %, and a line between two p95s would miss the jump. None where no trusted
    level misses the objective, or where there is none.
    """
    points = load_points(evidence.levels, lambda level: level.requests.stall_miss)
    crossing = miss_crossing(points, limit=MISS_LIMIT)
    return placed_at_crossing("stall", evidence, crossing, rng) if crossing is not None else None
