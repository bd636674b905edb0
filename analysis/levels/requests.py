"""Figures of one window from the rows: percentiles, misses of the objectives, throughput, goodput."""

import math
from dataclasses import dataclass, fields, replace
from typing import Literal

import numpy as np

from analysis.levels import definitions
from analysis.levels.failures.classes import (
    FailureClass,
    FailureCount,
    class_codes,
    class_of,
    not_of_load,
    words_of,
)
from analysis.levels.window import ended_inside, known_fraction, known_mean
from analysis.reading.columns import Requests
from analysis.statistics.arrays import Bools, Floats, Ints
from analysis.statistics.samples import MissShare, Quantiles, Window, miss_share, quantiles
from loadtest.record import Outcome, Slo

GATHERED = 0.5
"""Distinct arrivals per chunk below which chunks count as gathered on their way."""
TOGETHER_S = 0.0002
"""Seconds between two chunks up to which they count as one arrival. No engine makes tokens of one request so
fast."""
STALL_THRESHOLDS_S = (0.25, 0.5, 1.0)
"""Lengths of a stall beyond which answers are counted."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RequestLatency:
    """Latency of a group of requests that ended in one window."""

    e2e_mean_s: float
    ttft_mean_s: float
    """Of the requests that succeeded; nan without any."""
    e2e_s: Quantiles
    ttft_s: Quantiles
    tpot_s: Quantiles
    decode_tok_s: Quantiles
    stall_s: Quantiles
    """Percentiles of the longest gap between two events of an answer."""
    stalled: tuple[float, ...]
    """Share of the answers that stood still for longer than each of STALL_THRESHOLDS_S; nan where no answer
    has two events."""
    ttft_miss: MissShare
    tpot_miss: MissShare
    stall_miss: MissShare
    """Of no requests where stalls have no objective."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RequestFigures(RequestLatency):
    """Figures of one window; most of them describe the requests that ended in it.

    Requests that failed for a reason other than load are counted in `errors` and `failures`; all other
    figures leave them out. A request that the load test cancelled counts in `cancelled`, and by its own times
    in TTFT and request duration. docs/method.md has the rules.
    """

    n: int
    """Requests that ended in the window: those that succeeded, and those that failed because of load."""
    attempts: int
    """The same, but a request that failed counts once for each of the shortest pauses that fit into the
    pause after it."""
    finished: int
    """Requests that ended in the window and succeeded."""
    errors: int
    """Requests that failed, whatever the reason."""
    not_sent: int
    """Requests that failed before they left the load generator."""
    cancelled: int
    failures: tuple[FailureCount, ...]
    """All failures by class, the most frequent first."""
    chunk_gap_s: Quantiles
    arrivals_per_chunk: float
    """Distinct arrivals per chunk of the answers: 1 where each chunk came alone. nan without known gaps."""
    gap_is_itl: bool
    """Whether every chunk carried one token, so that chunk gaps are inter-token latencies."""
    overload: MissShare
    """Share of the attempts that failed because of load: users who wait longer after each failure ask less
    often, and must not hide how many are turned away."""
    output_tok_s: float
    output_tok_se: float
    goodput_rps: float

    @property
    def gathered(self) -> bool:
        """Whether something between the engine and the client gathers chunks. The times between tokens are
        then those of its buffer, and TPOT and stalls are unknown."""
        return self.arrivals_per_chunk < GATHERED

    @property
    def ended(self) -> int:
        """Requests that ended in the window, failed ones of every kind included, cancelled ones not."""
        return self.failures[0].share.n if self.failures else self.n

    @classmethod
    def of(
        cls,
        rows: Requests,
        window: Window,
        slo: Slo,
        *,
        not_load: frozenset[FailureClass] = frozenset(),
        shortest_pause_s: float = 1.0,
    ) -> "RequestFigures":
        """Computes the figures of the requests that ended in the window.

        not_load: classes of failures that load does not cause. shortest_pause_s: pause of a user after the
        first failure in a row.
        """
        inside, cancelled = ended_inside(rows, window), rows.with_outcome(Outcome.CANCELLED)
        times = RequestTimes.of(rows, slo)
        counted = inside & ~not_of_load(rows, not_load)
        index = np.flatnonzero(counted & ~cancelled)
        ok = rows.ok[index]
        gaps = _chunk_gaps(rows, index[ok])
        arrivals_per_chunk = _arrivals_per_chunk(gaps, rows, index[ok])
        if arrivals_per_chunk < GATHERED:
            times = times.without_tokens()
        latency = request_latency(times, rows, counted, window, slo)
        output_tok_s, output_tok_se = _output_rate(rows, window)
        weight = _weights(rows, shortest_pause_s)
        return cls(
            **{field.name: getattr(latency, field.name) for field in fields(latency)},
            n=len(index),
            attempts=round(float(weight[index].sum())),
            finished=int(ok.sum()),
            errors=int((inside & rows.failed).sum()),
            not_sent=int((inside & rows.with_outcome(Outcome.NOT_SENT)).sum()),
            cancelled=int((inside & cancelled).sum()),
            failures=_failures(rows, inside & ~cancelled, weight, window),
            chunk_gap_s=_gap_quantiles(gaps),
            arrivals_per_chunk=arrivals_per_chunk,
            gap_is_itl=bool(len(index)) and bool(np.all(times.chunks_are_tokens[index[ok]])),
            overload=_failed_share(rows.failed, rows, index, weight, window),
            output_tok_s=output_tok_s,
            output_tok_se=output_tok_se,
            goodput_rps=int((inside & rows.ok & ~times.late(slo)).sum()) / window.length_s,
        )


