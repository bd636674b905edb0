"""Figures of one window from the rows: percentiles, misses of the objectives, throughput, goodput."""

import math
from dataclasses import dataclass

import numpy as np

from analysis.levels import definitions
from analysis.levels.window import ended_inside, known_mean
from analysis.reading.columns import Requests
from analysis.statistics.arrays import Bools, Floats, Ints
from analysis.statistics.samples import MissShare, Quantiles, Window, miss_share, quantiles
from loadtest.record import Outcome, Slo

OVERLOAD_STATUS = (429, 500, 502, 503, 504, 529)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RequestFigures:
    """Figures of one window; most of them describe the requests that ended in it.

    A request that the load test cancelled counts in `cancelled`, and as a TTFT miss if it was late already.
    Its tokens count in the output throughput. All other figures leave it out.
    """

    n: int
    """Requests that ended in the window, failed ones included, cancelled ones not."""
    finished: int
    """Requests that ended in the window and succeeded."""
    errors: int
    client_errors: int
    cancelled: int
    e2e_mean_s: float
    e2e_s: Quantiles
    ttft_s: Quantiles
    tpot_s: Quantiles
    decode_tok_s: Quantiles
    chunk_gap_s: Quantiles
    gap_is_itl: bool
    """Whether every chunk carried one token, so that chunk gaps are inter-token latencies."""
    ttft_miss: MissShare
    tpot_miss: MissShare
    overload: MissShare
    """Answers with an HTTP status in OVERLOAD_STATUS, by which a server says that it has too much load."""
    output_tok_s: float
    output_tok_se: float
    goodput_rps: float

    @classmethod
    def of(cls, rows: Requests, window: Window, slo: Slo) -> "RequestFigures":
        """Computes the figures of the requests that ended in the window."""
        inside, cancelled = ended_inside(rows, window), rows.with_outcome(Outcome.CANCELLED)
        ended = inside & ~cancelled
        times = _Times.of(rows)
        index = np.flatnonzero(ended)
        at, ok = rows.end_unix_s[index], rows.ok[index]
        ttft, tpot, e2e = times.ttft_s[index], times.tpot_s[index], times.e2e_s[index]
        late, slow = ~ok | (ttft > slo.ttft_p95_s), ~ok | (tpot > slo.tpot_p95_s)
        overload = np.isin(rows.http_status[index], OVERLOAD_STATUS)
        counted = ~ok | ~np.isnan(tpot)
        output_tok_s, output_tok_se = _output_rate(rows, window)
        return cls(
            n=len(index),
            finished=int(ok.sum()),
            errors=int((~ok).sum()),
            client_errors=int((ended & rows.with_outcome(Outcome.CONNECT_ERROR, Outcome.TIMEOUT)).sum()),
            cancelled=int((inside & cancelled).sum()),
            e2e_mean_s=known_mean(e2e[ok]),
            e2e_s=quantiles(e2e[ok], at[ok], window),
            ttft_s=quantiles(ttft[ok], at[ok], window),
            tpot_s=quantiles(tpot[ok], at[ok], window),
            decode_tok_s=quantiles(definitions.decode_tok_s(tpot[ok]), at[ok], window),
            chunk_gap_s=_gap_quantiles(_chunk_gaps(rows, index[ok])),
            gap_is_itl=bool(len(index)) and bool(np.all(times.chunks_are_tokens[index[ok]])),
            ttft_miss=_ttft_misses(late, ttft, at, times.ttft_so_far_s[inside & cancelled], slo, window),
            tpot_miss=miss_share(slow[counted], tpot[counted], at[counted], window),
            overload=miss_share(overload, e2e, at, window),
            output_tok_s=output_tok_s,
            output_tok_se=output_tok_se,
            goodput_rps=int((ok & ~late & ~slow).sum()) / window.length_s,
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Times:
    """Durations of every request in seconds, shape (n,) each."""

    ttft_s: Floats
    ttft_so_far_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    chunks_are_tokens: Bools

    @classmethod
    def of(cls, rows: Requests) -> "_Times":
        ttft = definitions.ttft_s(sent_s=rows.sent_s, first_chunk_s=rows.first_chunk_s)
        e2e = definitions.e2e_s(sent_s=rows.sent_s, end_s=rows.end_s)
        return cls(
            ttft_s=ttft,
            ttft_so_far_s=np.where(np.isnan(ttft), e2e, ttft),
            e2e_s=e2e,
            tpot_s=tpot_of(rows),
            chunks_are_tokens=definitions.chunks_are_tokens(
                chunks=rows.chunks, output_tokens=rows.output_tokens
            ),
        )


def tpot_of(rows: Requests) -> Floats:
    """Returns the seconds per output token of every request, shape (n,); nan where undefined."""
    return definitions.tpot_s(
        first_chunk_s=rows.first_chunk_s,
        last_chunk_s=rows.last_chunk_s,
        output_tokens=rows.output_tokens,
        first_chunk_tokens=rows.first_chunk_tokens,
    )


def _ttft_misses(
    late: Bools, ttft: Floats, at: Floats, cancelled_after_s: Floats, slo: Slo, window: Window
) -> MissShare:
    """Counts misses of the TTFT objective. A cancelled request counts only if it was late by then."""
    base = miss_share(late, ttft, at, window)
    also = int((cancelled_after_s > slo.ttft_p95_s).sum())
    return MissShare(misses=base.misses + also, n=base.n + also, effect=base.effect)


def _chunk_gaps(rows: Requests, index: Ints) -> Floats:
    """Returns the seconds between chunks for the requests at `index`, one request after the other."""
    parts = [rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]] for row in index]
    return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)


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
