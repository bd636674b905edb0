"""What the person sees while a level runs, and whether it is past a wall: counts against the objectives, no
statistics. Knows no Locust and no clock."""

from typing import NamedTuple

from loadtest.record import Outcome, RequestRecord, ServerSample, Slo

MISS_SHARE = 0.05
"""A p95 objective is broken when more than this share of the requests misses it."""
HOPELESS_SHARE = 0.5
"""Far past a wall, or a failing server: more than half of the requests miss or fail."""
FEWEST_REQUESTS = 20
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


class Level:
    """One plateau of constant users, or an open loop (no users), as far as it is known now."""

    def __init__(self, *, users: int | None, start_unix_s: float, settle_s: float) -> None:
        self.users = users
        self.start_unix_s = start_unix_s
        self.end_unix_s = start_unix_s
        self._from_unix_s = start_unix_s + settle_s
        self._rows: list[LiveRow] = []
        self._first: ServerSample | None = None
        self.last_sample: ServerSample | None = None
        self._samples = 0
        self._blocked = 0

    def add(self, row: LiveRow) -> None:
        if row.end_unix_s >= self._from_unix_s and row.outcome != Outcome.CANCELLED:
            self._rows.append(row)

    def add_sample(self, sample: ServerSample) -> None:
        if sample.error is not None or sample.unix_s < self._from_unix_s:
            return
        self._first = self._first or sample
        self.last_sample = sample
        self._samples += 1
        queue = sample.waiting if sample.waiting_capacity is None else sample.waiting_capacity
        self._blocked += bool(queue)

    @property
    def requests(self) -> int:
        return len(self._rows)

    @property
    def errors(self) -> int:
        return sum(row.outcome not in (Outcome.OK, Outcome.EMPTY) for row in self._rows)

    def ttft_p95_s(self) -> float | None:
        return _p95([row.ttft_s for row in self._rows if row.ttft_s is not None])

    def tpot_p95_s(self) -> float | None:
        return _p95([row.tpot_s for row in self._rows if row.tpot_s is not None])

    def past_wall(self, slo: Slo) -> str | None:
        """The wall that this level is past, in words, or None."""
        found = [
            (self._errors_share() > 0.01, "more than 1 % of the requests failed"),
            (self._miss_share(slo, "ttft") > MISS_SHARE, f"TTFT p95 is above {slo.ttft_p95_s:g} s"),
            (self._miss_share(slo, "tpot") > MISS_SHARE, f"TPOT p95 is above {slo.tpot_p95_s:g} s"),
            (self._preempted() > slo.preempted_fraction, "too many requests were preempted"),
            (self._blocked_share() > slo.kv_blocked_fraction, "requests had to wait for a place"),
        ]
        return next((words for past, words in found if past), None)

    def hopeless(self, slo: Slo) -> str | None:
        """Why going further would tell nothing: the server fails, or the level is far past a wall."""
        if self._errors_share() > HOPELESS_SHARE:
            return "more than half of the requests failed"
        if max(self._miss_share(slo, "ttft"), self._miss_share(slo, "tpot")) > HOPELESS_SHARE:
            return "more than half of the requests missed an objective"
        return None

    def _errors_share(self) -> float:
        return self.errors / len(self._rows) if len(self._rows) >= 5 else 0.0

    def _miss_share(self, slo: Slo, what: str) -> float:
        limit = slo.ttft_p95_s if what == "ttft" else slo.tpot_p95_s
        values = [row.ttft_s if what == "ttft" else row.tpot_s for row in self._rows]
        known = [value for value in values if value is not None]
        return sum(value > limit for value in known) / len(known) if len(known) >= FEWEST_REQUESTS else 0.0

    def _preempted(self) -> float:
        first, last = self._first, self.last_sample
        if first is None or last is None or not self._rows:
            return 0.0
        if first.preemptions_total is None or last.preemptions_total is None:
            return 0.0
        return (last.preemptions_total - first.preemptions_total) / len(self._rows)

    def _blocked_share(self) -> float:
        return self._blocked / self._samples if self._samples >= 5 else 0.0


def _p95(values: list[float]) -> float | None:
    return sorted(values)[int(0.95 * (len(values) - 1))] if values else None


def describe(level: Level) -> str:
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


def clock(seconds: float) -> str:
    """`1:05`."""
    minutes, rest = divmod(max(0, round(seconds)), 60)
    return f"{minutes}:{rest:02d}"
