"""Finds the distribution of lengths behind a histogram, by maximum likelihood over its buckets."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from scipy import optimize, special

from analysis.production.buckets import Buckets
from analysis.statistics.arrays import Floats
from loadtest.workload.distributions import Distribution

MAX_DISTANCE = 0.05
"""Largest distance of a distribution that is said to fit: about so many requests have other lengths."""
SAMPLE_DISTANCE = 1.36
"""Kolmogorov's distance that a sample of n values exceeds in one case of 20 is this over the root of n (N.
Smirnov, 1948)."""
CV_RANGE = (0.01, 20.0)
_LEAST = 1e-300


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FittedLengths:
    """The distribution that explains the buckets best, of those that the load test can draw."""

    distribution: Distribution
    text: str
    """The distribution as the flags of the load test take it."""
    expected: Floats
    """Share of the values that it puts into each bucket, shape (k,)."""
    distance: float
    """Largest difference between the shares of values up to a bound, counted and by the distribution."""
    fits: bool
    one_bucket: bool
    """Whether all values lie in one bucket, so that their spread cannot be seen."""


def fit_lengths(buckets: Buckets) -> FittedLengths:
    """Fits each form of `Distribution` to a histogram of token counts, and returns the best one by Akaike's
    criterion (H. Akaike, "A new look at the statistical model identification", 1974).

    The mean of each form is that of the histogram, which is exact; the other parameter is the one with the
    highest likelihood of the counts. A bucket (lo, hi] holds the whole numbers from lo + 1 to hi, which a
    draw that is rounded reaches from lo + 1/2 to hi + 1/2.
    """
    edges = buckets.upper + 0.5
    candidates = [
        (2.0 * free - 2.0 * _likelihood(buckets, one, edges), number, one)
        for number, (one, free) in enumerate(_candidates(buckets, edges))
    ]
    best = min(candidates)[2]
    expected = np.diff(_up_to(best, edges), prepend=0.0)
    distance = float(np.max(np.abs(np.cumsum(expected) - buckets.cumulative)))
    return FittedLengths(
        distribution=best,
        text=distribution_text(best),
        expected=expected,
        distance=distance,
        fits=distance <= max(MAX_DISTANCE, SAMPLE_DISTANCE / math.sqrt(buckets.n)),
        one_bucket=bool(np.count_nonzero(buckets.counts) == 1),
    )


def length_values(buckets: Buckets, fitted: FittedLengths, count: int) -> Floats:
    """Returns so many lengths, rising, that lie in the buckets as counted and have the exact mean.

    Within a bucket they lie as the fitted distribution has them there; where it has none, evenly. What the
    mean then lacks moves them towards the lower or the upper ends of their buckets.
    """
    shares = np.concatenate([[0.0], buckets.cumulative])
    at = (np.arange(count) + 0.5) / count
    bucket = np.clip(np.searchsorted(shares, at, side="right") - 1, 0, len(buckets.upper) - 1)
    inside = np.clip((at - shares[bucket]) / np.maximum(shares[bucket + 1] - shares[bucket], 1e-12), 0.0, 1.0)
    below = np.concatenate([[0.0], _up_to(fitted.distribution, buckets.upper)])
    likely = below[bucket + 1] - below[bucket] > 1e-9
    low, high = buckets.lower[bucket], np.where(np.isfinite(buckets.upper), buckets.upper, np.inf)[bucket]
    even = low + (np.where(np.isfinite(high), high, 2.0 * low) - low) * inside

    def placed(power: float) -> Floats:
        part = inside ** math.exp(power)
        share = below[bucket] + part * (below[bucket + 1] - below[bucket])
        by_law = np.clip(_reached_at(fitted.distribution, share), low, high)
        evenly = low + (even - low) * part / np.maximum(inside, 1e-12)
        values: Floats = np.where(likely, by_law, evenly)
        return values

    def excess(power: float) -> float:
        return float(placed(power).mean()) - buckets.mean

    if excess(-3.0) <= 0.0 or excess(3.0) >= 0.0:
        return placed(0.0)
    return placed(float(optimize.brentq(excess, -3.0, 3.0, xtol=1e-4)))


def distribution_text(one: Distribution) -> str:
    """Writes a distribution as the flags of the load test take it."""
    mean = f"{one.a:.0f}" if one.a >= 100 else f"{one.a:.1f}".removesuffix(".0")
    match one.kind:
        case "fixed":
            return f"{max(round(one.a), 1)}"
        case "uniform":
            return f"{one.a:.0f}-{one.b:.0f}"
        case "exp":
            return f"exp:{mean}"
        case "lognormal":
            return f"lognormal:{mean},{one.b:.3f}"


def _candidates(buckets: Buckets, edges: Floats) -> Iterator[tuple[Distribution, int]]:
    """Yields each form at its most likely parameter, and how many parameters the counts chose."""
    mean = buckets.mean
    yield Distribution("fixed", mean), 0
    yield Distribution("exp", mean), 0
    last = float(buckets.lower[np.flatnonzero(buckets.counts)[-1]])
    highest = 2.0 * mean - 1.0
    if mean < highest and last < highest:
        reach = _best(
            buckets, edges, lambda top: _uniform(mean, top), (max(mean, min(last + 1.0, highest)), highest)
        )
        yield _uniform(mean, reach), 1
    low, high = map(math.log, CV_RANGE)
    cv = _best(buckets, edges, lambda at: Distribution("lognormal", mean, math.exp(at)), (low, high))
    yield Distribution("lognormal", mean, math.exp(cv)), 1


def _uniform(mean: float, top: float) -> Distribution:
    whole = float(round(top))
    return Distribution("uniform", max(float(round(2.0 * mean - whole)), 1.0), whole)


def _best(
    buckets: Buckets, edges: Floats, form: Callable[[float], Distribution], ends: tuple[float, float]
) -> float:
    """Returns the most likely parameter between two ends: the best of a grid, then refined around it."""
    grid = np.linspace(*ends, 60)
    misfit = [-_likelihood(buckets, form(float(at)), edges) for at in grid]
    place = int(np.argmin(misfit))
    near = float(grid[max(place - 1, 0)]), float(grid[min(place + 1, len(grid) - 1)])
    found = optimize.minimize_scalar(
        lambda at: -_likelihood(buckets, form(float(at)), edges), bounds=near, method="bounded"
    )
    return float(found.x) if found.fun <= misfit[place] else float(grid[place])


def _likelihood(buckets: Buckets, one: Distribution, edges: Floats) -> float:
    shares = np.diff(_up_to(one, edges), prepend=0.0)
    return float(np.sum(special.xlogy(buckets.counts, np.maximum(shares, _LEAST))))


def _up_to(one: Distribution, edges: Floats) -> Floats:
    """Returns the share of a distribution's values up to each edge; the first edge takes what is below 1."""
    match one.kind:
        case "fixed":
            shares = (edges >= one.a).astype(np.float64)
        case "uniform":
            shares = np.clip((edges - (one.a - 0.5)) / (one.b - one.a + 1.0), 0.0, 1.0)
        case "exp":
            shares = -np.expm1(-edges / one.a)
        case "lognormal":
            variance = math.log1p(one.b**2)
            place = np.log(np.maximum(edges, 1e-9)) - math.log(one.a) + variance / 2
            shares = special.ndtr(place / math.sqrt(variance))
    shares[-1] = 1.0
    return shares


def _reached_at(one: Distribution, share: Floats) -> Floats:
    """Returns the value up to which a share of a distribution's values lies."""
    match one.kind:
        case "fixed":
            return np.full(len(share), one.a)
        case "uniform":
            return one.a - 0.5 + share * (one.b - one.a + 1.0)
        case "exp":
            return -one.a * np.log1p(-np.minimum(share, 1.0 - 1e-12))
        case "lognormal":
            variance = math.log1p(one.b**2)
            place = special.ndtri(np.clip(share, 1e-12, 1.0 - 1e-12))
            values: Floats = one.a * np.exp(math.sqrt(variance) * place - variance / 2)
            return values
