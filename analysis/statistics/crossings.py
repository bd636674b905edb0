"""Estimates the number of users at which a share of misses, or a p95, crosses its limit. Knows no server."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from analysis.statistics.arrays import Floats
from analysis.statistics.samples import MissShare, variance_between

MISS_LIMIT = 0.05  # share of requests that may miss a p95 objective
MAX_SLOPE = 300.0  # largest slope of the logistic in ln users: a cliff between two levels has none
GRID_POINTS = 401


@dataclass(frozen=True, kw_only=True, slots=True)
class Crossing:
    """The number of users x (real-valued) at which a curve crosses its limit, with bounds at any
    confidence."""

    x: float
    bound: Callable[[float], tuple[float, float]]
    """Maps a one-sided error probability to the (lower, upper) bound on x."""
    between: tuple[int, int]
    """The last users within the limit and the first beyond it; (0, first) where no level was within it."""
    rise: tuple[float, float]
    """Users at which the share of misses is half the limit, and twice the limit. They lie far apart where the
    curve is flat."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoadPoint:
    """Misses and p95 measured at one number of users."""

    users: int
    misses: MissShare
    batches: int
    """Independent batches from which the design effect of the misses was estimated."""
    p95: float | None = None
    """None where too few effective samples give a p95, or where the limit is not about a p95."""
    run: str = ""
    """Name of the run. A server may be faster or slower after each start, in all levels of a run alike."""


def miss_crossing(points: Sequence[LoadPoint], *, limit: float, reach: float = math.inf) -> Crossing | None:
    """Estimates the number of users at which the share of misses crosses its limit.

    Isotonic regression first finds the two neighbouring numbers of users around the crossing. A logistic
    curve in ln users is then fitted to the points within about a factor of two of these two numbers. The
    bounds come from the profile likelihood of the crossing, with each point counted at its effective number
    of independent requests. The bounds are wider where the curve fits badly (overdispersion). They are also
    wider where few batches support the estimate of the effective number (Student's t). Where points come from
    several runs that differ, the bounds hold a further run (`between_runs`).

    reach: points beyond the first one over the limit count only if the logit of their share is at most so far
    above that of the limit: curves that level off further up are no logistic ones.

    Returns None where no point is beyond the limit.
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
    near &= (users <= bracket[1]) | (fraction <= special.expit(special.logit(limit) + reach))
    # All points share one design effect. By its own, a point with few misses by chance would seem more
    # certain than it is, and its weight would pull the crossing up.
    effect = np.array([point.misses.effect for point in known])[near]
    weight = np.array([point.batches for point in known], dtype=np.float64)[near] - 1.0
    freedom = float(weight @ effect) ** 2 / float(weight @ effect**2)  # Satterthwaite
    effective = requests[near] / float(np.average(effect, weights=weight))
    crossing, slope = _fit(users[near], fraction[near], effective, freedom, limit, bracket)
    runs = np.array([point.run for point in known])[near]
    return _for_a_further_run(
        crossing, between_runs(users[near], fraction[near], effective, runs, crossing.x, slope, limit)
    )


def _for_a_further_run(crossing: Crossing, spread: tuple[float, int] | None) -> Crossing:
    """Widens the bounds by the spread between runs: its standard deviation in ln users, and the runs."""
    if spread is None or spread[0] == 0.0:
        return crossing
    sd, runs = spread

    def bound(error: float) -> tuple[float, float]:
        low, high = crossing.bound(error)
        reach = float(stats.t.isf(error, runs - 1)) * sd * math.sqrt(1.0 + 1.0 / runs)
        below, above = max(math.log(crossing.x / low), 0.0), max(math.log(high / crossing.x), 0.0)
        return crossing.x * math.exp(-math.hypot(below, reach)), crossing.x * math.exp(
            math.hypot(above, reach)
        )

    return replace(crossing, bound=bound)


def between_runs(
    users: Floats,
    fraction: Floats,
    effective: Floats,
    runs: NDArray[np.str_],
    x: float,
    slope: float,
    limit: float,
) -> tuple[float, int] | None:
    """Returns how much the crossings of single runs differ beyond their own errors.

    The result is the standard deviation of the true ln(crossing) between runs, and the number of runs that
    tell. Each run's crossing is fitted with the slope of all runs together. None with fewer than two runs
    that have both misses and requests without one.

    users, fraction, effective, runs: shape (n,) each, one entry for each level. x, slope: the curve of all.
    """
    offset = float(special.logit(limit))
    at, weight = [], []
    for run in sorted(set(runs.tolist())):
        own = runs == run
        n, seen, place = effective[own], fraction[own], np.log(users[own])
        if not 0.0 < float(n @ seen) < float(n.sum()):
            continue

        def excess(cross: float, n: Floats = n, seen: Floats = seen, place: Floats = place) -> float:
            return float(n @ (special.expit(offset + slope * (place - cross)) - seen))

        low, high = math.log(x) - 3.0, math.log(x) + 3.0
        if not excess(low) > 0.0 > excess(high):
            continue
        cross = float(optimize.brentq(excess, low, high))
        share = special.expit(offset + slope * (place - cross))
        at.append(cross)
        weight.append(slope**2 * float(n @ (share * (1.0 - share))))
    if len(at) < 2:
        return None
    return math.sqrt(variance_between(np.array(at), 1.0 / np.array(weight))), len(at)


def p95_crossing(points: Sequence[LoadPoint], *, objective: float) -> Crossing | None:
    """Estimates the number of users x at which the p95 crosses its objective.

    A p95 above its objective means that more than 5 % of the requests miss the objective. `miss_crossing`
    with this limit gives the bounds and the two neighbouring numbers of users around x. x is then
    interpolated between the p95s at these two numbers, in ln users and ln p95. x is kept within the 90 %
    bounds. Bounds of other confidence are extended, where needed, to include x.

    If one of the two p95s is unknown, or the objective is not between them, the result is that of
    `miss_crossing`.

    Returns None where no point is beyond the limit.
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

    rise = crossing.rise[0] * x / crossing.x, crossing.rise[1] * x / crossing.x
    return replace(crossing, x=x, bound=bound, rise=rise)


