"""Counts of a server at levels beside its memory wall, and the wall that follows from two of them."""

import math
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from analysis.reading.runs import Run
from analysis.statistics.arrays import Floats
from loadtest.record import Slo

LIMITS = Slo(ttft_p95_s=60, tpot_p95_s=5)
"""Latency objectives so loose that memory is the wall."""
BATCH_S = 5.0
"""Seconds of a batch: ten request durations or more, so that batches are nearly independent."""
_RESAMPLES = 2000
Json = dict[str, Any]


@dataclass(frozen=True, kw_only=True, eq=False)
class Counts:
    """Counts of one level, each of shape (k,) for k batches of BATCH_S."""

    preempted: Floats
    """Number of preemptions."""
    finished: Floats
    """Number of requests that ended."""
    blocked: Floats
    """Number of scrapes with at least one waiting request."""
    scrapes: Floats
    """Number of scrapes."""
    held: Floats
    """Number of requests in the engine, running or waiting, summed over the scrapes."""

    @classmethod
    def of(cls, run: Run, begin_unix_s: float, end_unix_s: float) -> "Counts":
        """Counts from the server's counters and gauges; finished requests are counted from the client's rows.

        Raises RuntimeError if a request failed.
        """
        if not run.requests.ok.all():
            raise RuntimeError(f"Requests of {run.info.run_id} failed: that is no truth about memory.")
        count = int((end_unix_s - begin_unix_s) / BATCH_S)
        edges = begin_unix_s + BATCH_S * np.arange(count + 1)
        server = run.server
        known = ~np.isnan(server.preemptions_total)
        at = server.unix_s[known]
        waited = server.waiting[known] > 0
        return cls(
            preempted=np.diff(np.interp(edges, at, server.preemptions_total[known])),
            finished=np.histogram(run.requests.end_unix_s, edges)[0].astype(np.float64),
            blocked=np.histogram(at[waited], edges)[0].astype(np.float64),
            scrapes=np.histogram(at, edges)[0].astype(np.float64),
            held=np.histogram(at, edges, weights=(server.running + server.waiting)[known])[0],
        )

    def with_more(self, other: "Counts") -> "Counts":
        pairs = {
            field.name: (getattr(self, field.name), getattr(other, field.name)) for field in fields(self)
        }
        return Counts(**{name: np.concatenate(pair) for name, pair in pairs.items()})

    @property
    def holds(self) -> bool:
        """Whether the level keeps both limits."""
        return bool((self.margins() <= 0).all())

    def margins(self, weight: Floats | None = None) -> Floats:
        """Returns ln(F / limit) and logit(blocked) - logit(limit), shape (..., 2), positive if broken.

        `weight`: how often each batch counts, shape (..., k); None: once. A count of 0 is taken as 0.5.
        """
        weight = np.ones(len(self.finished)) if weight is None else weight
        columns = self.preempted, self.finished, self.blocked, self.scrapes
        preempted, finished, blocked, scrapes = (weight @ column for column in columns)
        share = np.clip(blocked, 0.5, scrapes - 0.5) / scrapes
        return np.stack(
            [
                np.log(np.maximum(preempted, 0.5) / finished / LIMITS.preempted_fraction),
                np.log(share / (1 - share))
                - math.log(LIMITS.kv_blocked_fraction / (1 - LIMITS.kv_blocked_fraction)),
            ],
            axis=-1,
        )

    def resampled_margins(self, rng: np.random.Generator) -> Floats:
        """Returns the margins of _RESAMPLES resamples of the batches, shape (_RESAMPLES, 2)."""
        k = len(self.finished)
        return self.margins(rng.multinomial(k, np.full(k, 1 / k), _RESAMPLES).astype(np.float64))

    def told(self, users: int) -> Json:
        """Builds the level's entry in the data file: both shares with standard errors from the batches."""
        k = len(self.finished)
        found: Json = {"users": users, "requests": int(self.finished.sum()), "batches": k}
        found["in_engine"] = round(float(self.held.sum() / self.scrapes.sum()), 2)
        for name, part, whole in (
            ("preempted", self.preempted, self.finished),
            ("blocked", self.blocked, self.scrapes),
        ):
            share = part.sum() / whole.sum()
            error = math.sqrt(k / (k - 1) * np.sum((part - share * whole) ** 2)) / whole.sum()
            found |= {name: round(float(share), 5), f"{name}_se": round(float(error), 5)}
        return found


def lower(seen: dict[int, Counts]) -> int | None:
    """Returns the highest number of users that keeps the limits, if the next one breaks them; else None."""
    broken = min((users for users, counts in seen.items() if not counts.holds), default=0)
    return broken - 1 if broken - 1 in seen else None


def wall_between(low: int, seen: dict[int, Counts]) -> tuple[float, float, str]:
    """Returns x* and its standard error, both in users, and the name of the limit that is crossed there.

    The margins are interpolated linearly between `low` and `low + 1` users. The error is half the width of
    the middle 68 % of resamples of the batches, times sqrt(k / (k - 1)).
    """
    below, above = seen[low], seen[low + 1]
    crossings = _crossings(low, below.margins(), above.margins())
    rng = np.random.default_rng(0)
    draws = _crossings(low, below.resampled_margins(rng), above.resampled_margins(rng)).min(axis=-1)
    k = min(len(below.finished), len(above.finished))
    q16, q84 = np.quantile(draws, [0.16, 0.84])
    binding = ("preemptions", "blocked time")[int(crossings.argmin())]
    return float(crossings.min()), float(q84 - q16) / 2 * math.sqrt(k / (k - 1)), binding


def _crossings(low: int, below: Floats, above: Floats) -> Floats:
    """Returns the users at which each margin is zero; infinity if it does not rise. Shapes (..., 2)."""
    rise = above - below
    return np.where(rise > 0, low - below / np.where(rise > 0, rise, 1.0), np.inf)
