"""Percentiles, shares and trends of samples that depend on each other, with intervals.

Requests of one level share the batch and the queue. An interval that takes them as independent is too narrow.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.statistics.arrays import Bools, Floats

MIN_BATCHES, MAX_BATCHES = 8, 20
BATCH_DURATIONS = 5.0
EFFECTIVE_FOR_P95 = 59
EFFECTIVE_FOR_P99 = 299


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A stretch of time. The mean duration of its requests tells how long values depend on each other."""

    begin_unix_s: float
    end_unix_s: float
    request_duration_s: float

    @property
    def length_s(self) -> float:
        """Seconds from begin to end."""
        return self.end_unix_s - self.begin_unix_s

    @property
    def batches(self) -> int:
        """Number of batches, 8 to 20, of about five request durations. `short_batches` corrects shorter
        ones."""
        wanted = int(self.length_s / max(BATCH_DURATIONS * self.request_duration_s, 1e-9))
        return min(max(wanted, MIN_BATCHES), MAX_BATCHES)

    @property
    def short_batches(self) -> float:
        """Factor that corrects a variance from batch means for batches of only a few correlation times.

        In an autoregressive series with correlation time tau (here one request duration), batches of length T
        miss a share (1 - exp(-T/tau)) tau/T of the variance of the mean.
        """
        durations = self.length_s / self.batches / max(self.request_duration_s, 1e-9)
        return 1.0 / max(1.0 - (1.0 - math.exp(-durations)) / durations, 0.05)

    def batch_of(self, at_unix_s: Floats) -> NDArray[np.int64]:
        """Returns the number of each instant's batch, from 0 to batches - 1. Shape as given."""
        position = (at_unix_s - self.begin_unix_s) / self.length_s * self.batches
        return np.clip(position.astype(np.int64), 0, self.batches - 1)


def finite_or_none(value: float) -> float | None:
    """Returns the value; None where it is nan or infinite."""
    return value if math.isfinite(value) else None


def student(batches: int, *, one_sided: float = 0.95) -> float:
    """Returns the `one_sided` quantile of Student's t with batches - 1 degrees of freedom."""
    return float(stats.t.ppf(one_sided, batches - 1))


def variance_of_mean(values: Floats, at_unix_s: Floats, window: Window) -> float:
    """Estimates the variance of the mean of a dependent series, by batch means. values: shape (n,)."""
    batch = window.batch_of(at_unix_s)
    count = np.bincount(batch, minlength=window.batches)
    total = np.bincount(batch, weights=values, minlength=window.batches)
    spread = float(np.sum((total - values.mean() * count) ** 2)) / len(values) ** 2
    return spread * window.batches / (window.batches - 1) * window.short_batches


def design_effect(values: Floats, at_unix_s: Floats, window: Window) -> float:
    """Returns (variance of the mean) / (that of independent samples), at least 1. values: shape (n,)."""
    if len(values) < 2:
        return 1.0
    independent = float(np.var(values)) / len(values)
    if independent <= 0.0:
        return 1.0
    return max(variance_of_mean(values, at_unix_s, window) / independent, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantiles:
    """Percentiles of a sample; None with too few effective samples (about 59 for a p95, 299 for a p99)."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    p95_interval: tuple[float, float] | None = None


def quantiles(values: Floats, at_unix_s: Floats, window: Window) -> Quantiles:
    """Returns percentiles of a dependent sample, nan left out; the interval of the p95 covers 90 %.

    This is Woodruff's interval. The share above the p95 gets a standard error by batch means. The ends are
    the order statistics at 95 % minus and plus t times that error. The interval is None where the upper end
    would be above 100 %.
    """
    known = ~np.isnan(values)
    sample, at = values[known], at_unix_s[known]
    if len(sample) < 2:
        return Quantiles()
    p50, p95, p99 = (float(q) for q in np.quantile(sample, [0.5, 0.95, 0.99]))
    effect = design_effect((sample > p95).astype(np.float64), at, window)
    effective = len(sample) / effect
    if effective < EFFECTIVE_FOR_P95:
        return Quantiles(p50=p50)
    return Quantiles(
        p50=p50,
        p95=p95,
        p99=p99 if effective >= EFFECTIVE_FOR_P99 else None,
        p95_interval=_woodruff(sample, effective, window.batches),
    )


def _woodruff(sample: Floats, effective: float, batches: int) -> tuple[float, float] | None:
    reach = student(batches) * math.sqrt(0.95 * 0.05 / effective)
    if 0.95 + reach >= 1.0:
        return None
    low, high = np.quantile(sample, [0.95 - reach, 0.95 + reach])
    return float(low), float(high)


@dataclass(frozen=True, kw_only=True, slots=True)
class MissShare:
    """Misses among requests or scrapes, and how much their dependence reduces the effective sample size."""

    misses: int
    n: int
    effect: float = 1.0

    @property
    def fraction(self) -> float:
        return self.misses / self.n if self.n else math.nan

    @property
    def effective(self) -> float:
        return self.n / self.effect


def miss_share(misses: Bools, values: Floats, at_unix_s: Floats, window: Window) -> MissShare:
    """Counts misses with their design effect. If none or all missed, it is the design effect of `values`.

    misses, values, at_unix_s: shape (n,). Where a value is nan, the request counts as usual but does not
    enter that design effect.
    """
    count = int(misses.sum())
    if 0 < count < len(misses):
        effect = design_effect(misses.astype(np.float64), at_unix_s, window)
    else:
        known = ~np.isnan(values)
        effect = design_effect(values[known], at_unix_s[known], window)
    return MissShare(misses=count, n=len(misses), effect=effect)


def trend(values: Floats, at_unix_s: Floats, window: Window) -> tuple[float, float]:
    """Returns the relative change of a series over the window, and the p value of its slope (t test)."""
    batch = window.batch_of(at_unix_s)
    count = np.bincount(batch, minlength=window.batches)
    filled = count > 0
    if filled.sum() < 4:
        return 0.0, 1.0
    means = np.bincount(batch, weights=values, minlength=window.batches)[filled] / count[filled]
    position = (np.flatnonzero(filled) + 0.5) / window.batches
    fit = stats.linregress(position, means)
    level = abs(float(means.mean()))
    return (float(fit.slope) / level if level else 0.0), float(fit.pvalue)
