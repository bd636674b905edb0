"""What the person sees while a level runs, and whether it is past a wall: counts against the objectives, no
statistics. Knows no Locust and no clock."""

import math
from collections import Counter
from typing import NamedTuple

from loadtest.record import Outcome, RequestRecord, ServerSample, Slo

MISS_SHARE = 0.05
"""A p95 objective is broken when more than this share of the requests misses it."""
HOPELESS_SHARE = 0.5
"""Far past a wall, or a failing server: more than half of the requests miss or fail."""
BIN_WIDTH = 0.02
"""In ln seconds: what is shown while the test runs is right to 2 %."""
SMALLEST_S = 1e-6
MIN_REQUESTS = 20
"""Below this, one slow request is 5 % of the level: no verdict on a p95."""


class LiveRow(NamedTuple):
    """The little of a RequestRecord that the master needs while the test runs."""

    end_unix_s: float
    ttft_s: float | None
    tpot_s: float | None
    outcome: str


def live_row(record: RequestRecord) -> LiveRow:
    chunks, tokens = record.chunk_s, record.output_tokens
    ttft = chunks[0] - (record.sent_s or 0.0) if chunks else None
    tpot = (chunks[-1] - chunks[0]) / (tokens - 1) if tokens and tokens > 1 and len(chunks) > 1 else None
    return LiveRow(record.start_unix_s + record.end_s, ttft, tpot, record.outcome.value)


class _Tally:
    """One objective's values: how many, how many miss it, and their p95 to 2 %. Of constant size, because a
    level may have a million requests."""

    def __init__(self, limit_s: float) -> None:
        self.limit_s = limit_s
        self.count = 0
        self.misses = 0
        self._bins: Counter[int] = Counter()

    def add(self, value_s: float | None) -> None:
        if value_s is None:
            return
        self.count += 1
        self.misses += value_s > self.limit_s
        self._bins[math.floor(math.log(max(value_s, SMALLEST_S)) / BIN_WIDTH)] += 1

    @property
    def miss_share(self) -> float:
        return self.misses / self.count if self.count >= MIN_REQUESTS else 0.0

    def p95_s(self) -> float | None:
        below = 0
        for number in sorted(self._bins):
            below += self._bins[number]
            if below >= 0.95 * self.count:
                return math.exp((number + 0.5) * BIN_WIDTH)
        return None


class LiveLevel:
    """One plateau of constant users, or an open loop (no users), as far as it is known now."""

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
        if row.end_unix_s < self._from_unix_s or row.outcome == Outcome.CANCELLED:
            return
        self.requests += 1
        self.errors += row.outcome not in (Outcome.OK, Outcome.EMPTY)
        self._ttft.add(row.ttft_s)
        self._tpot.add(row.tpot_s)

    def add_sample(self, sample: ServerSample) -> None:
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
        """The wall that this level is past, in words, or None."""
        slo = self._slo
        found = [
            (self._errors_share() > 0.01, "more than 1 % of the requests failed"),
            (self._ttft.miss_share > MISS_SHARE, f"TTFT p95 is above {slo.ttft_p95_s:g} s"),
            (self._tpot.miss_share > MISS_SHARE, f"TPOT p95 is above {slo.tpot_p95_s:g} s"),
            (self._preempted() > slo.preempted_fraction, "too many requests were preempted"),
            (self._blocked_share() > slo.kv_blocked_fraction, "requests had to wait for a place"),
        ]
        return next((words for past, words in found if past), None)

    def hopeless(self) -> str | None:
        """Why going further would tell nothing: the server fails, or the level is far past a wall."""
        if self._errors_share() > HOPELESS_SHARE:
            return "more than half of the requests failed"
        if max(self._ttft.miss_share, self._tpot.miss_share) > HOPELESS_SHARE:
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


def describe(level: LiveLevel) -> str:
    """`8 users: TTFT p95 0.21 s, TPOT p95 21 ms, KV 43 %, 143 requests, 0 errors`."""
    ttft, tpot, sample = level.ttft_p95_s(), level.tpot_p95_s(), level.last_sample
    parts = [
        f"TTFT p95 {ttft:.2f} s" if ttft is not None else "TTFT -",
        f"TPOT p95 {tpot * 1000:.0f} ms" if tpot is not None else "TPOT -",
        f"KV {sample.kv_cache_usage:.0%}" if sample and sample.kv_cache_usage is not None else "KV -",
        f"{level.requests} requests",
        f"{level.errors} errors",
    ]
    title = "open loop" if level.users is None else f"{level.users} users"
    return f"{title}: {', '.join(parts)}"


def minutes_and_seconds(seconds: float) -> str:
    """`1:05`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"
