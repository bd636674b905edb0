"""Run -> Level: the steady window of every plateau, what was seen in it, and whether it can be trusted."""

import math
from collections.abc import Sequence

import numpy as np

from analysis.levels import definitions as metrics
from analysis.levels.context import Context
from analysis.levels.level import Level
from analysis.levels.queues import blocked_share, most_running_seen, queue_share, slots_seen
from analysis.levels.requests import RowFigures, output_rate, variation
from analysis.levels.server import growth, prefix_hit_rate
from analysis.levels.trust import TrustGates
from analysis.levels.window import (
    begin_unix_s,
    ended_inside,
    known_fraction,
    known_mean,
    means_by_worker,
    steady_window,
    worst_worker,
)
from analysis.reading.runs import Run
from analysis.statistics.samples import Window
from loadtest.record import Outcome

LOCKSTEP_CV = 0.1
MIN_TOKENS = 1000
UNDER_WAY_LIVES = 4.0  # mean response times after which nearly every request has ended


def levels_of(run: Run, context: Context) -> list[Level]:
    """Every plateau of the run that has a window left after its settling time, in order of time."""
    settle_s = _number(run.info.settings.get("settle_s"), 0.0)
    miscount = token_miscount(run)
    return [
        _level(run, context, users=users, plateau=(begin + settle_s, end), miscount=miscount)
        for begin, end, users in run.info.schedule
        if end - begin - settle_s > 0.0
    ]


def token_miscount(run: Run) -> float:
    """Growth of the server's token counter over the drained run against the tokens in our rows, less 1; nan
    where it cannot be told. Of requests without usage, such as unfinished ones, the chunks are counted."""
    rows, counter = run.requests, run.server.generation_tokens_total
    known = counter[~np.isnan(counter)]
    if run.info.ended_unix_s is None or len(known) < 2 or np.isnan(rows.output_tokens[rows.ok]).any():
        return math.nan
    ours = float(rows.tokens.sum())
    return float(known[-1] - known[0]) / ours - 1.0 if ours >= MIN_TOKENS else math.nan


def _number(value: object, default: float) -> float:
    return float(value) if isinstance(value, int | float | str) and value != "" else default


def _level(run: Run, context: Context, *, users: int, plateau: tuple[float, float], miscount: float) -> Level:
    window, steady = steady_window(run, plateau)
    rows = run.requests
    inside = ended_inside(rows, window)
    ours = rows.with_outcome(Outcome.CANCELLED)
    seen = RowFigures.of(rows, inside & ~ours, inside & ours, window, context.slo)
    scrapes = (run.server.unix_s >= window.begin_unix_s) & (run.server.unix_s <= window.end_unix_s)
    in_flight = in_flight_of(run, window)
    lag = worst_worker(run, run.client.loop_lag_s, window)
    most_running = most_running_seen(run.server, scrapes, context)
    slots = slots_seen(run.server, scrapes, context, users, most_running)
    gates = TrustGates(
        run=run,
        context=context,
        users=users,
        window=window,
        seen=seen,
        in_flight=in_flight,
        miscount=miscount,
    )
    tokens, tokens_se = output_rate(rows, window)
    return Level(
        users=users,
        run_id=run.info.run_id,
        window=window,
        n=seen.n,
        cancelled=seen.cancelled,
        errors=seen.errors,
        in_flight=in_flight,
        e2e_mean_s=seen.e2e_mean_s,
        e2e=seen.e2e,
        ttft=seen.ttft,
        tpot=seen.tpot,
        decode=seen.decode,
        gap=seen.gap,
        gap_is_itl=seen.gap_is_itl,
        ttft_miss=seen.ttft_miss,
        tpot_miss=seen.tpot_miss,
        overload=seen.overload,
        output_tok_s=tokens,
        output_tok_se=tokens_se,
        goodput_rps=seen.good / window.length_s,
        running=known_mean(run.server.running[scrapes]),
        kv_usage=known_mean(run.server.kv_cache_usage[scrapes]),
        waiting_fraction=known_fraction(run.server.waiting[scrapes] > 0, run.server.waiting[scrapes]),
        preemptions=growth(run.server.unix_s, run.server.preemptions_total, window),
        finished=int((inside & rows.ok).sum()),
        blocked=blocked_share(run.server, scrapes, context, window, slots),
        queue=queue_share(run.server, scrapes, context, window),
        slots=slots,
        most_running=most_running,
        prefix_hit_rate=prefix_hit_rate(run, inside & rows.ok, window),
        vram_bytes=known_mean(run.server.vram_used_bytes[scrapes]),
        lag_s=lag,
        why_not=tuple(gates.reasons(steady=steady)),
    )


def in_flight_of(run: Run, window: Window) -> float:
    """Requests in flight, mean over the window. A run that goes on, or was killed, has no rows yet of what is
    under way; there the load generator's own count, once a second, says more."""
    rows, span = run.requests, (window.begin_unix_s, window.end_unix_s)
    ended = metrics.mean_in_flight(begin_unix_s=begin_unix_s(rows), end_unix_s=rows.end_unix_s, window=span)
    known_until = float(rows.end_unix_s.max(initial=0.0)) - UNDER_WAY_LIVES * window.request_duration_s
    if run.info.ended_unix_s is not None or window.end_unix_s < known_until:
        return ended
    return max(ended, sum(means_by_worker(run, run.client.in_flight, window)))


def output_cv(runs: Sequence[Run]) -> float:
    """Coefficient of variation of the output lengths; below 0.1 requests march in lockstep."""
    return variation(np.concatenate([run.requests.output_tokens[run.requests.ok] for run in runs]))
