"""TODO."""

import math
from dataclasses import dataclass

import numpy as np

from analysis.levels import definitions as metrics
from analysis.levels.window import (
    known_mean,
)
from analysis.reading.columns import Requests
from analysis.statistics.arrays import Bools, Floats, Ints
from analysis.statistics.samples import Quantiles, Share, Window, quantiles, share
from loadtest.record import Outcome, Slo

OVERLOAD_STATUS = (429, 500, 502, 503, 504, 529)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class RowFigures:
    """What the rows of a level say."""

    n: int
    cancelled: int
    errors: int
    client_errors: int
    e2e_mean_s: float
    e2e: Quantiles
    ttft: Quantiles
    tpot: Quantiles
    decode: Quantiles
    gap: Quantiles
    gap_is_itl: bool
    ttft_miss: Share
    tpot_miss: Share
    overload: Share
    good: int
    output_cv: float

    @classmethod
    def of(cls, rows: Requests, ended: Bools, ours: Bools, window: Window, slo: Slo) -> "RowFigures":
        """ended: not cancelled by us; ours: cancelled by us. Both ended in the window, shape (n,)."""
        times = _Times.of(rows)
        index = np.flatnonzero(ended)
        at, ok = rows.end_unix_s[index], rows.ok[index]
        ttft, tpot, e2e = times.ttft_s[index], times.tpot_s[index], times.e2e_s[index]
        late, slow = ~ok | (ttft > slo.ttft_p95_s), ~ok | (tpot > slo.tpot_p95_s)
        overload = np.isin(rows.http_status[index], OVERLOAD_STATUS)
        counted = ~ok | ~np.isnan(tpot)
        gap = _rows_gaps(rows, index[ok])
        return cls(
            n=len(index),
            cancelled=int(ours.sum()),
            errors=int((~ok).sum()),
            client_errors=int((ended & rows.with_outcome(Outcome.CONNECT_ERROR, Outcome.TIMEOUT)).sum()),
            e2e_mean_s=known_mean(e2e[ok]),
            e2e=quantiles(e2e[ok], at[ok], window),
            ttft=quantiles(ttft[ok], at[ok], window),
            tpot=quantiles(tpot[ok], at[ok], window),
            decode=quantiles(metrics.decode_tok_s(tpot[ok]), at[ok], window),
            gap=_gap_quantiles(gap),
            gap_is_itl=bool(len(index)) and bool(np.all(times.chunks_are_tokens[index[ok]])),
            ttft_miss=_ttft_share(late, ttft, at, times.ttft_so_far_s[ours], slo, window),
            tpot_miss=share(slow[counted], tpot[counted], at[counted], window),
            overload=share(overload, e2e, at, window),
            good=int((ok & ~late & ~slow).sum()),
            output_cv=variation(rows.output_tokens[index[ok]]),
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Times:
    """The metrics of every row, shape (n,) each."""

    ttft_s: Floats
    ttft_so_far_s: Floats
    tpot_s: Floats
    e2e_s: Floats
    chunks_are_tokens: Bools

    @classmethod
    def of(cls, rows: Requests) -> "_Times":
        ttft = metrics.ttft_s(sent_s=rows.sent_s, first_chunk_s=rows.first_chunk_s)
        e2e = metrics.e2e_s(sent_s=rows.sent_s, end_s=rows.end_s)
        return cls(
            ttft_s=ttft,
            ttft_so_far_s=np.where(np.isnan(ttft), e2e, ttft),
            e2e_s=e2e,
            tpot_s=tpot_of(rows),
            chunks_are_tokens=metrics.chunks_are_tokens(chunks=rows.chunks, output_tokens=rows.output_tokens),
        )


def tpot_of(rows: Requests) -> Floats:
    """Time per output token of every request, shape (n,)."""
    return metrics.tpot_s(
        first_chunk_s=rows.first_chunk_s,
        last_chunk_s=rows.last_chunk_s,
        output_tokens=rows.output_tokens,
        first_chunk_tokens=rows.first_chunk_tokens,
    )


def _ttft_share(
    late: Bools, ttft: Floats, at: Floats, cancelled_after_s: Floats, slo: Slo, window: Window
) -> Share:
    """Misses of the TTFT objective; one that we cancelled is a miss if it was late already, else censored."""
    base = share(late, ttft, at, window)
    also = int((cancelled_after_s > slo.ttft_p95_s).sum())
    return Share(misses=base.misses + also, n=base.n + also, effect=base.effect)


def _rows_gaps(rows: Requests, index: Ints) -> Floats:
    """Chunk gaps of these requests, one after the other."""
    parts = [rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]] for row in index]
    return np.concatenate(parts).astype(np.float64) if parts else np.empty(0)


def _gap_quantiles(gap: Floats) -> Quantiles:
    """Gaps of one request are far from independent: no interval is given."""
    if len(gap) < 100 * 3:
        return Quantiles()
    p50, p95, p99 = (float(q) for q in np.quantile(gap, [0.5, 0.95, 0.99]))
    return Quantiles(p50=p50, p95=p95, p99=p99)


def variation(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.std() / known.mean()) if len(known) > 1 and known.mean() > 0 else math.nan


def output_rate(rows: Requests, window: Window) -> tuple[float, float]:
    """Output tokens a second inside the window, and its standard error by batches."""
    tokens = rows.tokens
    some = rows.chunks > 0
    first, last = (
        (rows.start_unix_s + rows.first_chunk_s)[some],
        (rows.start_unix_s + rows.last_chunk_s)[some],
    )
    edges = np.linspace(window.begin_unix_s, window.end_unix_s, window.batches + 1)
    near = (last >= edges[0]) & (first <= edges[-1])
    by = [
        metrics.tokens_by(
            edge, first_unix_s=first[near], last_unix_s=last[near], tokens=tokens[some][near]
        ).sum()
        for edge in edges
    ]
    rates = np.diff(by) * window.batches / window.length_s
    return float(rates.mean()), float(rates.std(ddof=1) * math.sqrt(window.short_batches / window.batches))
