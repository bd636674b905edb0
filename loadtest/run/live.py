"""Counts of a level while it runs, and whether the level is past a wall (a limit, such as the TTFT
objective). Compares shares (such as the share of requests that miss an objective) with fixed thresholds,
without statistics. Knows neither Locust nor the time."""

import math
from collections import Counter
from typing import NamedTuple

from loadtest.record import Outcome, RequestRecord, ServerSample, Slo

MISS_SHARE = 0.05
"""A p95 objective is missed if more than this share of the requests miss it."""
FAR_PAST_WALL_SHARE = 0.5
"""A level is far past a wall if more than this share of its requests miss an objective, or fail."""
BIN_WIDTH = 0.02
"""Width of a bin, in ln seconds: percentiles shown while the test runs are exact to half of it, 1 %."""
SMALLEST_S = 1e-6
"""Shorter times count as this many seconds, because 0 has no logarithm."""
MIN_VERDICT_REQUESTS = 20
"""Requests that a verdict on a p95 needs: among fewer, a single slow one would be more than 5 %."""


class LiveRow(NamedTuple):
    """The part of a RequestRecord that the leader needs while the test runs."""

    end_unix_s: float
    ttft_s: float | None
    """Time to the first token; None if no token came."""
    tpot_s: float | None
    """Time per output token after the first; None with fewer than two tokens."""
    outcome: str


def live_row(record: RequestRecord) -> LiveRow:
    """Builds the LiveRow of one request. TTFT counts from the end of sending; TPOT is the mean over the
    tokens after the first."""
    chunks, tokens = record.chunk_s, record.output_tokens
    ttft = chunks[0] - (record.sent_s or 0.0) if chunks else None
    tpot = (chunks[-1] - chunks[0]) / (tokens - 1) if tokens and tokens > 1 and len(chunks) > 1 else None
    return LiveRow(record.start_unix_s + record.end_s, ttft, tpot, record.outcome.value)


class _Tally:
    """Counts the values of one objective (TTFT or TPOT) and the values that miss it, and estimates their p95
    to 1 %. Keeps counts in bins instead of values, because a level may have a million requests."""

    def __init__(self, objective_s: float) -> None:
        self.objective_s = objective_s
        self.count = 0
        self.misses = 0
        self._bins: Counter[int] = Counter()

    def add(self, value_s: float | None) -> None:
        if value_s is None:
            return
        self.count += 1
        self.misses += value_s > self.objective_s
        self._bins[math.floor(math.log(max(value_s, SMALLEST_S)) / BIN_WIDTH)] += 1

    @property
    def miss_share(self) -> float:
        return self.misses / self.count if self.count >= MIN_VERDICT_REQUESTS else 0.0

    def p95_s(self) -> float | None:
        below = 0
        for number in sorted(self._bins):
            below += self._bins[number]
            if below >= 0.95 * self.count:
                return math.exp((number + 0.5) * BIN_WIDTH)
        return None


class LiveLevel:
    """Counts of one level so far. The level has a constant number of users, or is an open loop (users: None).
    `add` and `add_sample` may run on two threads, because they write different attributes."""

    def __init__(self, *, users: int | None, start_unix_s: float, settle_s: float, slo: Slo) -> None:
        self.users = users
        self.start_unix_s = start_unix_s
        self.end_unix_s = start_unix_s
        self.requests = 0
        self.errors = 0
        self._slo = slo
        self._from_unix_s = start_unix_s + settle_s
        self._ttft = _Tally(slo.ttft_p95_s)
        self._tpot = _Tally(slo.tpot_p95_s)
        self._first: ServerSample | None = None
        self.last_sample: ServerSample | None = None
        self._samples = 0
        self._blocked = 0

    def add(self, row: LiveRow) -> None:
        """Counts a request that has ended. Ignores cancelled requests, and requests that ended in the
        settling time at the level's start."""
        if row.end_unix_s < self._from_unix_s or row.outcome == Outcome.CANCELLED:
            return
        self.requests += 1
        self.errors += row.outcome not in (Outcome.OK, Outcome.EMPTY)
        self._ttft.add(row.ttft_s)
        self._tpot.add(row.tpot_s)

    def add_sample(self, sample: ServerSample) -> None:
        """Counts a sample of the server. Ignores failed samples, and samples from the settling time at the
        level's start."""
        if sample.error is not None or sample.unix_s < self._from_unix_s:
            return
        self._first = self._first or sample
        self.last_sample = sample
        self._samples += 1
        queue = sample.waiting if sample.waiting_capacity is None else sample.waiting_capacity
        self._blocked += bool(queue)

    def ttft_p95_s(self) -> float | None:
        return self._ttft.p95_s()

    def tpot_p95_s(self) -> float | None:
        return self._tpot.p95_s()

    def past_wall(self) -> str | None:
        """Returns, in words, the first limit that this level is past; None if it is past no limit."""
        slo = self._slo
        walls = [
            (self._errors_share() > 0.01, "more than 1 % of the requests failed"),
            (self._ttft.miss_share > MISS_SHARE, f"TTFT p95 is above {slo.ttft_p95_s:g} s"),
            (self._tpot.miss_share > MISS_SHARE, f"TPOT p95 is above {slo.tpot_p95_s:g} s"),
            (self._preempted() > slo.preempted_fraction, "too many requests were preempted"),
            (self._blocked_share() > slo.kv_blocked_fraction, "requests had to wait in the server's queue"),
        ]
        return next((words for past, words in walls if past), None)

    def far_past_wall(self) -> str | None:
        """Returns, in words, why a test of more users would show nothing new: more than half of the requests
        failed or missed an objective. None if neither is true."""
        if self._errors_share() > FAR_PAST_WALL_SHARE:
            return "more than half of the requests failed"
        if max(self._ttft.miss_share, self._tpot.miss_share) > FAR_PAST_WALL_SHARE:
            return "more than half of the requests missed an objective"
        return None

    def _errors_share(self) -> float:
        return self.errors / self.requests if self.requests >= 5 else 0.0

    def _preempted(self) -> float:
        first, last = self._first, self.last_sample
        if first is None or last is None or not self.requests:
            return 0.0
        if first.preemptions_total is None or last.preemptions_total is None:
            return 0.0
        return (last.preemptions_total - first.preemptions_total) / self.requests

    def _blocked_share(self) -> float:
        return self._blocked / self._samples if self._samples >= 5 else 0.0