def request_latency(
    times: "RequestTimes", rows: Requests, counted: Bools, window: Window, slo: Slo
) -> RequestLatency:
    """Computes the latency of the requests that count, shape (n,): those of a window, or some of them.

    TPOT, decode rate and stalls leave out the requests that the load test cancelled.
    """
    chosen, index = np.flatnonzero(counted), np.flatnonzero(counted & ~rows.with_outcome(Outcome.CANCELLED))
    at, ok = rows.end_unix_s[index], rows.ok[index]
    tpot, stall = times.tpot_s[index], times.stall_s[index]
    stall_miss = MissShare(misses=0, n=0)
    if slo.stall_p95_s is not None:
        stall_miss = _misses(times.stall_s > slo.stall_p95_s, times.stall_s, rows, index, window)
    return RequestLatency(
        e2e_mean_s=known_mean(times.e2e_s[index][ok]),
        ttft_mean_s=known_mean(times.ttft_s[index][ok]),
        e2e_s=times.quantiles("e2e_s", rows, chosen, window),
        ttft_s=times.quantiles("ttft_s", rows, chosen, window),
        tpot_s=quantiles(tpot, at, window),
        decode_tok_s=quantiles(definitions.decode_tok_s(tpot), at, window),
        stall_s=quantiles(stall, at, window),
        stalled=tuple(known_fraction(stall > limit_s, stall) for limit_s in STALL_THRESHOLDS_S),
        ttft_miss=_misses(times.ttft_s > slo.ttft_p95_s, times.ttft_s, rows, chosen, window),
        tpot_miss=_misses(times.tpot_s > slo.tpot_p95_s, times.tpot_s, rows, index, window),
        stall_miss=stall_miss,
    )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RequestTimes:
    """Durations of every request in seconds, shape (n,) each; nan where a request says nothing about one.

    A request without a first token, because it failed or was cancelled, says something about TTFT only if it
    had waited longer than the objective. Its TTFT is then a lower bound: the time that it had waited.
    """

    ttft_s: Floats
    ttft_is_bound: Bools
    tpot_s: Floats
    stall_s: Floats
    """Longest gap between two events of each answer."""
    e2e_s: Floats
    e2e_is_bound: Bools
    """Whether the request ended before its answer was complete, shape (n,)."""
    chunks_are_tokens: Bools

    @classmethod
    def of(cls, rows: Requests, slo: Slo) -> "RequestTimes":
        first = definitions.ttft_s(sent_s=rows.sent_s, first_chunk_s=rows.first_chunk_s)
        e2e = definitions.e2e_s(sent_s=rows.sent_s, end_s=rows.end_s)
        given_up = rows.with_outcome(Outcome.CANCELLED, Outcome.TIMEOUT)
        without_first = np.isnan(first) & ~rows.ok & ~rows.with_outcome(Outcome.EMPTY)
        waited_too_long = without_first & (e2e > slo.ttft_p95_s)
        broken_off = ~rows.ok & (given_up | ~np.isnan(first))
        return cls(
            ttft_s=np.where(waited_too_long, e2e, first),
            ttft_is_bound=waited_too_long,
            tpot_s=tpot_of(rows),
            stall_s=rows.longest_gap_s,
            e2e_s=np.where(rows.ok | broken_off, e2e, np.nan),
            e2e_is_bound=broken_off,
            chunks_are_tokens=definitions.chunks_are_tokens(
                chunks=rows.chunks, output_tokens=rows.output_tokens
            ),
        )

    def without_tokens(self) -> "RequestTimes":
        """Returns the durations without TPOT and stalls, which are unknown where chunks were gathered."""
        unknown = np.full(len(self.ttft_s), math.nan)
        return replace(self, tpot_s=unknown, stall_s=unknown)

    def late(self, slo: Slo) -> Bools:
        """Returns whether each request misses an objective of latency, shape (n,)."""
        late = (self.ttft_s > slo.ttft_p95_s) | (self.tpot_s > slo.tpot_p95_s)
        return late if slo.stall_p95_s is None else late | (self.stall_s > slo.stall_p95_s)

    def quantiles(
        self, name: Literal["ttft_s", "e2e_s"], rows: Requests, index: Ints, window: Window
    ) -> Quantiles:
        """Returns percentiles of the requests at `index`, in which lower bounds count as such."""
        values, bounds = (
            (self.ttft_s, self.ttft_is_bound) if name == "ttft_s" else (self.e2e_s, self.e2e_is_bound)
        )
        return quantiles(values[index], rows.end_unix_s[index], window, bounds[index])


