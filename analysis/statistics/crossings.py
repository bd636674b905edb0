"""Where a share of misses, or a p95, crosses its limit as users grow, with bounds. Knows no server."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from scipy import optimize, special, stats

from analysis.statistics.arrays import Floats
from analysis.statistics.samples import MissShare

MISS_LIMIT = 0.05  # a p95 objective: at most 5 % of requests may miss it
MAX_SLOPE = 300.0  # of attainment in ln users: a cliff between two levels has no finite slope
GRID_POINTS = 401


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """Where a share of misses passes its limit, real-valued users, with one-sided bounds at any level."""

    x: float
    bound: Callable[[float], tuple[float, float]]
    """One-sided error -> (lower, upper) bound on x."""
    between: tuple[int, int]
    """The last users that held and the first that broke; (0, first) when none held."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadPoint:
    """Misses and p95 measured at one number of users."""

    users: int
    misses: MissShare
    batches: int
    """Independent batches that the misses' design effect was estimated from."""
    p95: float | None = None
    """None: too few effective samples to say, or not what the limit is about."""


def miss_crossing(points: Sequence[LoadPoint], *, limit: float) -> Crossing | None:
    """Crossing of an overdispersed logistic of the misses in ln users; None when no point is past the limit.

    The fit is local: points within about a factor two of the bracket that isotonic regression finds. The
    bounds are those of the profile likelihood in x, on effective sample sizes, widened by lack of fit and by
    Student's t for the design effect, which is estimated.
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
    # One design effect for all of them: a point of its own seems the surer the fewer misses it happens to
    # have, and weights by that would pull the crossing up.
    effect = np.array([point.misses.effect for point in known])[near]
    weight = np.array([point.batches for point in known], dtype=np.float64)[near] - 1.0
    freedom = float(weight @ effect) ** 2 / float(weight @ effect**2)  # Satterthwaite
    effective = requests[near] / float(np.average(effect, weights=weight))
    return _fit(users[near], fraction[near], effective, freedom, limit, bracket)


def p95_crossing(points: Sequence[LoadPoint], *, objective: float) -> Crossing | None:
    """Where the p95 passes its objective, which is where more than one request in twenty misses it.

    The point is taken from the p95 itself: straight in ln users and ln p95 between the last users that held
    and the first that broke. Shares of 0 and 1 say nothing of where between two loads the crossing lies; the
    p95 does. The bounds are those of `miss_crossing`.
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
    """Mean p95 of the points at so many users; None where one has too few requests to say."""
    found = [point.p95 for point in points if point.users == users]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def _bracket(users: Floats, fraction: Floats, requests: Floats, limit: float) -> tuple[int, int] | None:
    """Last level that held and first that broke, by isotonic regression; None when none broke."""
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

    # A cliff leaves the profile flat between two levels: take the middle of what is equally likely.
    return Crossing(x=math.exp(sum(_ends(grid, excess, 0.1)) / 2), bound=bound, between=bracket)


def _profile(at: Floats, missed: Floats, met: Floats, grid: Floats, *, offset: float) -> Floats:
    """Twice the negative log likelihood of the best slope, were the limit crossed at each grid point.

    at and grid: ln users. at, missed, met: shape (levels,); grid and result: shape (g,). The score
    rises in the slope, so halving finds it.
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
    """Grid values at which a profile that falls and rises passes a height, straight between grid points."""
    inside = np.flatnonzero(excess <= height)
    first, last = int(inside[0]), int(inside[-1])
    left, right = float(grid[first]), float(grid[last])
    if first > 0:
        left = float(np.interp(-height, -excess[first - 1 : first + 1], grid[first - 1 : first + 1]))
    if last < len(grid) - 1:
        right = float(np.interp(height, excess[last : last + 2], grid[last : last + 2]))
    return left, right


def logit(value: float) -> float:
    """ln(p / (1 - p)), with p kept off 0 and 1."""
    return float(special.logit(min(max(value, 1e-9), 1.0 - 1e-9)))
