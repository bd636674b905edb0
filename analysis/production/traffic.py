"""How many requests arrive and how many are in flight, and when most of them."""

import math
from collections.abc import Callable

import numpy as np

from analysis.answers.production import SeenArrivals, SeenConcurrency, SeenCount
from analysis.production.engines import EngineHistory, Production
from analysis.statistics.arrays import Floats

MIN_FINISHED = 50
"""Fewest finished requests from which something is said of a deployment."""
HOUR_S = 3600.0
MIN_SPAN_S = 60.0
"""Shortest span of which the busiest one is named, where the time is long enough for two."""
DAY_HOURS = 24
STALE_GAPS = 5.0
"""A scrape stands for its engine until so many usual gaps later."""


def seen_arrivals(production: Production) -> SeenArrivals | None:
    """Returns the rate of finished requests; None where none finished."""
    spans = [_finished(engine) for engine in production.engines if "finished_total" in engine.counted]
    begin = np.concatenate([np.empty(0), *(one[0] for one in spans)])
    end = np.concatenate([np.empty(0), *(one[1] for one in spans)])
    count = np.concatenate([np.empty(0), *(one[2] for one in spans)])
    if not count.sum() > 0:
        return None
    start, stop = float(begin.min()), float(end.max())
    window_s = float(np.median(end - begin))
    by_hour = window_s <= HOUR_S and math.floor(stop / HOUR_S) > math.ceil(start / HOUR_S)
    span_s = HOUR_S if by_hour and production.times_known else max(window_s, MIN_SPAN_S)
    if stop - start < 2 * span_s:
        span_s = window_s
    first = math.ceil(start / span_s - 1e-6) if span_s == HOUR_S else start / span_s
    place = np.floor(((begin + end) / 2 - first * span_s) / span_s).astype(np.int64)
    whole = (place >= 0) & (first * span_s + (place + 1) * span_s <= stop + 1.0)
    rates = np.bincount(place[whole], count[whole]) / span_s
    busiest = int(np.argmax(rates))
    daily = _daily_peak(rates, int(first) % DAY_HOURS) if span_s == HOUR_S else None
    return SeenArrivals(
        requests=round(float(count.sum())),
        mean_per_s=float(count.sum()) / (stop - start),
        peak_per_s=float(rates[busiest]),
        peak_over_s=span_s,
        peak_unix_s=(first + busiest) * span_s if production.times_known else None,
        daily_peak_per_s=daily[0] if daily else None,
        daily_peak_hour_utc=daily[1] if daily else None,
    )


def _finished(engine: EngineHistory) -> tuple[Floats, Floats, Floats]:
    """Returns begin, end and finished requests of each window in which they are known."""
    grown = engine.counted["finished_total"]
    known = ~np.isnan(grown)
    return engine.edges_unix_s[:-1][known], engine.edges_unix_s[1:][known], grown[known]


def _daily_peak(rates: Floats, first_hour: int) -> tuple[float, int] | None:
    """Returns the rate of the busiest hour of the day, as a mean over days, and this hour."""
    if len(rates) < DAY_HOURS:
        return None
    hours = (first_hour + np.arange(len(rates))) % DAY_HOURS
    profile = np.bincount(hours, rates) / np.bincount(hours)
    return float(profile.max()), int(np.argmax(profile))


def seen_concurrency(production: Production) -> SeenConcurrency:
    """Returns how many requests run and wait, all engines together."""
    longest = max(production.engines, key=lambda engine: len(engine.unix_s))
    gap_s = float(np.median(np.diff(longest.unix_s))) if len(longest.unix_s) > 1 else 0.0
    at = np.unique(np.concatenate([engine.unix_s for engine in production.engines]))
    at = longest.unix_s if len(at) > 2 * len(longest.unix_s) else at

    def total(values: Callable[[EngineHistory], Floats]) -> SeenCount:
        each = [_held_at(at, engine, values(engine), STALE_GAPS * gap_s) for engine in production.engines]
        added = np.nansum(each, axis=0)
        peak = int(np.argmax(added))
        return SeenCount(
            now=float(added[-1]),
            mean=float(added.mean()),
            p95=float(np.quantile(added, 0.95)),
            peak=float(added[peak]),
            peak_unix_s=float(at[peak]) if production.times_known else None,
        )

    waits = any(not np.isnan(engine.waiting).all() for engine in production.engines)
    end = production.end_unix_s
    return SeenConcurrency(
        running=total(lambda engine: engine.running),
        waiting=total(lambda engine: engine.waiting) if waits else None,
        in_flight=total(lambda engine: engine.in_flight),
        replicas=sum(end - float(engine.unix_s[-1]) <= STALE_GAPS * gap_s for engine in production.engines),
        busiest_replica_peak=max(float(np.nanmax(engine.in_flight)) for engine in production.engines),
        scrapes=len(at),
        scrape_s=gap_s,
    )


def _held_at(at: Floats, engine: EngineHistory, values: Floats, stale_s: float) -> Floats:
    """Returns the last value that an engine showed at each time, nan where that is too long ago."""
    place = np.searchsorted(engine.unix_s, at, side="right") - 1
    last = np.maximum(place, 0)
    fresh = (place >= 0) & (at - engine.unix_s[last] <= stale_s)
    held: Floats = np.where(fresh, values[last], np.nan)
    return held
