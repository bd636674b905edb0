"""Counts of a level while it runs, and whether the level is past a wall (a limit, such as the TTFT
objective). Compares shares (such as the share of requests that miss an objective) with fixed thresholds,
without statistics. Knows neither Locust nor the time."""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from loadtest.record import Outcome, ServerSample, Slo, UserClass
from loadtest.run.live.lateness import Lateness
from loadtest.run.live.rows import LiveRow

MISS_SHARE = 0.05
"""A p95 objective is missed if more than this share of the requests miss it."""
ERROR_SHARE = 0.01
"""A level is past the error wall if more than this share of its requests fail because of the load."""
FAR_PAST_WALL_SHARE = 0.5
"""A level is far past a wall if more than this share of its requests miss an objective, or fail."""
BIN_WIDTH = 0.02
"""Width of a bin, in ln seconds: percentiles shown while the test runs are exact to half of it, 1 %."""
SMALLEST_S = 1e-6
"""Shorter times count as this many seconds, because 0 has no logarithm."""
MIN_VERDICT_REQUESTS = 20
"""Requests that a verdict on a p95 needs: among fewer, a single slow one would be more than 5 %."""
ALIKE_SIGMAS = 2.0
"""Standard errors up to which two shares of failures count as equal."""
LIMIT_KIND = "429"
"""Kind of failure by which a server states a limit: caused by the load wherever it occurs."""


class _Tally:
    """Counts the values of one objective of latency and the values that miss it, and estimates their
    percentiles to 1 %. Keeps counts in bins and no values, because a level may have a million requests."""

    def __init__(self, objective_s: float) -> None:
        self.objective_s = objective_s
        self.count = 0
        self.misses = 0
        self._bins: Counter[int] = Counter()
        self._least_bound: int | None = None
        """Lowest bin of a value that is only known to be larger; None if there is none."""

    def add(self, value_s: float | None) -> None:
        if value_s is None:
            return
        self.count += 1
        self.misses += value_s > self.objective_s
        self._bins[_bin(value_s)] += 1

    def add_bound(self, waited_s: float | None) -> None:
        """Counts a value that is only known to be larger than `waited_s`: a miss if that is more than the
        objective, else not counted at all."""
        if waited_s is not None and waited_s > self.objective_s:
            self.add(waited_s)
            number = _bin(waited_s)
            self._least_bound = number if self._least_bound is None else min(self._least_bound, number)

    def percentile_s(self, share: float) -> tuple[float, bool] | None:
        """Returns a percentile and whether the true one may be larger; None without values."""
        below = 0
        for number in sorted(self._bins):
            below += self._bins[number]
            if below >= share * self.count:
                is_bound = self._least_bound is not None and number >= self._least_bound
                return math.exp((number + 0.5) * BIN_WIDTH), is_bound
        return None


def _stall_limit_s(slo: Slo) -> float:
    return math.inf if slo.stall_p95_s is None else slo.stall_p95_s


def _miss_share(tallies: Iterable[_Tally]) -> float:
    """Returns the share of values that miss their objective; 0 if there are too few to say."""
    counted = [(tally.misses, tally.count) for tally in tallies]
    misses, count = (sum(each) for each in zip(*counted, strict=True))
    return misses / count if count >= MIN_VERDICT_REQUESTS else 0.0


def in_words(failures: Counter[str]) -> str:
    """Lists failures by kind, the most frequent first: `3 x 503, 1 x timeout`."""
    return ", ".join(f"{count:,} x {kind}" for kind, count in failures.most_common())


def _bin(value_s: float) -> int:
    return math.floor(math.log(max(value_s, SMALLEST_S)) / BIN_WIDTH)


