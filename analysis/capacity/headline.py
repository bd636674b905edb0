"""The number of users to plan with, from the walls and their bounds."""

import math
from collections.abc import Sequence

import numpy as np

from analysis.answers.capacity import Headline
from analysis.evidence.evidence import Evidence
from analysis.walls.placed import PlacedWall

CONFIDENCE = 0.9
REACH = 1.25  # walls beyond the highest trusted level count up to this factor, with a warning
TIE = 0.05  # walls less likely than this to be the first do not affect the upper end


def headline_of(evidence: Evidence, walls: Sequence[PlacedWall], *, confidence: float) -> Headline:
    """Joins the walls into one number of users with an interval.

    The lower end is the smallest lower bound of all walls. The upper end is the smallest upper bound among
    the first wall and its rivals, each at an error divided by their number (docs/method.md). A wall that was
    not met lies above the highest trusted level, so that level is its lower bound.
    """
    top = evidence.trusted[-1]
    first = min(walls, key=lambda wall: wall.x, default=None)
    error = (1.0 - confidence) / 2
    if first is None or first.x > REACH * top:
        return _at_least(min([float(top)] + [wall.bound(error)[0] for wall in walls]))
    p_binding = _p_binding(walls)
    rivals = [wall for wall in walls if wall is first or p_binding.get(wall.name, 0.0) > TIE]
    low = min([wall.bound(error)[0] for wall in walls] + ([float(top)] if first.x > top else []))
    high = min(wall.bound(error / len(rivals))[1] for wall in rivals)
    return Headline(
        max_users=math.floor(low),
        estimate=math.floor(first.x),
        interval=(math.floor(low), math.floor(high)),
        estimate_x=first.x,
        interval_x=(low, high),
        binding=first.name,
        p_binding=p_binding,
    )


def _at_least(users: float) -> Headline:
    return Headline(
        max_users=math.floor(users),
        interval=(math.floor(users), None),
        interval_x=(users, None),
        at_least=True,
    )


def _p_binding(walls: Sequence[PlacedWall]) -> dict[str, float]:
    """Returns the share of draws in which each wall is the first; walls with none are left out."""
    first = np.argmin(np.stack([wall.draws for wall in walls]), axis=0)
    share = np.bincount(first, minlength=len(walls)) / len(first)
    likely = sorted(zip(walls, share, strict=True), key=lambda pair: -pair[1])
    return {wall.name: round(float(p), 3) for wall, p in likely if p > 0}
