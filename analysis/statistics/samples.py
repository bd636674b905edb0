"""Intervals for dependent samples. Requests of one level share the batch and the queue: a naive 95 % interval
covers the truth 14 to 61 % of the time near the knee."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from analysis.statistics.arrays import Bools, Floats

BATCHES = (8, 20)
BATCH_LIFETIMES = 5.0
EFFECTIVE_FOR_P95 = 59
EFFECTIVE_FOR_P99 = 299


@dataclass(frozen=True, kw_only=True, slots=True)
class Window:
    """A level's window and how long its requests live, which is what dependence is measured in."""

    begin_unix_s: float
    end_unix_s: float
    request_duration_s: float

    @property
    def length_s(self) -> float:
        return self.end_unix_s - self.begin_unix_s

    @property
    def batches(self) -> int:
        """Batches of five lifetimes, at least 8 and at most 20; `short_batches` corrects short ones."""
        wanted = int(self.length_s / max(BATCH_LIFETIMES * self.request_duration_s, 1e-9))
        return min(max(wanted, BATCHES[0]), BATCHES[1])

    @property
    def short_batches(self) -> float:
        """Factor on a variance from batch means whose batches are only a few correlation times long.

        For an autoregressive series of correlation time tau (here one lifetime), batches of length T miss the
        share (1 - exp(-T/tau)) tau/T of the variance of the mean.
        """
        lives = self.length_s / self.batches / max(self.request_duration_s, 1e-9)
        return 1.0 / max(1.0 - (1.0 - math.exp(-lives)) / lives, 0.05)

    def batch_of(self, at_unix_s: Floats) -> NDArray[np.int64]:
        """Batch of each instant, shape as given, 0 to batches - 1."""
        place = (at_unix_s - self.begin_unix_s) / self.length_s * self.batches
        return np.clip(place.astype(np.int64), 0, self.batches - 1)


def finite_or_none(value: float) -> float | None:
    """For answers: what is not known, or without bound, is null."""
    return value if math.isfinite(value) else None


def student(batches: int, *, one_sided: float = 0.95) -> float:
    """Quantile of Student's t with batches - 1 degrees of freedom: what replaces 1.645."""
    return float(stats.t.ppf(one_sided, batches - 1))


def variance_of_mean(values: Floats, at_unix_s: Floats, window: Window) -> float:
    """Variance of the mean of a dependent series, by batch means as a ratio estimate. values: shape (n,)."""
    batch = window.batch_of(at_unix_s)
    count = np.bincount(batch, minlength=window.batches)
    total = np.bincount(batch, weights=values, minlength=window.batches)
    spread = float(np.sum((total - values.mean() * count) ** 2)) / len(values) ** 2
    return spread * window.batches / (window.batches - 1) * window.short_batches


def design_effect(values: Floats, at_unix_s: Floats, window: Window) -> float:
    """How many dependent samples are worth one independent one, at least 1. values: shape (n,)."""
    if len(values) < 2:
        return 1.0
    independent = float(np.var(values)) / len(values)
    if independent <= 0.0:
        return 1.0
    return max(variance_of_mean(values, at_unix_s, window) / independent, 1.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class Quantiles:
    """Null means too few effective samples: about 59 for a p95, 299 for a p99."""

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    p95_interval: tuple[float, float] | None = None


def quantiles(values: Floats, at_unix_s: Floats, window: Window) -> Quantiles:
    """Percentiles of a dependent sample, nan left out; the interval of p95 covers 90 %.

    Woodruff's interval: the share above the p95 gets a standard error by batch means, and the order
    statistics at 95 % minus and plus t times that error are the ends.
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
class Share:
    """Misses among requests of one level, with what dependence leaves of the sample size."""

    misses: int
    n: int
    effect: float = 1.0

    @property
    def fraction(self) -> float:
        return self.misses / self.n if self.n else math.nan

    @property
    def effective(self) -> float:
        return self.n / self.effect


def share(misses: Bools, values: Floats, at_unix_s: Floats, window: Window) -> Share:
    """Share of misses; where none (or all) missed, the dependence is that of the values behind them.

    misses, values, at_unix_s: shape (n,). nan values count in the share and not in the dependence.
    """
    count = int(misses.sum())
    if 0 < count < len(misses):
        effect = design_effect(misses.astype(np.float64), at_unix_s, window)
    else:
        known = ~np.isnan(values)
        effect = design_effect(values[known], at_unix_s[known], window)
    return Share(misses=count, n=len(misses), effect=effect)


def trend(values: Floats, at_unix_s: Floats, window: Window) -> tuple[float, float]:
    """Relative change over the window of a series' batch means, and the p value of that slope (t test)."""
    batch = window.batch_of(at_unix_s)
    count = np.bincount(batch, minlength=window.batches)
    filled = count > 0
    if filled.sum() < 4:
        return 0.0, 1.0
    means = np.bincount(batch, weights=values, minlength=window.batches)[filled] / count[filled]
    place = (np.flatnonzero(filled) + 0.5) / window.batches
    fit = stats.linregress(place, means)
    level = abs(float(means.mean()))
    return (float(fit.slope) / level if level else 0.0), float(fit.pvalue)
