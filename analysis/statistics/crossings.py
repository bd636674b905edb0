"""The users at which a share of misses, or a p95, crosses its limit, with bounds. Knows no server."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special, stats

from analysis.statistics.arrays import Floats
from analysis.statistics.samples import MissShare

MISS_LIMIT = 0.05  # share of requests that may miss a p95 objective
MAX_SLOPE = 300.0  # largest slope of the logistic in ln users: a cliff between two levels has none
GRID_POINTS = 401


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """Users x (real-valued) at which a curve crosses its limit, with bounds at any confidence."""

    x: float
    bound: Callable[[float], tuple[float, float]]
    """Maps a one-sided error probability to the (lower, upper) bound on x."""
    between: tuple[int, int]
    """The last users within the limit and the first beyond it; (0, first) where no level was within it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadPoint:
    """Misses and p95 measured at one number of users."""

    users: int
    misses: MissShare
    batches: int
    """Independent batches from which the design effect of the misses was estimated."""
    p95: float | None = None
    """None where too few effective samples give a p95, or where the limit is not about a p95."""


def miss_crossing(points: Sequence[LoadPoint], *, limit: float) -> Crossing | None:
    """Fits where the share of misses crosses its limit; None where no point is beyond the limit.

    The curve is an overdispersed logistic in ln users. The fit is local: it takes the points within about a
    factor of two of the bracket that isotonic regression gives. The bounds come from the profile likelihood
    in x, on effective sample sizes. They are widened by lack of fit, and by Student's t because the design
    effect is an estimate.
    """
    known = sorted((point for point in points if point.misses.n > 0), key=lambda point: point.users)
    if not known:
        return None
    users = np.array([point.users for point in known], dtype=np.float64)
    fraction = np.array([point.misses.fraction for point in known])
    requests = np.array([point.misses.n for point in known], dtype=np.float64)
    bracket = _bracket(users, fraction, requests, limit)
    if bracket is None:
        return None
    near = (users >= bracket[0] / 2.1) & (users <= bracket[1] * 1.6)
    # All points share one design effect. By its own, a point with few misses by chance would seem more
    # certain than it is, and its weight would pull the crossing up.
    effect = np.array([point.misses.effect for point in known])[near]
    weight = np.array([point.batches for point in known], dtype=np.float64)[near] - 1.0
    freedom = float(weight @ effect) ** 2 / float(weight @ effect**2)  # Satterthwaite
    effective = requests[near] / float(np.average(effect, weights=weight))
    return _fit(users[near], fraction[near], effective, freedom, limit, bracket)


def p95_crossing(points: Sequence[LoadPoint], *, objective: float) -> Crossing | None:
    """Places where the p95 crosses its objective, that is, where more than 5 % of the requests miss it.

    x is interpolated in ln users and ln p95 between the last users within the objective and the first beyond
    it. (Shares of misses of 0 and 1 do not tell where between two loads the crossing is.) The bounds are
    those of `miss_crossing`, extended to include x. None where no point is beyond the limit.
    """
    crossing = miss_crossing(points, limit=MISS_LIMIT)
    if crossing is None:
        return None
    last, first = (_p95_at(points, users) for users in crossing.between)
    if last is None or first is None or not last <= objective < first:
        return crossing
    part = math.log(objective / last) / math.log(first / last)
    low, high = crossing.bound(0.05)
    x = min(max(crossing.between[0] * (crossing.between[1] / crossing.between[0]) ** part, low), high)

    def bound(error: float) -> tuple[float, float]:
        low, high = crossing.bound(error)
        return min(low, x), max(high, x)

    return replace(crossing, x=x, bound=bound)


def _p95_at(points: Sequence[LoadPoint], users: int) -> float | None:
    """Returns the mean p95 of the points with this many users; None where one of them has no p95."""
    found = [point.p95 for point in points if point.users == users]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def _bracket(users: Floats, fraction: Floats, requests: Floats, limit: float) -> tuple[int, int] | None:
    """Returns the last level within the limit (0 if none) and the first beyond it, by isotonic regression.
    None where no level is beyond it."""
    smooth = optimize.isotonic_regression(fraction, weights=requests).x
    broke = np.flatnonzero(smooth > limit)
    if not len(broke):
        return None
    held = users[users < users[broke[0]]]
    return int(held[-1]) if len(held) else 0, int(users[broke[0]])


def _fit(
    users: Floats,
    fraction: Floats,
    effective: Floats,
    freedom: float,
    limit: float,
    bracket: tuple[int, int],
) -> Crossing:
    low, high = math.log(max(bracket[0], 0.5) / 2.0), math.log(bracket[1] * 2.0)
    grid = np.linspace(low, high, GRID_POINTS)
    missed, met = fraction * effective, (1.0 - fraction) * effective
    profile = _profile(np.log(users), missed, met, grid, offset=float(special.logit(limit)))
    saturated = -2.0 * float(np.sum(special.xlogy(missed, fraction) + special.xlogy(met, 1.0 - fraction)))
    spare = len(users) - 2
    spread = max((float(profile.min()) - saturated) / spare, 1.0) if spare > 0 else 1.0
    excess = (profile - profile.min()) / spread

    def bound(error: float) -> tuple[float, float]:
        ends = _ends(grid, excess, float(stats.t.ppf(error, freedom)) ** 2)
        return math.exp(ends[0]), math.exp(ends[1])

    # A cliff leaves the profile flat between two levels: take the middle of the flat part.
    return Crossing(x=math.exp(sum(_ends(grid, excess, 0.1)) / 2), bound=bound, between=bracket)


def _profile(at: Floats, missed: Floats, met: Floats, grid: Floats, *, offset: float) -> Floats:
    """Returns twice the negative log likelihood of the best slope, for a crossing at each grid point.

    at, grid: ln users. missed, met: effective numbers of requests. at, missed, met: shape (levels,). grid and
    the result: shape (g,). The best slope is found by bisection, because the score rises in the slope.
    """
    away = at[None, :] - grid[:, None]
    low, high = np.full(len(grid), math.log(0.05)), np.full(len(grid), math.log(MAX_SLOPE))
    for _ in range(40):
        middle = (low + high) / 2
        share = special.expit(offset + np.exp(middle)[:, None] * away)
        rising = np.sum(((missed + met) * share - missed) * away, axis=1) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    eta = offset + np.exp(low)[:, None] * away
    return np.asarray(-2.0 * (special.log_expit(eta) @ missed + special.log_expit(-eta) @ met))


def _ends(grid: Floats, excess: Floats, height: float) -> tuple[float, float]:
    """Returns the two grid values between which a profile is below `height`, interpolated."""
    inside = np.flatnonzero(excess <= height)
    first, last = int(inside[0]), int(inside[-1])
    left, right = float(grid[first]), float(grid[last])
    if first > 0:
        left = float(np.interp(-height, -excess[first - 1 : first + 1], grid[first - 1 : first + 1]))
    if last < len(grid) - 1:
        right = float(np.interp(height, excess[last : last + 2], grid[last : last + 2]))
    return left, right


def logit(value: float) -> float:
    """Returns ln(p / (1 - p)), with p clipped to the range from 1e-9 to 1 - 1e-9."""
    return float(special.logit(min(max(value, 1e-9), 1.0 - 1e-9)))
