"""The steady window of a level, and means over a window."""

import math

import numpy as np

from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Bools, Floats
from analysis.statistics.samples import Window, clearest_stretch, trend

TREND_P = 0.001
TREND_CHANGE = 0.25
CUTS = (0.0, 0.25, 0.5)


def ended_inside(rows: Requests, window: Window) -> Bools:
    """Returns whether each request ended in the window, shape (n,)."""
    end = rows.end_unix_s
    return (end >= window.begin_unix_s) & (end < window.end_unix_s)


def begin_unix_s(rows: Requests) -> Floats:
    """Returns when each request was sent, in seconds since 1970, shape (n,).

    The server can work on a request from this time on. Where it is unknown, the request's start is returned.
    """
    return rows.start_unix_s + np.nan_to_num(rows.sent_s)


def steady_window(run: Run, span: tuple[float, float]) -> tuple[Window, bool]:
    """Returns the steady part of a level, and whether there is one.

    Steady means that neither request duration nor KV usage has a trend, and that requests took as long in
    every stretch of the level as at its end. The whole level is tried first, then its last three quarters,
    then its last half. If none of them is steady, returns the whole level and False.
    span: begin and end in seconds since 1970, without the settling time.
    """
    first = _window(run.requests, *span)
    changed = _last_change(run.requests, first)
    for cut in CUTS:
        begin = span[0] + cut * (span[1] - span[0])
        if cut < changed - 1.0 / first.batches:
            continue
        window = _window(run.requests, begin, span[1])
        if not _drifts(run, window):
            return window, True
    return first, False


def _window(rows: Requests, begin: float, end: float) -> Window:
    ended = rows.end_unix_s
    inside = rows.ok & (ended >= begin) & (ended < end)
    duration_s = (rows.end_s - np.nan_to_num(rows.sent_s))[inside]
    return Window(
        begin_unix_s=begin,
        end_unix_s=end,
        request_duration_s=float(duration_s.mean()) if len(duration_s) else end - begin,
    )


def _drifts(run: Run, window: Window) -> bool:
    duration_s, ended_unix_s = _durations(run.requests, window)
    scrapes = (run.server.unix_s >= window.begin_unix_s) & (run.server.unix_s <= window.end_unix_s)
    scrapes &= ~np.isnan(run.server.kv_cache_usage)
    series = [
        (duration_s, ended_unix_s),
        (run.server.kv_cache_usage[scrapes], run.server.unix_s[scrapes]),
    ]
    for values, at in series:
        if len(values) >= window.batches:
            change, p = trend(values, at, window)
            if p < TREND_P and abs(change) > TREND_CHANGE:
                return True
    return False


def _last_change(rows: Requests, window: Window) -> float:
    """Returns the position in the window, 0 to 1, from which on requests took as long as at its end:
    something may have slowed the server before. 0 where it did not change clearly."""
    found = clearest_stretch(*_durations(rows, window), window)
    if found is None or found.p >= TREND_P or abs(found.change) <= TREND_CHANGE:
        return 0.0
    return found.end if found.end < 1.0 - 0.5 / window.batches else found.begin


def _durations(rows: Requests, window: Window) -> tuple[Floats, Floats]:
    """Returns how many seconds the requests took that succeeded in the window, and when they ended."""
    inside = rows.ok & ended_inside(rows, window)
    return (rows.end_s - np.nan_to_num(rows.sent_s))[inside], rows.end_unix_s[inside]


def worst_worker(run: Run, values: Floats, window: Window) -> float:
    """Computes each worker's mean over the window and returns the largest; nan without values."""
    return max(means_by_worker(run, values, window), default=math.nan)


def means_by_worker(run: Run, values: Floats, window: Window) -> list[float]:
    """Returns a mean over the window for each worker of the load generator that has values in it."""
    client = run.client
    means = [
        window_mean(client.unix_s[client.worker == worker], values[client.worker == worker], window)
        for worker in np.unique(client.worker)
    ]
    return [mean for mean in means if not math.isnan(mean)]


def known_mean(values: Floats) -> float:
    """Returns the mean of the values that are not nan; nan where all are nan."""
    known = values[~np.isnan(values)]
    return float(known.mean()) if len(known) else math.nan


def known_fraction(events: Bools, values: Floats) -> float:
    """Returns the share of events among the values that are not nan; nan where all are nan."""
    known = ~np.isnan(values)
    return float(events[known].mean()) if known.any() else math.nan


def window_mean(unix_s: Floats, values: Floats, window: Window) -> float:
    """Returns the mean of the values inside the window, without nan; nan where there are none."""
    return known_mean(values[(unix_s >= window.begin_unix_s) & (unix_s <= window.end_unix_s)])
