"""TODO."""

import math

import numpy as np

from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Bools, Floats
from analysis.statistics.samples import Window, trend

TREND_P = 0.001
TREND_CHANGE = 0.25
CUTS = (0.0, 0.25, 0.5)


def ended_inside(rows: Requests, window: Window) -> Bools:
    """Which requests ended in the window, shape (n,)."""
    end = rows.end_unix_s
    return (end >= window.begin_unix_s) & (end < window.end_unix_s)


def begin_unix_s(rows: Requests) -> Floats:
    return rows.start_unix_s + np.nan_to_num(rows.sent_s)


def steady_window(run: Run, plateau: tuple[float, float]) -> tuple[Window, bool]:
    """The part without a trend in response time and KV usage: all of it, its last 3/4, or its last half."""
    first = _window(run.requests, *plateau)
    for cut in CUTS:
        begin = plateau[0] + cut * (plateau[1] - plateau[0])
        window = _window(run.requests, begin, plateau[1])
        if not _drifts(run, window):
            return window, True
    return first, False


def _window(rows: Requests, begin: float, end: float) -> Window:
    ended = rows.end_unix_s
    inside = rows.ok & (ended >= begin) & (ended < end)
    life = (rows.end_s - np.nan_to_num(rows.sent_s))[inside]
    return Window(
        begin_unix_s=begin,
        end_unix_s=end,
        request_duration_s=float(life.mean()) if len(life) else end - begin,
    )


def _drifts(run: Run, window: Window) -> bool:
    rows = run.requests
    inside = rows.ok & ended_inside(rows, window)
    life = (rows.end_s - np.nan_to_num(rows.sent_s))[inside]
    scrapes = (run.server.unix_s >= window.begin_unix_s) & (run.server.unix_s <= window.end_unix_s)
    scrapes &= ~np.isnan(run.server.kv_cache_usage)
    series = [
        (life, rows.end_unix_s[inside]),
        (run.server.kv_cache_usage[scrapes], run.server.unix_s[scrapes]),
    ]
    for values, at in series:
        if len(values) >= window.batches:
            change, p = trend(values, at, window)
            if p < TREND_P and abs(change) > TREND_CHANGE:
                return True
    return False


def worst_worker(run: Run, values: Floats, window: Window) -> float:
    """Mean over the window of the load generator's process that fares worst: others must not hide it."""
    return max(means_by_worker(run, values, window), default=math.nan)


def means_by_worker(run: Run, values: Floats, window: Window) -> list[float]:
    """Means over the window, of the load generator's processes that say something in it."""
    client = run.client
    means = [
        window_mean(client.unix_s[client.worker == worker], values[client.worker == worker], window)
        for worker in np.unique(client.worker)
    ]
    return [mean for mean in means if not math.isnan(mean)]


def known_mean(values: Floats) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def known_fraction(events: Bools, values: Floats) -> float:
    known = ~np.isnan(values)
    return float(events[known].mean()) if known.any() else math.nan


def window_mean(unix_s: Floats, values: Floats, window: Window) -> float:
    return known_mean(values[(unix_s >= window.begin_unix_s) & (unix_s <= window.end_unix_s)])
