"""Measurement of a run's levels: the steady window of each, its figures, and whether it can be trusted."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.levels import definitions
from analysis.levels.classes import ClassFigures, class_figures, together
from analysis.levels.context import Context
from analysis.levels.level import Level
from analysis.levels.requests import RequestFigures, variation
from analysis.levels.server import ServerFigures
from analysis.levels.trust import TrustGates
from analysis.levels.window import (
    begin_unix_s,
    means_by_worker,
    steady_window,
    worst_worker,
)
from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.reading.scrapes import unseen_spans
from analysis.statistics.samples import Window
from loadtest.workload.classes import users_of_classes

MIN_TOKENS = 1000
UNDER_WAY_DURATIONS = 4.0  # mean request durations until nearly every request has ended


def levels_of(run: Run, context: Context) -> list[Level]:
    """Returns the measured levels of a run, in the order of time.

    Levels that are not longer than the run's settling time are left out.
    """
    settle_s = _number(run.info.settings.get("settle_s"), 0.0)
    miscount = token_miscount(run)
    return [
        _level(run, context, users=users, span=(begin + settle_s, end), miscount=miscount)
        for begin, end, users in run.info.schedule
        if end - begin - settle_s > 0.0
    ]


def token_miscount(run: Run) -> float:
    """Returns how far the server's token counter differs from the rows, as a share of the tokens in the rows.

    This is (growth of the counter over the run) / (output tokens in the rows) - 1. A request that did not
    succeed and has no usage may have as many tokens as it has chunks, as many as it asked for, or any number
    between; the number nearest to the server's count is taken. Tokens that came between the last scrape of an
    engine and its restart, or after the last scrape of all, may be missing in the server's count.

    nan where the run has not ended, where the counter is missing, where a successful request has no usage,
    or where there are fewer than MIN_TOKENS tokens.
    """
    rows, counter = run.requests, run.server.generation_tokens_total
    seen = ~np.isnan(counter)
    known = counter[seen]
    if run.info.ended_unix_s is None or len(known) < 2 or np.isnan(rows.output_tokens[rows.ok]).any():
        return math.nan
    server, least, most = (
        float(count) for count in (known[-1] - known[0], rows.tokens.sum(), rows.max_possible_tokens.sum())
    )
    since_last_scrape = float(run.server.unix_s[seen][-1]), math.inf
    for span in (*unseen_spans(run.server), since_last_scrape):
        least -= _tokens_in(rows, span)
    ours = min(max(server, least), most)
    return server / ours - 1.0 if ours >= MIN_TOKENS else math.nan


def _tokens_in(rows: Requests, span: tuple[float, float]) -> float:
    """Returns the output tokens that came in a span of time."""
    first, last = rows.start_unix_s + rows.first_chunk_s, rows.start_unix_s + rows.last_chunk_s
    begin, end = (
        definitions.tokens_by(at, first_unix_s=first, last_unix_s=last, tokens=rows.tokens) for at in span
    )
    return float(np.nansum(end - begin))


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float | str) and value != "" else default


def _level(run: Run, context: Context, *, users: int, span: tuple[float, float], miscount: float) -> Level:
    window, steady = steady_window(run, span)
    requests = RequestFigures.of(
        run.requests,
        window,
        context.slo,
        not_load=context.not_load,
        shortest_pause_s=_number(run.info.settings.get("error_pause_s"), 1.0),
    )
    classes = _classes(run, context, window, users=users, gathered=requests.gathered)
    if classes:
        requests = _by_own_objectives(requests, classes)
    in_flight, paused = in_flight_of(run, window), paused_of(run.requests, window)
    gates = TrustGates(
        run=run,
        context=context,
        users=users,
        span=span,
        window=window,
        requests=requests,
        in_flight=in_flight,
        paused=paused,
        miscount=miscount,
    )
    return Level(
        users=users,
        run_id=run.info.run_id,
        window=window,
        in_flight=in_flight,
        paused=paused,
        requests=requests,
        classes=classes,
        server=ServerFigures.of(run, window, context, users=users),
        lag_s=worst_worker(run, run.client.loop_lag_s, window),
        why_not=gates.doubts(steady=steady),
    )


def _classes(
    run: Run, context: Context, window: Window, *, users: int, gathered: bool
) -> tuple[ClassFigures, ...]:
    if not (classes := run.info.classes):
        return ()
    counts = users_of_classes(classes, users)
    return tuple(
        class_figures(
            each,
            run.requests,
            window,
            context.slo,
            users=counts[each.name],
            gathered=gathered,
            cached=run.info.server.enable_prefix_caching is not False,
            not_load=context.not_load,
        )
        for each in classes
    )


def _by_own_objectives(requests: RequestFigures, classes: Sequence[ClassFigures]) -> RequestFigures:
    """Returns the figures of all requests, with each judged by the objectives of its own class."""
    latencies = [one.latency for one in classes]
    return replace(
        requests,
        ttft_miss=together([one.ttft_miss for one in latencies]),
        tpot_miss=together([one.tpot_miss for one in latencies]),
        stall_miss=together([one.stall_miss for one in latencies]),
        goodput_rps=sum(one.goodput_rps for one in classes),
    )


def in_flight_of(run: Run, window: Window) -> float:
    """Returns the mean number of requests in flight over the window.

    While a run is in progress, or after it was killed, unfinished requests have no rows. Near the end of such
    a run, the load generators' own counts are used if they are larger.
    """
    rows, span = run.requests, (window.begin_unix_s, window.end_unix_s)
    ended = definitions.mean_in_flight(
        begin_unix_s=begin_unix_s(rows), end_unix_s=rows.end_unix_s, window=span
    )
    known_until = float(rows.end_unix_s.max(initial=0.0)) - UNDER_WAY_DURATIONS * window.request_duration_s
    if run.info.ended_unix_s is not None or window.end_unix_s < known_until:
        return ended
    return max(ended, sum(means_by_worker(run, run.client.in_flight, window)))


def paused_of(rows: Requests, window: Window) -> float:
    """Returns the mean number of users who paused because a request failed, over the window.

    A pause ends at the latest when the user's next request begins.
    """
    order = np.lexsort((rows.start_unix_s, rows.user))
    user, start = rows.user[order], rows.start_unix_s[order]
    next_start = np.append(np.where(user[1:] == user[:-1], start[1:], np.inf), np.inf)
    end = rows.end_unix_s[order]
    until = np.minimum(end + rows.pause_s[order], np.maximum(next_start[: len(order)], end))
    return definitions.mean_in_flight(
        begin_unix_s=end, end_unix_s=until, window=(window.begin_unix_s, window.end_unix_s)
    )


def output_cv(runs: Sequence[Run]) -> float:
    """Returns the coefficient of variation of the output lengths of all runs.

    Below 0.1 the lengths are so similar that requests begin and end together.
    """
    return variation(np.concatenate([run.requests.output_tokens[run.requests.ok] for run in runs]))
