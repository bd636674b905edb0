"""Figures of an open loop (requests sent at set times), in slices of time.

Each slice tells how many requests were due and in flight, and their TTFT, counted both from the due time
and from sending. No limit in users is computed, because an open loop has no number of users.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np

from analysis.levels.measure import in_flight_of
from analysis.levels.requests import tpot_of
from analysis.levels.trust import generator_doubts
from analysis.levels.window import ended_inside
from analysis.notes import Note, SentLate
from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Bools, Floats
from analysis.statistics.samples import Quantiles, Window, finite_or_none
from loadtest.record import ArrivalsInfo, Outcome

SLICES = 8
SHORTEST_S = 5.0
LATE_FLOOR_S = 0.01
LATE_SHARE = 0.1
"""Sending is late where its delay's p99 exceeds both LATE_FLOOR_S and this share of the median TTFT."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Delays:
    """Delays of requests in an open loop, in seconds, shape (n,) each.

    Both TTFTs are infinite where the load test ended the request before its first token.
    """

    due_to_sent_s: Floats
    ttft_s: Floats
    """Seconds from sent to the first token."""
    due_ttft_s: Floats
    """Seconds from due to the first token. They include the delay of a load generator that sends late."""

    @classmethod
    def of(cls, rows: Requests, chosen: Bools) -> "Delays":
        due = (rows.scheduled_unix_s - rows.start_unix_s)[chosen]
        ended_by_us = rows.with_outcome(Outcome.CANCELLED, Outcome.TIMEOUT)[chosen]
        first = rows.first_chunk_s[chosen]
        first = np.where(np.isnan(first) & ended_by_us, np.inf, first)
        sent = rows.sent_s[chosen]
        return cls(due_to_sent_s=sent - due, ttft_s=first - sent, due_ttft_s=first - due)


class Slice(msgspec.Struct, kw_only=True, frozen=True):
    """A slice of an open loop, from `from_s` to `to_s` seconds after its start.

    Percentiles describe the requests that were due in the slice. A percentile is None where it would be
    infinite, because the load test ended too many requests before their first token.
    """

    run_id: str
    from_s: float
    to_s: float
    due: int
    due_rps: float
    ended_rps: float
    in_flight: float
    output_tok_s: float
    due_to_sent_s: Quantiles
    ttft_s: Quantiles
    """Seconds from sent to the first token."""
    due_ttft_s: Quantiles
    """Seconds from due to the first token (scheduled TTFT)."""
    errors: int
    cancelled: int
    why_not: list[Note]
    """Doubts because of which the load generator's times are not trusted; empty where they are trusted."""


def slices_of(run: Run) -> list[Slice]:
    """Returns the figures of an open loop in slices of time; [] in a closed loop.

    The time in which requests are due is cut into at most SLICES slices of equal length. Each lasts at least
    SHORTEST_S, unless the whole time is shorter.
    """
    arrivals = run.info.arrivals
    if arrivals is None or arrivals.end_unix_s <= arrivals.start_unix_s:
        return []
    span = arrivals.end_unix_s - arrivals.start_unix_s
    edges = np.linspace(0.0, span, max(1, min(SLICES, int(span / SHORTEST_S))) + 1)
    return [_slice(run, arrivals, float(a), float(b)) for a, b in itertools.pairwise(edges)]


def _slice(run: Run, arrivals: ArrivalsInfo, from_s: float, to_s: float) -> Slice:
    rows = run.requests
    begin, end = arrivals.start_unix_s + from_s, arrivals.start_unix_s + to_s
    due = (rows.scheduled_unix_s >= begin) & (rows.scheduled_unix_s < end)
    window = Window(begin_unix_s=begin, end_unix_s=end, request_duration_s=1.0)
    ended = ended_inside(rows, window)
    ours = rows.with_outcome(Outcome.CANCELLED)
    delays = Delays.of(rows, due)
    return Slice(
        run_id=run.info.run_id,
        from_s=from_s,
        to_s=to_s,
        due=int(due.sum()),
        due_rps=int(due.sum()) / (to_s - from_s),
        ended_rps=int((ended & ~ours).sum()) / (to_s - from_s),
        in_flight=in_flight_of(run, window),
        output_tok_s=float(rows.tokens[ended].sum()) / (to_s - from_s),
        due_to_sent_s=_percentiles(delays.due_to_sent_s),
        ttft_s=_percentiles(delays.ttft_s),
        due_ttft_s=_percentiles(delays.due_ttft_s),
        errors=int((due & ~rows.ok & ~ours).sum()),
        cancelled=int((due & ours).sum()),
        why_not=generator_doubts(run, window, tpot_s=_median_tpot(rows, due)),
    )


def _percentiles(values: Floats) -> Quantiles:
    """Returns p50, p95 and p99; each is None where there are no values or where it is infinite."""
    known = values[~np.isnan(values)]
    if not len(known):
        return Quantiles()
    p50, p95, p99 = (float(q) for q in np.quantile(known, [0.5, 0.95, 0.99], method="inverted_cdf"))
    return Quantiles(p50=finite_or_none(p50), p95=finite_or_none(p95), p99=finite_or_none(p99))


def _median_tpot(rows: Requests, chosen: Bools) -> float:
    tpot = tpot_of(rows)[chosen]
    known = tpot[~np.isnan(tpot)]
    return float(np.median(known)) if len(known) else 0.0


def open_loop_warnings(runs: Sequence[Run]) -> list[Note]:
    """Returns a warning for each run whose requests were sent later than they were due."""
    found: list[Note] = []
    for run in runs:
        rows = run.requests
        delays = Delays.of(rows, ~np.isnan(rows.scheduled_unix_s))
        late, sent, due = (
            _percentiles(values) for values in (delays.due_to_sent_s, delays.ttft_s, delays.due_ttft_s)
        )
        limit_s = max(LATE_FLOOR_S, LATE_SHARE * (sent.p50 or 0.0))
        if late.p99 is not None and late.p99 > limit_s:
            found.append(
                SentLate(
                    run_id=run.info.run_id,
                    late_p99_s=late.p99,
                    limit_s=limit_s,
                    due_p95_s=due.p95,
                    sent_p95_s=sent.p95,
                )
            )
    return found
