"""Figures of each class of users in one level: a run with a workload file has classes, others have none."""

import math
from dataclasses import dataclass

import numpy as np

from analysis.levels import definitions
from analysis.levels.failures.classes import FailureClass, not_of_load
from analysis.levels.requests import RequestLatency, RequestTimes, request_latency
from analysis.levels.window import begin_unix_s, ended_inside
from analysis.reading.columns import Requests
from analysis.statistics.arrays import Bools, Floats
from analysis.statistics.samples import MissShare, Window, miss_share
from loadtest.record import Outcome, Slo, UserClass
from loadtest.workload.classes import text_popularity, texts_in_flight


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClassFigures:
    """Figures of the requests of one class of users that ended in one window."""

    name: str
    users: int
    slo: Slo
    """The objectives of the class: its own, and those of the run where it has none."""
    n: int
    """Requests that ended in the window: those that succeeded, and those that failed because of load."""
    latency: RequestLatency
    miss: MissShare
    """Share of the requests that failed or missed an objective of latency."""
    goodput_rps: float
    in_flight: float
    """Mean number of requests in flight over the window."""
    kv_tokens: float
    """Mean KV tokens that the class holds, by the lengths of its requests; nan where no lengths are known."""


def class_figures(
    user_class: UserClass,
    rows: Requests,
    window: Window,
    slo: Slo,
    *,
    users: int,
    gathered: bool,
    cached: bool,
    not_load: frozenset[FailureClass],
) -> ClassFigures:
    """Computes the figures of one class.

    slo: the objectives of the run. users: those of the class. gathered: whether chunks were gathered on their
    way, so that TPOT and stalls are unknown. cached: whether the server keeps a text that requests share only
    once. not_load: classes of failures that load does not cause.
    """
    slo = user_class.objectives.over(slo)
    mine = rows.of_class(user_class.name)
    counted = ended_inside(rows, window) & ~not_of_load(rows, not_load) & mine
    times = RequestTimes.of(rows, slo)
    if gathered:
        times = times.without_tokens()
    index = np.flatnonzero(counted & ~rows.with_outcome(Outcome.CANCELLED))
    late = times.late(slo)
    missed = rows.failed | late
    in_flight = _in_flight(rows, mine, window)
    return ClassFigures(
        name=user_class.name,
        users=users,
        slo=slo,
        n=len(index),
        latency=request_latency(times, rows, counted, window, slo),
        miss=miss_share(missed[index], times.e2e_s[index], rows.end_unix_s[index], window),
        goodput_rps=int((counted & rows.ok & ~late).sum()) / window.length_s,
        in_flight=in_flight,
        kv_tokens=_kv_tokens(user_class, rows, mine, in_flight, shared_once=cached),
    )


def together(shares: list[MissShare]) -> MissShare:
    """Returns the share of misses of all classes together."""
    requests = sum(share.n for share in shares)
    if not requests:
        return MissShare(misses=0, n=0)
    effect = sum(share.n * share.effect for share in shares) / requests
    return MissShare(misses=sum(share.misses for share in shares), n=requests, effect=effect)


def _in_flight(rows: Requests, mine: Bools, window: Window) -> float:
    return definitions.mean_in_flight(
        begin_unix_s=begin_unix_s(rows)[mine],
        end_unix_s=rows.end_unix_s[mine],
        window=(window.begin_unix_s, window.end_unix_s),
    )


def _kv_tokens(
    user_class: UserClass, rows: Requests, mine: Bools, in_flight: float, *, shared_once: bool
) -> float:
    """Returns the mean KV tokens of the requests in flight: prompt and half of the answer.

    Requests that take longer count more. A text that conversations share is held once, while at least one of
    its requests is in flight: their number is taken as Poisson's.
    """
    known = mine & rows.ok & (rows.prompt_tokens >= 1) & (rows.output_tokens >= 1)
    if not known.any():
        return math.nan
    lasts_s: Floats = rows.end_s[known] - np.nan_to_num(rows.sent_s[known])
    shared = user_class.shared_tokens if shared_once else 0
    own = np.maximum(rows.prompt_tokens[known] - shared, 0.0) + rows.output_tokens[known] / 2
    texts = texts_in_flight(text_popularity(user_class), in_flight)
    return in_flight * float(np.average(own, weights=lasts_s)) + texts * shared