def tpot_of(rows: Requests) -> Floats:
    """Returns the seconds per output token of every request, shape (n,); nan where undefined.

    A request that failed has no usage: its chunks after the first are taken to hold as many tokens each as
    those of the requests that succeeded.
    """
    unknown = np.isnan(rows.output_tokens) & rows.failed
    known = rows.ok & ~np.isnan(rows.output_tokens) & (rows.chunks > 1)
    later_tokens = float((rows.output_tokens - rows.first_chunk_tokens)[known].sum())
    per_chunk = later_tokens / float((rows.chunks - 1)[known].sum()) if known.any() else 1.0
    first = np.where(unknown, per_chunk, rows.first_chunk_tokens)
    return definitions.tpot_s(
        first_chunk_s=rows.first_chunk_s,
        last_chunk_s=rows.last_chunk_s,
        output_tokens=np.where(unknown, per_chunk * rows.chunks, rows.output_tokens),
        first_chunk_tokens=first,
    )


def _misses(missed: Bools, values: Floats, rows: Requests, index: Ints, window: Window) -> MissShare:
    """Counts misses of an objective among the requests at `index` whose value is known."""
    known = index[~np.isnan(values[index])]
    return miss_share(missed[known], values[known], rows.end_unix_s[known], window)


def _weights(rows: Requests, shortest_pause_s: float) -> Floats:
    """Returns how many attempts each request stands for, shape (n,): 1, or the number of shortest pauses that
    fit into the pause after it."""
    if shortest_pause_s <= 0.0:
        return np.ones(len(rows))
    return np.fmax(rows.pause_s / shortest_pause_s, 1.0)


