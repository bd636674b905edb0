"""TODO."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.evidence import Evidence
from analysis.walls.names import WallName
from analysis.walls.placed import PlacedWall

CONFIDENCE = 0.9
REACH = 1.25  # the memory law may speak this far beyond the highest trusted level, flagged
TIE = 0.05  # walls less likely than this to bind do not widen the interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Headline:
    """The first line of the answer."""

    max_users: int | None
    estimate: int | None
    interval: tuple[int, int | None] | None
    estimate_x: float | None
    interval_x: tuple[float, float | None] | None
    at_least: bool
    binding: WallName
    p_binding: dict[str, float]


def refused_headline() -> Headline:
    return Headline(
        max_users=None,
        estimate=None,
        interval=None,
        estimate_x=None,
        interval_x=None,
        at_least=False,
        binding="not_reached",
        p_binding={},
    )


def headline_of(evidence: Evidence, stands: Sequence[PlacedWall], *, confidence: float) -> Headline:
    """xL = the least lower bound, xU = the least upper bound, the latter corrected for walls that tie.

    A wall that was not met stands above the highest trusted level, which is therefore its lower bound.
    """
    top = evidence.trusted[-1]
    first = min(stands, key=lambda stand: stand.x, default=None)
    error = (1.0 - confidence) / 2
    if first is None or first.x > REACH * top:
        return _at_least(min([float(top)] + [stand.bound(error)[0] for stand in stands]))
    p_binding = _p_binding(stands)
    rivals = [stand for stand in stands if stand is first or p_binding.get(stand.name, 0.0) > TIE]
    low = min([stand.bound(error)[0] for stand in stands] + ([float(top)] if first.x > top else []))
    high = min(stand.bound(error / len(rivals))[1] for stand in rivals)
    return Headline(
        max_users=math.floor(low),
        estimate=math.floor(first.x),
        interval=(math.floor(low), math.floor(high)),
        estimate_x=first.x,
        interval_x=(low, high),
        at_least=False,
        binding=first.name,
        p_binding=p_binding,
    )


def _at_least(users: float) -> Headline:
    return Headline(
        max_users=math.floor(users),
        estimate=None,
        interval=(math.floor(users), None),
        estimate_x=None,
        interval_x=(users, None),
        at_least=True,
        binding="not_reached",
        p_binding={},
    )


def _p_binding(stands: Sequence[PlacedWall]) -> dict[str, float]:
    """How often each wall is the first over the draws; those never first are left out."""
    first = np.argmin(np.stack([stand.draws for stand in stands]), axis=0)
    share = np.bincount(first, minlength=len(stands)) / len(first)
    likely = sorted(zip(stands, share, strict=True), key=lambda pair: -pair[1])
    return {stand.name: round(float(p), 3) for stand, p in likely if p > 0}
