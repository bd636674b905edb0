"""Finds out whether the server's metrics are those of one replica among several behind one address."""

import math
from dataclasses import replace

import msgspec

from analysis.levels.measure import in_flight_of, token_miscount
from analysis.levels.window import window_mean
from analysis.notes import SeveralReplicas
from analysis.reading.runs import Run
from analysis.reading.scrapes import server_samples_of
from analysis.statistics.samples import Window
from loadtest.record import ServerInfo

MOST_SEEN = 0.9
"""Share of the tokens and requests of the rows, above which metrics count as those of the whole server."""
SHARES_ALIKE = 0.15
"""Largest difference between the shares of tokens and of requests that one replica can explain."""


def hidden_replicas(run: Run) -> SeveralReplicas | None:
    """Returns a note if the metrics belong to a part of the server only; else None.

    Either the scrapes come from several replicas by turns, or the metrics count too few tokens and hold too
    few requests, both by the same share. Other causes of a wrong count do not do both: lost rows make the
    server count more, and so does the load of others.
    """
    if run.server.alternating:
        return SeveralReplicas(seen_share=None)
    tokens, requests = 1.0 + token_miscount(run), _seen_requests(run)
    if tokens < MOST_SEEN and requests < MOST_SEEN and abs(tokens - requests) < SHARES_ALIKE:
        return SeveralReplicas(seen_share=tokens)
    return None


def without_metrics(run: Run) -> Run:
    """Returns the run as if its server had no metrics, because those that it has are of a part of it."""
    known = run.info.server
    server = ServerInfo(engine=known.engine, version=known.version, max_model_len=known.max_model_len)
    info = msgspec.structs.replace(run.info, server=server)
    return replace(run, info=info, server=server_samples_of([]))


def _seen_requests(run: Run) -> float:
    """Returns the share of the requests in flight that the server held, over all levels; nan if unknown."""
    held_s = in_flight_s = 0.0
    for begin, end, _ in run.info.schedule:
        window = Window(begin_unix_s=begin, end_unix_s=end, request_duration_s=1.0)
        held = window_mean(run.server.unix_s, run.server.running + run.server.waiting, window)
        if end > begin and not math.isnan(held):
            held_s += held * (end - begin)
            in_flight_s += in_flight_of(run, window) * (end - begin)
    return held_s / in_flight_s if in_flight_s else math.nan
