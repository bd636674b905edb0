"""Notices that the server lets nobody in any more, for example because a key has expired. Knows no levels."""

from collections import Counter

from loadtest.record import Outcome
from loadtest.run.live.rows import LiveRow

MIN_REFUSED = 4
"""Refused requests that it takes to say that the server refuses all."""
MIN_REFUSED_S = 2.0
"""Seconds between the first and the last of them: longer than a front end needs to learn of a new key."""
_STATUSES = frozenset({401, 403})
"""Statuses by which a server says that this client may not ask, whatever it asks."""


class RefusalWatch:
    """Counts requests in a row that were refused with 401 or 403."""

    def __init__(self) -> None:
        self.kinds: Counter[str] = Counter()
        """The refused requests since the last success, by status."""
        self.words = ""
        """What the server said with the last of them."""
        self._first_unix_s = 0.0
        self._last_unix_s = 0.0

    def add(self, row: LiveRow) -> None:
        """Takes the end of a request. A request that was sent before the first refusal proves nothing if it
        succeeds later."""
        if row.outcome == Outcome.OK and (row.sent_unix_s or 0.0) > self._first_unix_s:
            self.kinds.clear()
        elif row.http_status in _STATUSES:
            if not self.kinds:
                self._first_unix_s = row.end_unix_s
            self.kinds[row.kind] += 1
            self._last_unix_s = row.end_unix_s
            self.words = row.error or self.words

    @property
    def is_final(self) -> bool:
        """Whether the server has refused all requests for so long that more of them are useless."""
        lasted_s = self._last_unix_s - self._first_unix_s
        return self.kinds.total() >= MIN_REFUSED and lasted_s >= MIN_REFUSED_S
