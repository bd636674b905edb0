"""Bounds on ratios of what independent runs measured. Samples of one run may depend on each other."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from analysis.statistics.arrays import Floats
from analysis.statistics.samples import EFFECTIVE_FOR_P95, Window, design_effect, variance_between

Bounds = Callable[[float], tuple[float, float]]
"""Maps a one-sided error probability to (lower, upper) bounds."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Quantity:
    """A positive figure with its bounds. An exact figure has itself as both bounds."""

    value: float
    bounds: Bounds


def exact_quantity(value: float) -> Quantity:
    """Returns a figure that is known without error: both bounds are the value itself."""
    return Quantity(value=value, bounds=lambda _: (value, value))


def batch_mean(value: float, *, se: float, freedom: float) -> Quantity:
    """Returns the mean of batches with bounds by Student's t; the lower bound is at least 0.

    se: standard error of the mean. freedom: its degrees of freedom.
    """

    def bounds(error: float) -> tuple[float, float]:
        reach = float(stats.t.isf(error, freedom)) * se
        return max(value - reach, 0.0), value + reach

    return Quantity(value=value, bounds=bounds)


def ratio_bounds(a: Quantity, b: Quantity) -> Bounds:
    """Returns bounds on b / a, computed from the bounds on a and on b.

    Asymmetric bounds, such as those of a capacity, give asymmetric bounds on the ratio. An open bound gives
    an open bound. The method is variance estimates recovery, in logarithms: G. Zou and A. Donner,
    "Construction of confidence limits about effect measures", Statistics in Medicine 27 (2008) 1693.
    """

    def bounds(error: float) -> tuple[float, float]:
        (a_below, a_above), (b_below, b_above) = _reach(a, error), _reach(b, error)
        middle = math.log(b.value / a.value)
        up = middle + math.hypot(b_above, a_below)
        return math.exp(middle - math.hypot(b_below, a_above)), math.exp(up) if math.isfinite(
            up
        ) else math.inf

    return bounds


def mean_ratio_bounds(ratios: Sequence[float], bounds: Sequence[Bounds]) -> Bounds:
    """Returns bounds on the geometric mean of ratios that were measured apart, each with bounds of its own.

    The distances from each ratio to its bound, in logarithms, are added as squares (the method of
    `ratio_bounds`). If one bound is open, that of the mean is open too.
    """

    def mean_bounds(error: float) -> tuple[float, float]:
        ends = [one(error) for one in bounds]
        middle = [math.log(ratio) for ratio in ratios]
        below = [max(at - _log(low), 0.0) for at, (low, _) in zip(middle, ends, strict=True)]
        above = [max(_log(high) - at, 0.0) for at, (_, high) in zip(middle, ends, strict=True)]
        mean, up = sum(middle) / len(middle), math.hypot(*above) / len(middle)
        low = math.exp(mean - math.hypot(*below) / len(middle))
        return low, math.exp(mean + up) if math.isfinite(up) else math.inf

    return mean_bounds


def _log(value: float) -> float:
    """Returns the logarithm of a value that may be 0 or infinite."""
    if value <= 0.0:
        return -math.inf
    return math.log(value) if math.isfinite(value) else math.inf


def _reach(quantity: Quantity, error: float) -> tuple[float, float]:
    """Returns two distances in logarithms: ln(value / lower bound) and ln(upper bound / value). Each is at
    least 0, and infinite where the bound is open."""
    low, high = quantity.bounds(error)
    below = math.log(quantity.value / low) if low > 0 else math.inf
    return max(below, 0.0), max(math.log(high / quantity.value), 0.0) if math.isfinite(high) else math.inf


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Series:
    """Values measured in one level of a run, in the order of time, and their times; shape (n,) each."""

    run: str
    values: Floats
    at_unix_s: Floats
    window: Window


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """Values that were measured at one number of users, with one series for each level at that number, of
    one run or of several."""

    series: Sequence[Series]

    @property
    def values(self) -> Floats:
        """Values of all series, shape (n,)."""
        return np.concatenate([one.values for one in self.series])

    def effective(self, threshold: float) -> Floats:
        """Returns the effective sizes of the series for the share of values above `threshold`, shape (k,).

        So many independent values would show the share of a series as precisely as its values, which are
        correlated in time.
        """
        return np.array(
            [
                len(one.values)
                / design_effect((one.values > threshold).astype(np.float64), one.at_unix_s, one.window)
                for one in self.series
            ]
        )

    def precision(self, threshold: float) -> tuple[float, float]:
        """Returns the effective size of all series together for the share of values above `threshold`, and
        the degrees of freedom of the variance that this size stands for.

        The size is smaller where the shares of several runs differ by more than their own errors explain.
        """
        effective = self.effective(threshold)
        freedom = float(sum(one.window.batches - 1 for one in self.series))
        shares = np.array([(one.values > threshold).mean() for one in self.series])
        sizes = np.array([len(one.values) for one in self.series], dtype=np.float64)
        share = float(np.average(shares, weights=sizes))
        alone = share * (1.0 - share)
        if alone == 0.0:
            return float(effective.sum()), freedom
        runs = [one.run for one in self.series]
        between = variance_of_runs(runs, shares, variances=alone / effective, sizes=sizes)
        within = alone / float(effective.sum())
        return alone / (within + between[0]), joint_freedom((within, freedom), between)


