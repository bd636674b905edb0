"""Percentiles, shares and trends of samples that depend on each other, with intervals.

Requests at the same load share the server's batch and queue, so that their latencies depend on each other. An
interval that takes them as independent is too narrow.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, special, stats

from analysis.statistics.arrays import Bools, Floats

MIN_BATCHES, MAX_BATCHES = 8, 20
MIN_STRETCH = 2  # batches
WARM_UP_BATCH = 5  # values of a batch from which the end of a warm-up is found
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


def variance_between(values: Floats, variances: Floats) -> float:
    """Estimates the variance of the true values behind measured ones, each measured with a variance of its
    own.

    Returns 0 where the values differ no more than these variances explain, and for fewer than two values. The
    method is that of R. DerSimonian and N. Laird, "Meta-analysis in clinical trials", Controlled Clinical
    Trials 7 (1986) 177. values, variances: shape (n,) each; variances above 0.
    """
    if len(values) < 2:
        return 0.0
    weight = 1.0 / variances
    off = values - np.average(values, weights=weight)
    excess = float(weight @ off**2) - (len(values) - 1)
    return max(excess, 0.0) / float(weight.sum() - (weight**2).sum() / weight.sum())


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
    p95, 299 for a p99).

    Some values may be known only to be larger than a bound (right-censored values). A percentile that depends
    on such a value is None, and its bound is in the field that ends in `_at_least`.
    """

    p50: float | None = None
    p95: float | None = None
    p99: float | None = None
    p95_interval: tuple[float, float] | None = None
    p50_at_least: float | None = None
    p95_at_least: float | None = None
    """Lower bound of the p95 where it is None: because of censored values, or (95 % sure) where there are too
    few effective samples."""
    p99_at_least: float | None = None


def quantiles(values: Floats, at_unix_s: Floats, window: Window, censored: Bools | None = None) -> Quantiles:
    """Returns percentiles of a dependent sample, without its nan values, and a 90 % interval of the p95.

    The interval is Woodruff's. First, the standard error of the share of values above the p95 is estimated by
    batch means. The ends of the interval are then the quantiles at 95 % minus and plus t times this error.
    The interval is None where the upper end would be at or above 100 %, or depends on a censored value.

    censored: True where the true value is larger than the one given, shape (n,); None: nowhere.
    """
    known = ~np.isnan(values)
    at, sample = at_unix_s[known], _Sorted.of(values, censored)
    if len(sample.values) < 2:
        return Quantiles()
    p50, p95, p99 = (sample.quantile(share) for share in (0.5, 0.95, 0.99))
    effect = design_effect((values[known] > p95.value).astype(np.float64), at, window)
    effective = len(sample.values) / effect
    if effective < EFFECTIVE_FOR_P95:
        low = sample.quantile(1.0 - _proving_share(effective)).value
        return Quantiles(p50=p50.known, p50_at_least=p50.bound, p95_at_least=low)
    enough = effective >= EFFECTIVE_FOR_P99
    return Quantiles(
        p50=p50.known,
        p95=p95.known,
        p99=p99.known if enough else None,
        p95_interval=_woodruff(sample, effective, window.batches),
        p50_at_least=p50.bound,
        p95_at_least=p95.bound,
        p99_at_least=p99.bound if enough else None,
    )