def _p95_at(points: Sequence[LoadPoint], users: int) -> float | None:
    """Returns the mean p95 of all points at this number of users; None where there is no such point, or where
    any of them has no p95."""
    found = [point.p95 for point in points if point.users == users]
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known and len(known) == len(found) else None


def _bracket(users: Floats, fraction: Floats, requests: Floats, limit: float) -> tuple[int, int] | None:
    """Returns two numbers of users: the last within the limit (0 if there is none) and the first beyond the
    limit. Isotonic regression smooths the shares of misses first. Returns None where no level is beyond the
    limit."""
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
) -> tuple[Crossing, float]:
    """Returns the crossing, and the slope of the logistic curve in ln users there."""
    low, high = math.log(max(bracket[0], 0.5) / 2.0), math.log(bracket[1] * 2.0)
    grid = np.linspace(low, high, GRID_POINTS)
    missed, met = fraction * effective, (1.0 - fraction) * effective
    profile, slopes = _profile(np.log(users), missed, met, grid, offset=float(special.logit(limit)))
    saturated = -2.0 * float(np.sum(special.xlogy(missed, fraction) + special.xlogy(met, 1.0 - fraction)))
    spare = len(users) - 2
    spread = max((float(profile.min()) - saturated) / spare, 1.0) if spare > 0 else 1.0
    excess = (profile - profile.min()) / spread

    def bound(error: float) -> tuple[float, float]:
        ends = _ends(grid, excess, float(stats.t.ppf(error, freedom)) ** 2)
        return math.exp(ends[0]), math.exp(ends[1])

    # A cliff leaves the profile flat between two levels: take the middle of the flat part.
    middle = sum(_ends(grid, excess, 0.1)) / 2
    slope = float(np.interp(middle, grid, slopes))
    x, steps = math.exp(middle), special.logit([limit / 2, limit * 2]) - special.logit(limit)
    rise = x * math.exp(steps[0] / slope), x * math.exp(steps[1] / slope)
    return Crossing(x=x, bound=bound, between=bracket, rise=rise), slope


def _profile(
    at: Floats, missed: Floats, met: Floats, grid: Floats, *, offset: float
) -> tuple[Floats, Floats]:
    """Returns how badly the curve fits if the crossing is at each grid point, and its slope; shape (g,) each.

    The first is -2 ln(likelihood). At each grid point, the slope of the curve is the one with the highest
    likelihood. Bisection finds this slope, because the derivative of -ln(likelihood) rises with the slope.

    at: ln users of the levels, shape (levels,). missed, met: effective numbers of requests, shape (levels,).
    grid: ln users of the possible crossings, shape (g,). offset: logit of the limit.
    """
    away = at[None, :] - grid[:, None]
    low, high = np.full(len(grid), math.log(0.05)), np.full(len(grid), math.log(MAX_SLOPE))
    for _ in range(40):
        middle = (low + high) / 2
        share = special.expit(offset + np.exp(middle)[:, None] * away)
        rising = np.sum(((missed + met) * share - missed) * away, axis=1) > 0
        low, high = np.where(rising, low, middle), np.where(rising, middle, high)
    eta = offset + np.exp(low)[:, None] * away
    return -2.0 * (special.log_expit(eta) @ missed + special.log_expit(-eta) @ met), np.exp(low)


def _ends(grid: Floats, excess: Floats, height: float) -> tuple[float, float]:
    """Returns the first and the last grid value at which a profile is at most `height`. Both are interpolated
    between grid points."""
    inside = np.flatnonzero(excess <= height)
    first, last = int(inside[0]), int(inside[-1])
    left, right = float(grid[first]), float(grid[last])
    if first > 0:
        left = float(np.interp(-height, -excess[first - 1 : first + 1], grid[first - 1 : first + 1]))
    if last < len(grid) - 1:
        right = float(np.interp(height, excess[last : last + 2], grid[last : last + 2]))
    return left, right


def logit(value: float) -> float:
    """Returns ln(value / (1 - value)), with the value clipped to the range from 1e-9 to 1 - 1e-9."""
    return float(special.logit(min(max(value, 1e-9), 1.0 - 1e-9)))
