"""Finds the times in which the server was away, from the requests that end while the test runs. Knows neither
levels nor clocks."""

from collections import Counter

from loadtest.record import Outcome
from loadtest.run.live.rows import LiveRow

MIN_ABSENCE_S = 1.0
"""Shortest time between two failed requests, with no success, that counts as an absence."""
REPORTED_S = 2.0
"""Seconds after which the end of every request was reported: workers report each second."""
LOST_AFTER_S = 45.0
"""Seconds of absence after which the server is not waited for any longer: with the streams that still end,
the run then ends within a minute."""
LAST_TRY_S = 30.0
"""Seconds of absence after which at least one more request must have failed before the server is given up:
users pause up to 30 s after failures, so a server may have come back unseen."""
_GATEWAY_STATUSES = frozenset({502, 503, 504})
"""Statuses by which a gateway says that the server behind it does not answer."""


class AbsenceWatch:
    """Finds absences: at least MIN_ABSENCE_S in which requests failed because nobody answered (no connection,
    a lost connection, or a gateway's 502, 503 or 504) and the server answered no request in any other way.

    An absence lasts from the first of these failures to the sending of the first request that was answered. A
    server that turns some requests away while it serves others is not away, nor is one that answers 429.
    """

    def __init__(self) -> None:
        self.away: list[tuple[float, float]] = []
        """One (from_unix_s, to_unix_s) for each absence that has ended."""
        self.since_unix_s: float | None = None
        """When the present absence began; None while the server answers."""
        self.calm_unix_s = 0.0
        """When the last pause ends that users make because of failures in an absence."""
        self.kinds: Counter[str] = Counter()
        """Failures of the present absence, or of the last one, by kind."""
        self._answered_until = 0.0
        self._answered: list[tuple[float, float]] = []
        self._failed: list[LiveRow] = []

    def add(self, row: LiveRow) -> None:
        """Takes the end of a request."""
        if _is_unanswered(row) or _is_broken(row):
            self._failed.append(row)
        is_answered = row.outcome in (Outcome.OK, Outcome.EMPTY, Outcome.HTTP_ERROR)
        heard = row.end_unix_s if is_answered and not _is_unanswered(row) else row.heard_unix_s
        if heard is not None:
            self.hear(heard if row.sent_unix_s is None else row.sent_unix_s, heard)

    def hear(self, from_unix_s: float, to_unix_s: float) -> None:
        """Notes that the server was working on a request from the one time to the other."""
        if to_unix_s > self._answered_until:
            self._answered.append((from_unix_s, to_unix_s))

    def look(self, now_unix_s: float) -> None:
        """Judges all requests that ended up to REPORTED_S seconds before `now_unix_s`."""
        until = now_unix_s - REPORTED_S
        self._answered.sort()
        self._failed.sort(key=lambda row: row.end_unix_s)
        while self._answered and self._answered[0][0] <= until:
            begin, end = self._answered.pop(0)
            since = self._absence_before(begin)
            if since is not None:
                self.away.append((since, begin))
            self._answered_until = max(self._answered_until, end)
        self._failed = [row for row in self._failed if row.end_unix_s > self._answered_until]
        self.since_unix_s = self._absence_before(until)

    def is_unclear(self, unix_s: float) -> bool:
        """Whether requests that failed up to this time may turn out to be the beginning of an absence."""
        return any(row.end_unix_s <= unix_s for row in self._failed)

    def spans(self, now_unix_s: float) -> list[tuple[float, float]]:
        """Returns all absences; the present one ends now."""
        present = [] if self.since_unix_s is None else [(self.since_unix_s, now_unix_s)]
        return [*self.away, *present]

    def is_lost(self, now_unix_s: float) -> bool:
        """Whether the server has stayed away for so long that it is not waited for any longer."""
        since = self.since_unix_s
        if since is None or now_unix_s - since < LOST_AFTER_S:
            return False
        return any(row.end_unix_s - since >= LAST_TRY_S for row in self._failed)

    def _absence_before(self, unix_s: float) -> float | None:
        """Returns when an absence began, from the failures since the last answer; None if they show none."""
        failed = [row for row in self._failed if self._answered_until < row.end_unix_s <= unix_s]
        if not any(map(_is_unanswered, failed)):
            return None
        if failed[-1].end_unix_s - failed[0].end_unix_s < MIN_ABSENCE_S:
            return None
        self.kinds = Counter(row.kind for row in failed)
        self.calm_unix_s = max(row.end_unix_s + (row.pause_s or 0.0) for row in failed)
        return failed[0].end_unix_s


def _is_unanswered(row: LiveRow) -> bool:
    """Whether nobody answered: no connection, a lost connection, or a gateway without a server."""
    if row.outcome == Outcome.HTTP_ERROR:
        return row.http_status in _GATEWAY_STATUSES
    return row.outcome in (Outcome.CONNECT_ERROR, Outcome.DISCONNECTED)


def _is_broken(row: LiveRow) -> bool:
    """Whether an answer broke off, as all do when the server goes away."""
    return row.outcome in (Outcome.STREAM_ERROR, Outcome.TRUNCATED)