def variance_of_runs(
    runs: Sequence[str], values: Floats, *, variances: Floats, sizes: Floats
) -> tuple[float, float]:
    """Returns the part of a mean's variance that comes from differences between runs, 0 for one run, and its
    degrees of freedom.

    The mean is that of `values`, weighted by `sizes`. runs: the run in which each value was measured. values,
    variances, sizes: shape (n,) each; variances above 0.
    """
    of_run = [np.array(runs) == run for run in sorted(set(runs))]
    weights = [sizes * own / sizes[own].sum() for own in of_run]
    true = variance_between(
        np.array([weight @ values for weight in weights]),
        np.array([weight**2 @ variances for weight in weights]),
    )
    part = true * float(sum((sizes[own].sum() / sizes.sum()) ** 2 for own in of_run))
    return part, len(of_run) - 1.0


def joint_freedom(*parts: tuple[float, float]) -> float:
    """Returns the degrees of freedom of a sum of independent variances, each given with its own.

    A variance of 0 has no part in it. The approximation is that of F. E. Satterthwaite, "An approximate
    distribution of estimates of variance components", Biometrics Bulletin 2 (1946) 110.
    """
    known = [(variance, freedom) for variance, freedom in parts if variance > 0.0]
    total = sum(variance for variance, _ in known)
    return total**2 / sum(variance**2 / freedom for variance, freedom in known)


def quantile(sample: Sample, share: float) -> Quantity | None:
    """Returns the quantile at `share` with Woodruff's interval, open where the runs of the sample differ too
    much to bound it. Returns None where there are too few
    effective samples or the quantile is not positive."""
    tail = 1.0 - share
    values = sample.values
    if len(values) < 2:
        return None
    value = float(np.quantile(values, share))
    if sample.effective(value).sum() < _fewest(share) or value <= 0.0:
        return None
    effective, freedom = sample.precision(value)

    def bounds(error: float) -> tuple[float, float]:
        reach = float(stats.t.isf(error, freedom)) * math.sqrt(share * tail / effective)
        low = float(np.quantile(values, share - reach)) if reach < share else 0.0
        return low, float(np.quantile(values, share + reach)) if reach < tail else math.inf

    return Quantity(value=value, bounds=bounds)


def _fewest(share: float) -> float:
    """Returns the smallest effective sample size for which a quantile is reported. About three of the values
    then lie beyond the quantile (a size of 59 for a p95)."""
    return EFFECTIVE_FOR_P95 * 0.05 / min(share, 1.0 - share)


def quantile_ratio_bounds(a: Sample, b: Sample, share: float) -> Bounds:
    """Returns bounds on the ratio r of two quantiles, b's quantile divided by a's quantile.

    share: 0.95 for a p95, for example. If r is the true ratio, 5 % of b's values then lie above r times a's
    p95. Each r is tested: if significantly more than 5 % lie above, r is too small. The lower
    bound is the smallest r that passes. The upper bound is found in the same way with a and b exchanged. The
    test is Student's t, with batch-means variances of both samples, and with the variance between runs where
    a sample is of several.
    """

    def bounds(error: float) -> tuple[float, float]:
        inverse = _least_ratio(b, a, share, error)
        return _least_ratio(a, b, share, error), 1.0 / inverse if inverse > 0.0 else math.inf

    return bounds


def _least_ratio(a: Sample, b: Sample, share: float, error: float) -> float:
    """Returns the smallest ratio that the samples do not contradict; 0 if the samples are too small to
    contradict any ratio."""
    tail = 1.0 - share
    at_a, at_b = float(np.quantile(a.values, share)), float(np.quantile(b.values, share))
    effective_a, freedom_a = a.precision(at_a)
    effective_b, freedom_b = b.precision(at_b)
    own = tail * share / effective_a

    def proves(seen: float) -> bool:
        other = seen * (1.0 - seen) / effective_b
        freedom = joint_freedom((own, freedom_a), (other, freedom_b))
        return seen - tail > float(stats.t.isf(error, freedom)) * math.sqrt(own + other)

    if not proves(1.0):
        return 0.0
    low, high = tail, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if proves(middle) else (middle, high)
    return float(np.quantile(b.values, 1.0 - high)) / at_a