def _failed_share(failed: Bools, rows: Requests, index: Ints, weight: Floats, window: Window) -> MissShare:
    """Returns the share of failed attempts among the requests at `index`.

    The number of trials is that of the requests, because long pauses do not make a share more certain.
    """
    mine = failed[index]
    if not mine.any():
        return MissShare(misses=0, n=len(index))  # durations do not tell how failures would cluster
    base = miss_share(mine, weight[index], rows.end_unix_s[index], window)
    share = float(weight[index][mine].sum() / weight[index].sum())
    return MissShare(misses=round(share * base.n), n=base.n, effect=base.effect)


def _failures(rows: Requests, ended: Bools, weight: Floats, window: Window) -> tuple[FailureCount, ...]:
    """Returns the failures among the requests that ended, by class; the most frequent class first."""
    if not (ended & rows.failed).any():
        return ()
    index, codes = np.flatnonzero(ended), class_codes(rows)
    found = []
    for code in np.unique(codes[ended & rows.failed]):
        mine = codes == code
        found.append(
            FailureCount(
                failure=class_of(int(code)),
                count=int((ended & mine).sum()),
                words=words_of(rows, ended & mine),
                share=_failed_share(mine, rows, index, weight, window),
            )
        )
    return tuple(sorted(found, key=lambda one: -one.count))


def _chunk_gaps(rows: Requests, index: Ints) -> Floats:
    """Returns the seconds between chunks for the requests at `index`, one request after the other."""
    parts = [rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]] for row in index]
    return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)


def _arrivals_per_chunk(gap: Floats, rows: Requests, index: Ints) -> float:
    """Returns (distinct arrivals) / (chunks) over the requests at `index`; nan where no gap is known.

    Requests whose gaps were not recorded do not count: some tools write the first and the last time only.
    """
    requests = int(np.sum(rows.gap_start[index + 1] > rows.gap_start[index]))
    return (requests + float(np.sum(gap > TOGETHER_S))) / (requests + len(gap)) if requests else math.nan


def _gap_quantiles(gap: Floats) -> Quantiles:
    """Returns p50, p95 and p99 of the gaps between chunks. Each is None with fewer than 300 gaps.

    They have no confidence intervals, because the gaps of one request are far from independent.
    """
    if len(gap) < 100 * 3:
        return Quantiles()
    p50, p95, p99 = (float(q) for q in np.quantile(gap, [0.5, 0.95, 0.99]))
    return Quantiles(p50=p50, p95=p95, p99=p99)


def variation(values: Floats) -> float:
    """Returns the coefficient of variation; nan with fewer than two known values or a mean of 0."""
    known = values[~np.isnan(values)]
    return float(known.std() / known.mean()) if len(known) > 1 and known.mean() > 0 else math.nan


def _output_rate(rows: Requests, window: Window) -> tuple[float, float]:
    """Returns two numbers: the output tokens per second inside the window, and their standard error.

    The standard error comes from the differences between batches of the window.
    """
    tokens = rows.tokens
    some = rows.chunks > 0
    first, last = (
        (rows.start_unix_s + rows.first_chunk_s)[some],
        (rows.start_unix_s + rows.last_chunk_s)[some],
    )
    edges = np.linspace(window.begin_unix_s, window.end_unix_s, window.batches + 1)
    near = (last >= edges[0]) & (first <= edges[-1])
    by = [
        definitions.tokens_by(
            edge, first_unix_s=first[near], last_unix_s=last[near], tokens=tokens[some][near]
        ).sum()
        for edge in edges
    ]
    rates = np.diff(by) * window.batches / window.length_s
    return float(rates.mean()), float(rates.std(ddof=1) * math.sqrt(window.short_batches / window.batches))