def plain_quantiles(values: Floats, censored: Bools | None = None) -> Quantiles:
    """Returns p50, p95 and p99 of values that stand for nothing but themselves, without nan.

    There is no interval, and no smallest sample size. censored: as for `quantiles`.
    """
    sample = _Sorted.of(values, censored)
    if not len(sample.values):
        return Quantiles()
    p50, p95, p99 = (sample.quantile(share) for share in (0.5, 0.95, 0.99))
    return Quantiles(
        p50=p50.known,
        p95=p95.known,
        p99=p99.known,
        p50_at_least=p50.bound,
        p95_at_least=p95.bound,
        p99_at_least=p99.bound,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Quantile:
    """One quantile, or a lower bound of it."""

    value: float
    at_least: bool

    @property
    def known(self) -> float | None:
        return None if self.at_least else self.value

    @property
    def bound(self) -> float | None:
        return self.value if self.at_least else None


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Sorted:
    """Values in rising order. Censored values, which are lower bounds, follow equal known values."""

    values: Floats
    censored: Bools

    @classmethod
    def of(cls, values: Floats, censored: Bools | None) -> "_Sorted":
        known = ~np.isnan(values)
        values = values[known]
        flags = np.zeros(len(values), dtype=np.bool_) if censored is None else censored[known]
        order = np.lexsort((flags, values))
        return cls(values=values[order], censored=flags[order])

    def quantile(self, share: float) -> _Quantile:
        """Returns the quantile, interpolated between the two nearest values. It is only a lower bound if one
        of these two, or a smaller one, is censored."""
        needed = math.ceil(share * (len(self.values) - 1)) + 1
        return _Quantile(
            value=float(np.quantile(self.values, share)), at_least=bool(self.censored[:needed].any())
        )


def _proving_share(effective: float) -> float:
    """Returns the smallest share of values above a threshold that proves (95 % sure) that the p95 is above
    it too."""

    def doubt(share: float) -> float:  # P(Binomial(effective, 5 %) >= share * effective)
        above = share * effective
        return float(special.betainc(max(above, 1e-9), effective - above + 1.0, 0.05))

    return float(optimize.brentq(lambda share: doubt(share) - 0.05, 0.05, 1.0)) if doubt(1.0) < 0.05 else 1.0


def _woodruff(sample: _Sorted, effective: float, batches: int) -> tuple[float, float] | None:
    reach = student(batches) * math.sqrt(0.95 * 0.05 / effective)
    if 0.95 + reach >= 1.0:
        return None
    low, high = sample.quantile(0.95 - reach), sample.quantile(0.95 + reach)
    return None if high.at_least else (low.value, high.value)


@dataclass(frozen=True, kw_only=True, slots=True)
class MissShare:
    """Number of misses among n requests or scrapes, with their design effect. The design effect is the factor
    by which dependence reduces the effective sample size."""

    misses: int
    n: int
    effect: float = 1.0
    tail_effect: float | None = None
    """Where none missed: the design effect of the share of values above their own p95, as a guess at that of
    misses."""

    @property
    def fraction(self) -> float:
        return self.misses / self.n if self.n else math.nan

    @property
    def effective(self) -> float:
        return self.n / self.effect

    def bounds(self, error: float) -> tuple[float, float]:
        """Returns the lower and the upper bound of the true share, each wrong with probability `error`.

        The bounds are those of C. Clopper and E. Pearson, "The use of confidence or fiducial limits", 1934,
        at the effective sample size (by `tail_effect`, if there is one). Without requests they are 0 and 1.
        """
        if not self.n:
            return 0.0, 1.0
        return share_bounds(self.fraction, self.n / (self.tail_effect or self.effect), error)


def share_bounds(fraction: float, effective: float, error: float) -> tuple[float, float]:
    """Returns bounds of a share that was seen in so many independent trials, each wrong with probability
    `error`. The number of trials need not be whole."""
    hits = fraction * effective
    misses = effective - hits
    low = float(special.betaincinv(hits, misses + 1.0, error)) if hits > 0.0 else 0.0
    high = float(special.betaincinv(hits + 1.0, misses, 1.0 - error)) if misses > 0.0 else 1.0
    return low, high


def in_time(misses: MissShare) -> tuple[float, float, float] | None:
    """Returns the share of requests that did not miss, and the ends of its 90 % interval; None without
    requests."""
    if not misses.n:
        return None
    low, high = misses.bounds(0.05)
    return 1.0 - misses.fraction, 1.0 - high, 1.0 - low


def miss_share(misses: Bools, values: Floats, at_unix_s: Floats, window: Window) -> MissShare:
    """Counts misses and estimates their design effect.

    The design effect is the number of requests divided by the effective number of independent requests. If
    none or all requests missed, it is estimated from `values` (without nan) instead of from the misses.

    misses, values, at_unix_s: shape (n,).
    """
    count = int(misses.sum())
    if 0 < count < len(misses):
        effect = design_effect(misses.astype(np.float64), at_unix_s, window)
        return MissShare(misses=count, n=len(misses), effect=effect)
    known = ~np.isnan(values)
    sample, at = values[known], at_unix_s[known]
    tail = None
    if not count and len(sample) > 1:
        tail = design_effect((sample > np.quantile(sample, 0.95)).astype(np.float64), at, window)
    return MissShare(misses=count, n=len(misses), effect=design_effect(sample, at, window), tail_effect=tail)


def trend(values: Floats, at_unix_s: Floats, window: Window) -> tuple[float, float]:
    """Returns two figures: the relative change of a series over the window, and the p value of its slope.

    The slope is fitted to batch means and tested against 0 (t test). With fewer than four batches that hold a
    value, the figures are 0 and 1.
    """
    position, means = _batch_means(values, at_unix_s, window)
    if len(means) < 4:
        return 0.0, 1.0
    fit = stats.linregress(position, means)
    level = abs(float(means.mean()))
    return (float(fit.slope) / level if level else 0.0), float(fit.pvalue)


def warm_up_end(values: Floats) -> int:
    """Returns how many values at the begin of a series belong to its warm-up.

    They are those without which the standard error of the mean is least, among at most half of the series,
    in batches of five (MSER-5; White, Cobb and Spratt 2000). values: in the order of time, shape (n,).
    """
    batches = len(values) // WARM_UP_BATCH
    if batches < 4:
        return 0
    means = values[: batches * WARM_UP_BATCH].reshape(batches, WARM_UP_BATCH).mean(axis=1)
    left = np.arange(batches, 0, -1, dtype=np.float64)
    total, squares = np.cumsum(means[::-1])[::-1], np.cumsum(means[::-1] ** 2)[::-1]
    error = (squares - total**2 / left) / left**2
    return WARM_UP_BATCH * int(np.argmin(error[: batches // 2]))


@dataclass(frozen=True, kw_only=True, slots=True)
class Stretch:
    """A stretch of a window in which a series differs from the rest of it."""

    begin: float
    """Position in the window, 0 to 1, and next the end."""
    end: float
    change: float
    """By how much the mean differs from that of the rest, as a share of the latter."""
    p: float


def clearest_stretch(values: Floats, at_unix_s: Floats, window: Window) -> Stretch | None:
    """Returns that stretch of the window in which a series differs most clearly from the rest.

    Every stretch of two batches or more that leaves two or more is tried: a t test of the batch means inside
    and outside, with one variance. The p value is multiplied by the number of stretches (Bonferroni). None
    with fewer than six batches that hold a value.
    """
    position, means = _batch_means(values, at_unix_s, window)
    count = len(means)
    if count < 6:
        return None
    total = np.concatenate([[0.0], np.cumsum(means)])
    begin, end = np.triu_indices(count + 1, k=MIN_STRETCH)
    kept = end - begin <= count - MIN_STRETCH
    begin, end = begin[kept], end[kept]
    inside, outside = end - begin, count - (end - begin)
    mean_in = (total[end] - total[begin]) / inside
    mean_out = (total[-1] - total[end] + total[begin]) / outside
    scatter = np.maximum(float(means @ means) - inside * mean_in**2 - outside * mean_out**2, 0.0)
    error = np.sqrt(scatter / (count - 2) * (1.0 / inside + 1.0 / outside))
    t = np.abs(mean_in - mean_out) / np.maximum(error, 1e-12)
    most = int(np.argmax(t))
    rest = abs(float(mean_out[most]))
    half = 0.5 / window.batches
    return Stretch(
        begin=float(position[begin[most]]) - half,
        end=float(position[end[most] - 1]) + half,
        change=float(mean_in[most] - mean_out[most]) / rest if rest else 0.0,
        p=min(2.0 * float(stats.t.sf(t[most], count - 2)) * len(t), 1.0),
    )


def _batch_means(values: Floats, at_unix_s: Floats, window: Window) -> tuple[Floats, Floats]:
    """Returns the position in the window, 0 to 1, and the mean of each batch that holds a value."""
    batch = window.batch_of(at_unix_s)
    count = np.bincount(batch, minlength=window.batches)
    filled = count > 0
    means = np.bincount(batch, weights=values, minlength=window.batches)[filled] / count[filled]
    return (np.flatnonzero(filled) + 0.5) / window.batches, means
