"""Kinds of failures: how many requests failed in which way, with which words, and whether load causes it.

A class of failures is an outcome and, for refused requests, a status. Every overload answer may be a wall
(limit in users), except where the same share of requests fails so at the lowest load as well.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import msgspec
import numpy as np
from scipy import stats

from analysis.reading.columns import NO_ERROR_TEXT, OUTCOME_CODES, OUTCOMES, Requests
from analysis.statistics.arrays import Bools, Floats, Ints
from analysis.statistics.samples import MissShare
from loadtest.record import Outcome, may_be_overload

RISE_P = 0.05
"""A class of failures rises with the load if chance alone would give such a rise in one of 20 cases."""
RATE_LIMITED = 429
"""Too Many Requests (RFC 6585): by definition an answer to load, so always a wall candidate."""
_STATUSES = 1000

Cause = Literal["load", "unclear", "not load"]
"""load: the share of failures rises with the users. not load: it is as large at the lowest load. unclear:
the failures were seen only at the highest load, and too few to tell; they count like those of load."""


class FailureClass(msgspec.Struct, kw_only=True, frozen=True):
    """Requests that failed in the same way."""

    outcome: Outcome
    http_status: int | None = None
    """Status of the answer; None unless the outcome is HTTP_ERROR."""

    @property
    def may_be_overload(self) -> bool:
        return may_be_overload(self.outcome, self.http_status)


class FailureCount(msgspec.Struct, kw_only=True, frozen=True):
    """Failures of one class that ended in one window."""

    failure: FailureClass
    count: int
    words: str | None
    """The most frequent of the server's own words; None without any."""
    share: MissShare
    """Share of all attempts that ended in the window, cancelled ones left out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FailureTotal:
    """Failures of one class in all levels together."""

    failure: FailureClass
    count: int
    requests: int
    """Requests that ended in the windows of all levels, cancelled ones left out."""
    words: str | None
    by_users: list[tuple[int, int, int]]
    """(users, failures, requests) at each number of users, in rising order."""
    cause: Cause

    @property
    def seen_at(self) -> list[int]:
        """Numbers of users at which the failures were seen, in rising order."""
        return [users for users, count, _ in self.by_users if count]


def class_codes(rows: Requests) -> Ints:
    """Returns a number for the class of each request, shape (n,); `class_of` tells what it stands for."""
    refused = rows.with_outcome(Outcome.HTTP_ERROR)
    status = np.where(refused, np.nan_to_num(rows.http_status), 0.0).astype(np.int64)
    return rows.outcome * _STATUSES + status


def class_of(code: int) -> FailureClass:
    """Returns the class of failures for a number of `class_codes`."""
    outcome, status = divmod(code, _STATUSES)
    return FailureClass(outcome=OUTCOMES[outcome], http_status=status or None)


def code_of(failure: FailureClass) -> int:
    """Returns the number of `class_codes` for a class of failures."""
    return OUTCOME_CODES[failure.outcome] * _STATUSES + (failure.http_status or 0)


def not_of_load(rows: Requests, not_load: frozenset[FailureClass]) -> Bools:
    """Returns, for each request, whether it failed for a reason that is not the load, shape (n,).

    not_load: classes that were seen not to depend on the load, besides those that never do.
    """
    codes = class_codes(rows)
    harmless = [
        code
        for code in np.unique(codes[rows.failed])
        if (failure := class_of(int(code))) in not_load or not failure.may_be_overload
    ]
    return rows.failed & np.isin(codes, harmless)


def words_of(rows: Requests, chosen: Bools) -> str | None:
    """Returns the most frequent error text of the chosen requests; None without any."""
    codes = rows.error[chosen]
    codes = codes[codes != NO_ERROR_TEXT]
    return rows.error_texts[int(np.bincount(codes).argmax())] if len(codes) else None


FailureWindow = tuple[int, int, Sequence[FailureCount]]
"""Users of a level, requests that ended in its window, and the failures among them."""


def failure_totals(
    windows: Sequence[FailureWindow], *, judged_by: Sequence[FailureWindow]
) -> list[FailureTotal]:
    """Adds up the failures of levels by class; the most frequent class comes first.

    judged_by: the levels that tell whether load causes a class.
    """
    classes = {one.failure for _, _, counts in windows for one in counts}
    found = [_total(failure, windows, judged_by) for failure in classes]
    return sorted(found, key=lambda one: (-one.count, one.failure.outcome, one.failure.http_status or 0))


def failures_without_levels(runs: Sequence[Requests]) -> list[FailureTotal]:
    """Returns the failures of runs that have no levels, by class; the most frequent class comes first."""
    counts: dict[FailureClass, int] = {}
    words: dict[FailureClass, str | None] = {}
    for rows in runs:
        codes = class_codes(rows)
        for code, count in zip(*np.unique(codes[rows.failed], return_counts=True), strict=True):
            failure = class_of(int(code))
            counts[failure] = counts.get(failure, 0) + int(count)
            words[failure] = words.get(failure) or words_of(rows, rows.failed & (codes == code))
    ended = sum(int((~rows.with_outcome(Outcome.CANCELLED)).sum()) for rows in runs)
    return [
        FailureTotal(
            failure=failure,
            count=count,
            requests=ended,
            words=words[failure],
            by_users=[],
            cause="load" if failure.http_status == RATE_LIMITED else "unclear",
        )
        for failure, count in sorted(counts.items(), key=lambda pair: -pair[1])
    ]


def _total(
    failure: FailureClass, windows: Sequence[FailureWindow], judged_by: Sequence[FailureWindow]
) -> FailureTotal:
    mine = [one for _, _, counts in windows for one in counts if one.failure == failure]
    words: Counter[str] = Counter()
    for one in mine:
        if one.words:
            words[one.words] += one.count
    by_users = _by_users(failure, windows)
    effect = max(one.share.effect for one in mine)
    return FailureTotal(
        failure=failure,
        count=sum(one.count for one in mine),
        requests=sum(requests for _, _, requests in by_users),
        words=words.most_common(1)[0][0] if words else None,
        by_users=by_users,
        cause=cause_of(failure, _by_users(failure, judged_by, attempts=True), effect),
    )


def _by_users(
    failure: FailureClass, windows: Sequence[FailureWindow], *, attempts: bool = False
) -> list[tuple[int, int, int]]:
    """Returns (users, failures of the class, requests) at each number of users, in rising order.

    attempts: whether a failure with a long pause counts for several.
    """
    found: dict[int, list[int]] = {}
    for users, requests, counts in windows:
        at = found.setdefault(users, [0, 0])
        mine = [one for one in counts if one.failure == failure]
        at[0] += sum(one.share.misses if attempts else one.count for one in mine)
        at[1] += requests
    return [(users, count, requests) for users, (count, requests) in sorted(found.items())]


def cause_of(failure: FailureClass, by_users: Sequence[tuple[int, int, int]], effect: float = 1.0) -> Cause:
    """Tells whether load causes a class of failures.

    by_users: (users, failed attempts, requests) at each number of users, in rising order. effect: design
    effect of the failures, by which both counts are divided.

    Levels are cut into a lower and an upper part at each place. Fisher's exact test says whether the upper
    part has a significantly larger share of failures; the level of significance is divided by the number of
    places. Without a significant rise, load is not the cause if a level below the highest shows the class as
    well, or if there is no level below it and that level has one user.
    """
    if not failure.may_be_overload:
        return "not load"
    if failure.http_status == RATE_LIMITED:
        return "load"
    failed = np.array([count for _, count, _ in by_users], dtype=np.float64) / effect
    passed = np.array([requests - count for _, count, requests in by_users], dtype=np.float64) / effect
    places = len(by_users) - 1
    if any(_rises(failed, passed, cut) < RISE_P / places for cut in range(1, places + 1)):
        return "load"
    seen_below = any(count for _, count, _ in by_users[:-1])
    return "not load" if seen_below or by_users[-1][0] == 1 else "unclear"


def _rises(failed: Floats, passed: Floats, cut: int) -> float:
    """Returns the p value of Fisher's exact test that levels from `cut` on fail more often than others."""
    table = [[failed[cut:].sum(), passed[cut:].sum()], [failed[:cut].sum(), passed[:cut].sum()]]
    return float(stats.fisher_exact(np.rint(table), alternative="greater").pvalue)
