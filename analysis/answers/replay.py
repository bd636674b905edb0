"""How faithful a replay of recorded sessions was."""

import msgspec


class LengthsOff(msgspec.Struct, kw_only=True, frozen=True):
    """How far lengths are from those that were recorded, over the requests for which both are known."""

    requests: int
    longer: int
    """Requests that had more tokens than recorded."""
    shorter: int
    mean_ratio: float
    """Tokens of all these requests, divided by the recorded tokens."""
    off_p95: float
    """95th percentile of the difference, as a share of the recorded length."""


class ReplayAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """How faithful the replay was, over all requests of the runs that succeeded."""

    files: list[str]
    """Names of the files of sessions, without their folders."""
    format: str
    history: str
    """Whose answers were sent back: `server` or `recorded`."""
    times: str
    """When turns were sent: after their `pauses`, or at their `recorded` times."""
    sessions: int
    """Sessions of the files, and next those that ended early because of the model's context."""
    too_long: int
    begun_again: int
    """Times that a file was sent to its end and begun again."""
    requests: int
    late: int
    """Turns that were sent later than they were due."""
    late_p95_s: float | None
    """95th percentile of their lateness in seconds; null if no turn was late."""
    answers: LengthsOff | None
    """Null if the file does not state the tokens of answers, and likewise for prompts."""
    prompts: LengthsOff | None
    hit_rate: float | None
    """Share of the prompt tokens that the server found in its prefix cache; null where it does not say."""
    hit_rate_unbounded: float | None
    """Share that a cache without a limit would have found in what was sent; null without token counts."""
