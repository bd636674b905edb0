"""Figures of one window from the scrapes of the server's metrics; nan where the scrapes lack them."""

import math
from dataclasses import dataclass

import numpy as np

from analysis.levels.context import Context
from analysis.levels.queues import blocked_share, detected_max_num_seqs, queue_share
from analysis.levels.window import ended_inside, known_fraction, known_mean
from analysis.reading.runs import Run
from analysis.statistics.arrays import Floats
from analysis.statistics.samples import MissShare, Window


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServerFigures:
    """Means over the window's scrapes, growth of counters, and queues; nan where unknown."""

    running: float
    kv_cache_usage: float
    waiting_fraction: float
    """Share of scrapes in which a request waited, whatever it waited for."""
    preemptions: float
    blocked: MissShare | None
    """Share of scrapes in which a request waited for KV blocks; None where that is not known."""
    queue: MissShare
    """Share of scrapes in which a request waited although the pool had room."""
    max_num_seqs: int | None
    """Number of slots, where requests waited for one of them; else None."""
    prefix_hit_rate: float
    """Share of the looked-up prompt tokens that the prefix cache held."""
    vram_bytes: float
    ttft_mean_s: float
    """The engine's own mean TTFT, of requests that had their first token between the scrapes."""
    tpot_mean_s: float
    """The engine's own mean time per output token."""
    e2e_mean_s: float
    """The engine's own mean request duration."""

    @classmethod
    def of(cls, run: Run, window: Window, context: Context, *, users: int) -> "ServerFigures":
        """Computes the figures of the scrapes in the window."""
        server = run.server
        inside = (server.unix_s >= window.begin_unix_s) & (server.unix_s <= window.end_unix_s)
        max_num_seqs = detected_max_num_seqs(server, inside, context, users)
        return cls(
            running=known_mean(server.running[inside]),
            kv_cache_usage=known_mean(server.kv_cache_usage[inside]),
            waiting_fraction=known_fraction(server.waiting[inside] > 0, server.waiting[inside]),
            preemptions=_growth(server.unix_s, server.preemptions_total, window),
            blocked=blocked_share(server, inside, context, window, max_num_seqs),
            queue=queue_share(server, inside, context, window),
            max_num_seqs=max_num_seqs,
            prefix_hit_rate=_prefix_hit_rate(run, window),
            vram_bytes=known_mean(server.vram_used_bytes[inside]),
            ttft_mean_s=_mean_of(server.unix_s, server.ttft_sum_s, server.ttft_count, window),
            tpot_mean_s=_mean_of(server.unix_s, server.tpot_sum_s, server.tpot_count, window),
            e2e_mean_s=_mean_of(server.unix_s, server.e2e_sum_s, server.e2e_count, window),
        )


def _growth(unix_s: Floats, counter: Floats, window: Window) -> float:
    """Returns the growth of a counter over the window, interpolated between scrapes.

    nan where scrapes are missing at the beginning or at the end of the window.
    """
    known = ~np.isnan(counter)
    at, value = unix_s[known], counter[known]
    gap = 0.2 * window.length_s
    if len(at) < 2 or at[0] > window.begin_unix_s + gap or at[-1] < window.end_unix_s - gap:
        return math.nan
    ends = np.interp([window.begin_unix_s, window.end_unix_s], at, value)
    return float(ends[1] - ends[0])


def _mean_of(unix_s: Floats, sum_s: Floats, count: Floats, window: Window) -> float:
    """Returns the growth of a histogram's sum over that of its count; nan where unknown."""
    grown = _growth(unix_s, count, window)
    return _growth(unix_s, sum_s, window) / grown if grown > 0 else math.nan


def _prefix_hit_rate(run: Run, window: Window) -> float:
    """Returns the hit rate of the prefix cache over the window.

    It comes from the server's counters, or else from the cached tokens in the answers' usage; nan without
    both.
    """
    server, rows = run.server, run.requests
    queries = _growth(server.unix_s, server.prefix_cache_queries_total, window)
    if queries > 0:
        return _growth(server.unix_s, server.prefix_cache_hits_total, window) / queries
    told = rows.ok & ended_inside(rows, window)
    told &= ~np.isnan(rows.cached_tokens) & (rows.prompt_tokens >= 1)
    return float(rows.cached_tokens[told].sum() / rows.prompt_tokens[told].sum()) if told.any() else math.nan
