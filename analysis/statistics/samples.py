"""Percentiles, shares and trends of samples that depend on each other, with intervals.

Requests at the same load share the server's batch and queue, so that their latencies depend on each other. An
interval that takes them as independent is too narrow.
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
    """A stretch of time. Two values measured in it are taken to be correlated if they lie less than about one
    mean request duration apart."""

    begin_unix_s: float
    end_unix_s: float
    request_duration_s: float

    @property
    def length_s(self) -> float:
        """Seconds from begin to end."""
        return self.end_unix_s - self.begin_unix_s

    @property
    def batches(self) -> int:
        """Number of batches into which the window is divided, 8 to 20. In a long enough window each batch
        lasts at least five request durations; `short_batches` corrects for shorter batches."""
        wanted = int(self.length_s / max(BATCH_DURATIONS * self.request_duration_s, 1e-9))
        return min(max(wanted, MIN_BATCHES), MAX_BATCHES)

    @property
    def short_batches(self) -> float:
        """Factor that multiplies a variance from batch means, because short batches underestimate the
        variance.

        Values are taken as an autoregressive series with correlation time tau, here one request duration.
        Batches of length T then miss a share (1 - exp(-T/tau)) tau/T of the variance of the mean.
        """
        durations = self.length_s / self.batches / max(self.request_duration_s, 1e-9)
        return 1.0 / max(1.0 - (1.0 - math.exp(-durations)) / durations, 0.05)

    def batch_of(self, at_unix_s: Floats) -> NDArray[np.int64]:
        """Returns for each instant the number of its batch, from 0 to batches - 1. The shape is that of the
        input."""
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
    """Returns the variance of the mean divided by the variance that independent samples would give; at least
    1.

    values: shape (n,).
    """
    if len(values) < 2:
        return 1.0
    independent = float(np.var(values)) / len(values)
    if independent <= 0.0:
        return 1.0
    return max(variance_of_mean(values, at_unix_s, window) / independent, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantiles:
    """Percentiles of a sample. A p95 or p99 is None where there are too few effective samples (about 59 for a
    p95, 299 for a p99)."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    p95_interval: tuple[float, float] | None = None


def quantiles(values: Floats, at_unix_s: Floats, window: Window) -> Quantiles:
    """Returns percentiles of a dependent sample, without its nan values, and a 90 % interval of the p95.

    The interval is Woodruff's. First, the standard error of the share of values above the p95 is estimated by
    batch means. The ends of the interval are then the quantiles at 95 % minus and plus t times this error.
    The interval is None where the upper end would be at or above 100 %.
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
    """Number of misses among n requests or scrapes, with their design effect. The design effect is the factor
    by which dependence reduces the effective sample size."""

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
    """Counts misses and estimates their design effect.

    The design effect is the number of requests divided by the effective number of independent requests. If
    none or all requests missed, it is estimated from `values` (without nan) instead of from the misses.

    misses, values, at_unix_s: shape (n,).
    """
    count = int(misses.sum())
    if 0 < count < len(misses):
        effect = design_effect(misses.astype(np.float64), at_unix_s, window)
    else:
        known = ~np.isnan(values)
        effect = design_effect(values[known], at_unix_s[known], window)
    return MissShare(misses=count, n=len(misses), effect=effect)


def trend(values: Floats, at_unix_s: Floats, window: Window) -> tuple[float, float]:
    """Returns two figures: the relative change of a series over the window, and the p value of its slope.

    The slope is fitted to batch means and tested against 0 (t test). With fewer than four batches that hold a
    value, the figures are 0 and 1.
    """
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
