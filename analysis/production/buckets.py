"""Histograms as a server counts them: how many values lie in each bucket, and the sum of all values."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from analysis.statistics.arrays import Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Buckets:
    """Values counted in buckets. The sum, and with it the mean, is exact."""

    upper: Floats
    """Upper bounds, each within its bucket, rising; the last is infinite. Shape (k,)."""
    counts: Floats
    """Values in each bucket. Shape (k,)."""
    total: float
    """Sum of all values."""

    @property
    def n(self) -> float:
        return float(self.counts.sum())

    @property
    def mean(self) -> float:
        return self.total / self.n

    @property
    def lower(self) -> Floats:
        """Lower bounds of the buckets, of which the first is 0. Shape (k,)."""
        return np.concatenate([[0.0], self.upper[:-1]])

    @property
    def cumulative(self) -> Floats:
        """Share of the values up to each bound. Shape (k,)."""
        shares: Floats = np.cumsum(self.counts) / self.n
        return shares

    def above(self, limit: float) -> tuple[float, float, float]:
        """Returns the number of values above a limit, at least, estimated and at most.

        The three differ where the limit is no bound. The estimate spreads the values of a bucket evenly.
        """
        bucket = int(np.searchsorted(self.upper, limit))
        beyond = float(self.counts[bucket + 1 :].sum())
        inside = float(self.counts[bucket])
        low, high = float(self.lower[bucket]), float(self.upper[bucket])
        part = (high - limit) / (high - low) if np.isfinite(high) else 1.0
        return beyond, beyond + part * inside, beyond + (0.0 if part == 0.0 else inside)


def added(parts: Sequence[Buckets]) -> Buckets:
    """Adds histograms up, on the bounds that all of them have. Engines with another longest request have
    other bounds."""
    upper = reduce(np.intersect1d, [one.upper for one in parts])
    counts = np.zeros(len(upper))
    for one in parts:
        cumulative = np.concatenate([[0.0], np.cumsum(one.counts)])
        counts += np.diff(cumulative[np.searchsorted(one.upper, upper) + 1], prepend=0.0)
    return Buckets(upper=upper, counts=counts, total=sum(one.total for one in parts))
