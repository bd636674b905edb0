"""What is known of a level while it runs, and whether it is past a wall: counts against the objectives, no
statistics. Knows neither Locust nor the time."""

import math
from collections import Counter
from typing import NamedTuple

from loadtest.record import Outcome, RequestRecord, ServerSample, Slo

MISS_SHARE = 0.05
"""A p95 objective is missed when more than this share of the requests misses it."""
FAR_PAST_WALL_SHARE = 0.5
"""Far past a wall, or a failing server: more than half of the requests miss or fail."""
BIN_WIDTH = 0.02
"""The width of a bin, in ln seconds: percentiles that are shown while the test runs are right to 2 %."""
SMALLEST_S = 1e-6
MIN_VERDICT_REQUESTS = 20
"""With fewer requests, one slow one is 5 % of the level: no verdict on a p95."""


class LiveRow(NamedTuple):
    """The little of a RequestRecord that the leader needs while the test runs."""

    end_unix_s: float
    ttft_s: float | None
    tpot_s: float | None
    outcome: str


def live_row(record: RequestRecord) -> LiveRow:
    """What the leader counts of one request; TTFT from the end of sending, TPOT over the tokens after the
    first."""
    chunks, tokens = record.chunk_s, record.output_tokens
    ttft = chunks[0] - (record.sent_s or 0.0) if chunks else None
    tpot = (chunks[-1] - chunks[0]) / (tokens - 1) if tokens and tokens > 1 and len(chunks) > 1 else None
    return LiveRow(record.start_unix_s + record.end_s, ttft, tpot, record.outcome.value)


class _Tally:
    """One objective's values: how many, how many miss it, and their p95 to 2 %. Its size is constant, because
    a level may have a million requests."""

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
    """One level of constant users, or an open loop (no users), as far as it is known now. `add` and
    `add_sample` may run on two threads: they write different attributes."""

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
        """Counts a request that has ended, unless it ended while the level settled."""
        if row.end_unix_s < self._from_unix_s or row.outcome == Outcome.CANCELLED:
            return
        self.requests += 1
        self.errors += row.outcome not in (Outcome.OK, Outcome.EMPTY)
        self._ttft.add(row.ttft_s)
        self._tpot.add(row.tpot_s)

    def add_sample(self, sample: ServerSample) -> None:
        """Counts a sample of the server, unless it was taken while the level settled."""
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
        """The first wall that this level is past, in words; None when it is past none."""
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
        """Why more users would tell nothing (the server fails, or the level is far past a wall); None when
        they would tell something."""
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
