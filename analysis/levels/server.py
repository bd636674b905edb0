"""TODO."""

import math

import numpy as np

from analysis.reading.runs import Run
from analysis.statistics.arrays import Bools, Floats
from analysis.statistics.samples import Window


def growth(unix_s: Floats, counter: Floats, window: Window) -> float:
    """Growth of a counter over the window, between scrapes by straight lines; nan where it was not read."""
    known = ~np.isnan(counter)
    at, value = unix_s[known], counter[known]
    gap = 0.2 * window.length_s
    if len(at) < 2 or at[0] > window.begin_unix_s + gap or at[-1] < window.end_unix_s - gap:
        return math.nan
    ends = np.interp([window.begin_unix_s, window.end_unix_s], at, value)
    return float(ends[1] - ends[0])


def prefix_hit_rate(run: Run, ended: Bools, window: Window) -> float:
    """By the server's counters, else by the usage of the requests that ended; nan where neither says."""
    server, rows = run.server, run.requests
    queries = growth(server.unix_s, server.prefix_cache_queries_total, window)
    if queries > 0:
        return growth(server.unix_s, server.prefix_cache_hits_total, window) / queries
    told = ended & ~np.isnan(rows.cached_tokens) & (rows.prompt_tokens >= 1)
    return float(rows.cached_tokens[told].sum() / rows.prompt_tokens[told].sum()) if told.any() else math.nan
