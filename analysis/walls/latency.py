"""The latency walls (limits in users): the p95 of TTFT, of TPOT, or of stalls, misses its objective.

A stall is the longest gap between two events of an answer. Where users have classes, each class has a wall of
its own, and the nearest of them is the wall of the mix.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from analysis.evidence.evidence import Evidence
from analysis.levels.level import Level, load_points
from analysis.levels.requests import RequestLatency
from analysis.statistics.crossings import MISS_LIMIT, Crossing, miss_crossing, p95_crossing
from analysis.statistics.samples import MissShare
from analysis.walls.names import WallName
from analysis.walls.placed import PlacedWall, first_of_classes, placed_at_crossing
from loadtest.record import Slo

FindCrossing = Callable[[list[Level], str | None, Slo], Crossing | None]
"""Finds the crossing of one class of users, or of all users (None), in these levels."""


def place_ttft(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Finds the number of users at which the p95 of TTFT exceeds its objective.

    None where no trusted level misses the objective.
    """
    crossing = _where_p95_exceeds(
        lambda found: found.ttft_miss, lambda found: found.ttft_s.p95, lambda slo: slo.ttft_p95_s
    )
    return _placed("ttft", evidence, crossing, rng)


def place_tpot(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Finds the number of users at which the p95 of TPOT exceeds its objective.

    None where no trusted level misses the objective.
    """
    crossing = _where_p95_exceeds(
        lambda found: found.tpot_miss, lambda found: found.tpot_s.p95, lambda slo: slo.tpot_p95_s
    )
    return _placed("tpot", evidence, crossing, rng)


def place_stall(evidence: Evidence, rng: np.random.Generator) -> PlacedWall | None:
    """Finds the number of users at which the p95 of stalls exceeds its objective.

    Only the share of misses places it: an answer meets the prompt of another user or none, so that the p95
    jumps where that share passes 5 %, and a line between two p95s would miss the jump. None where no trusted
    level misses the objective, or where there is none.
    """

    def crossing(levels: list[Level], user_class: str | None, slo: Slo) -> Crossing | None:
        points = load_points(levels, lambda level: level.latency_of(user_class).stall_miss)
        return miss_crossing(points, limit=MISS_LIMIT)

    return _placed("stall", evidence, crossing, rng)


def _where_p95_exceeds(
    misses: Callable[[RequestLatency], MissShare],
    p95: Callable[[RequestLatency], float | None],
    objective_s: Callable[[Slo], float],
) -> FindCrossing:
    def crossing(levels: list[Level], user_class: str | None, slo: Slo) -> Crossing | None:
        points = load_points(
            levels,
            lambda level: misses(level.latency_of(user_class)),
            lambda level: p95(level.latency_of(user_class)),
        )
        return p95_crossing(points, objective=objective_s(slo))

    return crossing


def _placed(
    name: WallName, evidence: Evidence, find: FindCrossing, rng: np.random.Generator
) -> PlacedWall | None:
    """Places the wall of each class of users, and returns the nearest; of all users where there are none."""
    walls = []
    for user_class, slo in evidence.objectives.items():
        crossing = find(list(evidence.levels), user_class, slo)
        if crossing is not None:
            wall = placed_at_crossing(name, evidence, crossing, rng)
            walls.append(replace(wall, user_class=user_class))
    return first_of_classes(walls)
