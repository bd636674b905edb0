"""The limit of a server or gateway that refuses requests: so many at once, or so many a second."""

from dataclasses import dataclass

import numpy as np

from analysis.levels.failures.classes import FailureClass, class_codes, code_of
from analysis.levels.window import begin_unix_s, ended_inside
from analysis.reading.columns import Requests
from analysis.statistics.arrays import Floats
from analysis.statistics.samples import Window
from loadtest.record import Outcome

MIN_REFUSALS = 5
AT_ONCE_SHARE = 0.9
"""Share of the refusals that must come while the limit is nearly used up, for a limit on requests at once."""
NEARLY = 0.75
"""Share of the limit that counts as nearly used up: a request that has just ended leaves its place free for
as long as its user needs to send the next one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RefusalLimit:
    """What a server takes before it refuses requests. One of the two is None, or both."""

    at_once: int | None = None
    """Unfinished requests that are served; one more is refused."""
    rps: float | None = None
    """Requests a second that are served, whatever the number of users."""


def refusal_limit(failure: FailureClass, windows: list[tuple[Requests, Window]]) -> RefusalLimit:
    """Returns the limit that refusals of one class show, from the windows in which they are.

    If nearly all of them came while about as many requests were being served as ever were at once, the limit
    is that number. If not, it is a rate: the requests that were served a second.
    """
    if failure.outcome is not Outcome.HTTP_ERROR:
        return RefusalLimit()
    beside, served, seconds = [np.empty(0)], 0, 0.0
    for rows, window in windows:
        inside = ended_inside(rows, window)
        refused = inside & (class_codes(rows) == code_of(failure))
        if refused.any():
            beside.append(_served_beside(rows, begin_unix_s(rows)[refused]))
            served += int((inside & rows.ok).sum())
            seconds += window.length_s
    counts = np.concatenate(beside)
    if len(counts) < MIN_REFUSALS or not served:
        return RefusalLimit()
    most = float(np.quantile(counts, AT_ONCE_SHARE))
    if most >= 2.0 and float(np.mean(counts >= NEARLY * most)) >= AT_ONCE_SHARE:
        return RefusalLimit(at_once=round(most))
    return RefusalLimit(rps=served / seconds)


def _served_beside(rows: Requests, at_unix_s: Floats) -> Floats:
    """Returns how many requests that succeeded were in flight at each instant."""
    begun, ended = np.sort(begin_unix_s(rows)[rows.ok]), np.sort(rows.end_unix_s[rows.ok])
    counts = np.searchsorted(begun, at_unix_s, side="right") - np.searchsorted(ended, at_unix_s, side="right")
    return counts.astype(np.float64)
