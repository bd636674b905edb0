"""Computes the number of users to plan with, from the bounds of the walls (the limits of the deployment)."""

import math
from collections.abc import Sequence

import numpy as np

from analysis.answers.capacity import Headline
from analysis.evidence.evidence import Evidence
from analysis.walls.held import held_limits
from analysis.walls.placed import PlacedWall

CONFIDENCE = 0.9
REACH = 1.25  # walls beyond the highest trusted level count up to this factor, with a warning
TIE = 0.05  # walls less likely than this to be the first do not affect the upper end


def headline_of(evidence: Evidence, walls: Sequence[PlacedWall], *, confidence: float) -> Headline:
    """Joins the walls into one number of users with an interval.

    The binding wall is the wall that is most probably reached first. Its estimate counts as far as it lies
    within the interval.

    - Lower end: the smallest lower bound of all walls. If the binding wall lies above the highest trusted
      level, this level is a lower bound too.
    - Upper end: the smallest upper bound of the binding wall and its rivals. A rival is another wall that is
      reached first with a probability above TIE. These walls share the permitted error of the upper end
      equally (docs/method.md).
    - If there is no wall, or if the first wall lies above REACH times the highest trusted level, there is no
      upper end. The lower end is then also the largest number of users for which the limits that were not
      passed are known to hold. The result is empty where that is not even known for the lowest level.
    """
    top = evidence.trusted[-1]
    first = min(walls, key=lambda wall: wall.x, default=None)
    error = (1.0 - confidence) / 2
    if first is None or first.x > REACH * top:
        return _at_least(evidence, walls, error=error)
    p_binding = _p_binding(walls)
    binding = max(walls, key=lambda wall: p_binding.get(wall.name, 0.0))
    rivals = [wall for wall in walls if wall in (binding, first) or p_binding.get(wall.name, 0.0) > TIE]
    low = min([wall.bound(error)[0] for wall in walls] + ([float(top)] if binding.x > top else []))
    high = min(wall.bound(error / len(rivals))[1] for wall in rivals)
    estimate = min(max(binding.x, low), high)
    return Headline(
        max_users=math.floor(low),
        estimate=math.floor(estimate),
        interval=(math.floor(low), math.floor(high)),
        estimate_x=estimate,
        interval_x=(low, high),
        binding=binding.name,
        p_binding=p_binding,
    )


def _at_least(evidence: Evidence, walls: Sequence[PlacedWall], *, error: float) -> Headline:
    held = held_limits(evidence, [wall.name for wall in walls], error=error)
    known = [limit.holds_to_users for limit in held if limit.binds]
    if None in known:
        return Headline()
    ends = [float(evidence.trusted[-1])] + [float(users) for users in known if users is not None]
    users = min(ends + [wall.bound(error)[0] for wall in walls])
    return Headline(
        max_users=math.floor(users),
        interval=(math.floor(users), None),
        interval_x=(users, None),
        at_least=True,
    )


def _p_binding(walls: Sequence[PlacedWall]) -> dict[str, float]:
    """Returns, by the wall's name, how probable it is that this wall is reached first.

    The probability is the share of random draws in which the wall has the fewest users. Walls with a share
    of 0 are left out.
    """
    first = np.argmin(np.stack([wall.draws for wall in walls]), axis=0)
    share = np.bincount(first, minlength=len(walls)) / len(first)
    likely = sorted(zip(walls, share, strict=True), key=lambda pair: -pair[1])
    return {wall.name: round(float(p), 3) for wall, p in likely if p > 0}