class LiveLevel:
    """Counts of one level so far. The level has a constant number of users, or is an open loop (users: None).
    `add` and `add_sample` may run on two threads, because they write different attributes."""

    def __init__(
        self,
        *,
        users: int | None,
        start_unix_s: float,
        settle_s: float,
        slo: Slo,
        lower: "Sequence[LiveLevel]" = (),
        classes: Sequence[UserClass] = (),
    ) -> None:
        """lower: the levels so far with fewer users, which show what fails with less load.
        classes: those of the workload file, each judged by its own objectives; without any, all requests are
        judged together."""
        self.users = users
        self.start_unix_s = start_unix_s
        self.end_unix_s = start_unix_s
        self.requests = 0
        self.failures: Counter[str] = Counter()
        """Failed requests by kind: the HTTP status, or the outcome."""
        self.generator = Lateness()
        self.restarted = False
        """Whether the server's counters began anew during the level."""
        self._slo = slo
        self._lower = lower
        self._from_unix_s = start_unix_s + settle_s
        self._overload_kinds: set[str] = set()
        self._ttft = _Tally(slo.ttft_p95_s)
        self._tpot = _Tally(slo.tpot_p95_s)
        self._stall = _Tally(_stall_limit_s(slo))
        own = {each.name: each.objectives.over(slo) for each in classes}
        self._judged: dict[str | None, tuple[_Tally, _Tally, _Tally]] = {
            name: (_Tally(slo.ttft_p95_s), _Tally(slo.tpot_p95_s), _Tally(_stall_limit_s(slo)))
            for name, slo in own.items()
        } or {None: (self._ttft, self._tpot, self._stall)}
        """TTFT, TPOT and stalls of each class."""
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
        everyone = (self._ttft, self._tpot, self._stall)
        for ttft, tpot, stall in {everyone, self._judged.get(row.user_class, everyone)}:
            ttft.add(row.ttft_s)
            tpot.add(row.tpot_s)
            stall.add(row.stall_s)
            if row.failed:
                ttft.add_bound(row.waited_s)
        if row.failed:
            self.failures[row.kind] += 1
            if row.may_be_overload:
                self._overload_kinds.add(row.kind)

    def add_health(self, unix_s: float, worker: str, *, lag_s: float, cpu: float) -> None:
        """Counts what a worker noticed of itself. Ignores the settling time at the level's start."""
        if unix_s >= self._from_unix_s:
            self.generator.add(worker, lag_s=lag_s, cpu=cpu)

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

    @property
    def errors(self) -> int:
        """Number of failed requests."""
        return self.failures.total()

    def ttft_p95_s(self) -> tuple[float, bool] | None:
        """Returns the p95 of TTFT and whether the true one may be larger; None without values."""
        return self._ttft.percentile_s(0.95)

    def tpot_p95_s(self) -> tuple[float, bool] | None:
        """Returns the p95 of TPOT and whether the true one may be larger; None without values."""
        return self._tpot.percentile_s(0.95)

    def generator_trouble(self, *, factor: float = 1.0) -> str | None:
        """Says why this level's times are not the server's alone, such as `this machine is late: 38 ms`; None
        if there is no reason. factor: how many times the tolerated lag is tolerated here."""
        p50 = self._tpot.percentile_s(0.5)
        return self.generator.words(tpot_p50_s=p50[0] if p50 else None, factor=factor)

    def past_wall(self) -> str | None:
        """Returns, in words, the first limit that this level is past; None if it is past no limit."""
        slo = self._slo
        walls = [
            (self._overload_share() > ERROR_SHARE, f"more than 1 % of the requests failed ({self.kinds()})"),
            *self._missed(),
            (self._preempted() > slo.preempted_fraction, "too many requests were preempted"),
            (self._blocked_share() > slo.kv_blocked_fraction, "requests had to wait in the server's queue"),
        ]
        return next((words for past, words in walls if past), None)

    def _missed(self) -> Iterator[tuple[bool, str]]:
        """Yields whether an objective is missed, and in which words, for each class."""
        for name, tallies in self._judged.items():
            whose = "" if name is None else f" of class '{name}'"
            for what, tally in zip(("TTFT p95", "TPOT p95", "the p95 of stalls"), tallies, strict=True):
                yield _miss_share([tally]) > MISS_SHARE, f"{what}{whose} is above {tally.objective_s:g} s"

    def far_past_wall(self) -> str | None:
        """Returns, in words, why a test of more users would show nothing new: more than half of the requests
        failed or missed an objective. None if neither is true."""
        if self._share(self.errors) > FAR_PAST_WALL_SHARE:
            return f"more than half of the requests failed ({self.kinds()})"
        if any(
            _miss_share(tallies) > FAR_PAST_WALL_SHARE for tallies in zip(*self._judged.values(), strict=True)
        ):
            return "more than half of the requests missed an objective"
        return None

    def is_refused(self) -> bool:
        """Whether all of the level's requests failed, and none in a way that load can cause."""
        return self._share(self.errors) == 1.0 and not self._overload_kinds

    def kinds(self) -> str:
        """Lists the failed requests by kind, the most frequent first: `3 x 503, 1 x timeout`."""
        return in_words(self.failures)

    def _overload_share(self) -> float:
        """Returns the share of the requests that failed because of the load. Failures that are as frequent
        with fewer users have another cause, except a server that states a limit (429)."""
        caused = [
            count
            for kind, count in self.failures.items()
            if kind in self._overload_kinds and (kind == LIMIT_KIND or self._rises(kind, count))
        ]
        return self._share(sum(caused))

    def _rises(self, kind: str, count: int) -> bool:
        """Whether this kind of failure is more frequent here than with fewer users."""
        low_count = sum(level.failures[kind] for level in self._lower)
        low_requests = sum(level.requests for level in self._lower)
        if not low_requests:
            return False
        pooled = (count + low_count) / (self.requests + low_requests)
        error = math.sqrt(pooled * (1.0 - pooled) * (1.0 / self.requests + 1.0 / low_requests))
        return count / self.requests - low_count / low_requests > ALIKE_SIGMAS * error

    def _share(self, errors: int) -> float:
        return errors / self.requests if self.requests >= 5 else 0.0

    def _preempted(self) -> float:
        first, last = self._first, self.last_sample
        if first is None or last is None or not self.requests:
            return 0.0
        if first.preemptions_total is None or last.preemptions_total is None:
            return 0.0
        return (last.preemptions_total - first.preemptions_total) / self.requests

    def _blocked_share(self) -> float:
        return self._blocked / self._samples if self._samples >= 5 else 0.0
