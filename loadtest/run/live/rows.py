"""What the leader is told of each request that has ended. Knows no level."""

from operator import sub
from typing import NamedTuple

from loadtest.record import Outcome, RequestRecord, failure_kind, has_failed, may_be_overload

MAX_WORDS = 200
"""Characters of an error that the leader is told."""


class LiveRow(NamedTuple):
    """The part of a RequestRecord that the leader needs while the test runs."""

    end_unix_s: float
    ttft_s: float | None
    """Time to the first token; None if no token came."""
    tpot_s: float | None
    """Time per output token after the first; None with fewer than two tokens."""
    outcome: str
    http_status: int | None = None
    waited_s: float | None = None
    """Time for which a failed request had waited for its first token when it ended; else None."""
    sent_unix_s: float | None = None
    """When the request was sent; None if it never was."""
    heard_unix_s: float | None = None
    """When the last token came; None if none came."""
    pause_s: float | None = None
    stall_s: float | None = None
    """Longest gap between two tokens; None with fewer than two."""
    user_class: str | None = None
    """Name of the user's class; None without a workload file."""
    error: str | None = None
    """What the server said, or what happened, if the request failed; at most MAX_WORDS characters."""

    @property
    def kind(self) -> str:
        """Kind of failure, such as `503` or `timeout`; `ok` if the request succeeded."""
        return failure_kind(Outcome(self.outcome), self.http_status)

    @property
    def failed(self) -> bool:
        return has_failed(Outcome(self.outcome))

    @property
    def may_be_overload(self) -> bool:
        """Whether load can be the cause of the failure."""
        return may_be_overload(Outcome(self.outcome), self.http_status)

    def moved(self, seconds: float) -> "LiveRow":
        """Returns the same row by a clock that is ahead by `seconds`."""
        sent, heard = self.sent_unix_s, self.heard_unix_s
        return self._replace(
            end_unix_s=self.end_unix_s + seconds,
            sent_unix_s=None if sent is None else sent + seconds,
            heard_unix_s=None if heard is None else heard + seconds,
        )


def live_row(record: RequestRecord) -> LiveRow:
    """Builds the LiveRow of one request. TTFT counts from the end of sending; TPOT is the mean over the
    tokens after the first."""
    chunks, start = record.chunk_s, record.start_unix_s
    sent_s = record.sent_s or 0.0
    failed = has_failed(record.outcome)
    tokens = record.output_tokens or (len(chunks) if failed else None)
    waits = failed and not chunks and record.sent_s is not None and record.outcome is not Outcome.EMPTY
    return LiveRow(
        end_unix_s=start + record.end_s,
        ttft_s=chunks[0] - sent_s if chunks else None,
        tpot_s=(chunks[-1] - chunks[0]) / (tokens - 1) if tokens and tokens > 1 and len(chunks) > 1 else None,
        outcome=record.outcome.value,
        http_status=record.http_status,
        waited_s=record.end_s - sent_s if waits else None,
        sent_unix_s=None if record.sent_s is None else start + record.sent_s,
        heard_unix_s=start + chunks[-1] if chunks else None,
        pause_s=record.pause_s,
        stall_s=max(map(sub, chunks[1:], chunks), default=None),
        user_class=record.user_class,
        error=record.error[:MAX_WORDS] if failed and record.error else None,
    )
