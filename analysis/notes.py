"""Reasons, doubts and warnings as codes with values; `analysis.reporting.words` says each as a sentence."""

from typing import Literal

import msgspec


class Note(msgspec.Struct, kw_only=True):
    """Something that a person must be told. The subclass is the code, its fields are the values."""


class PlainSentence(Note):
    """A sentence that was written where it was noticed: by the load test, or by a reader of files."""

    sentence: str


# Why a level is not trusted.


class NotSteady(Note):
    """Request durations or KV usage drift in every window that was tried."""


class TooFewRequests(Note):
    """Too few requests ended in the window."""

    ended: int
    needed: int


class GeneratorLate(Note):
    """The event loop that stamps the times ran late."""

    lag_s: float
    limit_s: float


class GeneratorBusy(Note):
    """The load generator used nearly all of its core."""

    cpu: float
    """Share of one core."""
    limit: float


class ClientErrors(Note):
    """Requests failed on the load generator's side."""

    failed: int
    ended: int


class LoadNotReached(Note):
    """Fewer requests were in flight than there were users."""

    in_flight: float
    users: int


class TooMuchLoad(Note):
    """More requests were in flight than there were users."""

    in_flight: float
    users: int


class LittlesLawOff(Note):
    """Request rate times request duration is not what was in flight."""

    off: float
    """Relative difference."""


class TokensDisagree(Note):
    """The server counted other tokens than the rows hold, over the whole run."""

    off: float
    """Relative difference; positive where the server counted more."""


class ForeignLoad(Note):
    """The server held requests that the load test did not send."""

    requests: float


# Why there is no answer.


class NoRequests(Note):
    """The run holds no request."""


class NoSuccess(Note):
    """Every request failed."""


class OpenLoop(Note):
    """Requests came when they were due, so there are no users to count."""


class NoLevels(Note):
    """No level was longer than its settling time."""


class NoTrustedLevel(Note):
    """Every level has a doubt."""

    why: list[Note]


class PastWallAtLowest(Note):
    """The lowest trusted level is past a wall already."""

    users: int
    wall: str


# Warnings.


class NotPooled(Note):
    """Runs of the same model that were left out, because they are of another deployment or workload."""

    run_ids: list[str]
    differing: list[str]


class SimulatorLate(Note):
    """The embedded server sent tokens late itself."""

    late_s: float
    """Median over scrapes of how late a token was."""


class PoolUnknown(Note):
    """The server's metrics did not say how many KV blocks it has."""


class TooFewLengths(Note):
    """Too few finished requests carried token counts to place the memory wall."""

    needed: int


class SpreadOverEngines(Note):
    """Users are taken as spread evenly over equal pools."""

    engines: int


class GaugeDisagrees(Note):
    """The server's gauge and the requests' lengths tell of different KV use."""

    off: float
    """Relative difference; positive where the gauge shows more."""


class Lockstep(Note):
    """Output lengths hardly vary."""

    cv: float


class HeavyTail(Note):
    """Output lengths vary so much that the requests are few."""

    cv: float
    requests: int
    needed: int


class SeedRepeated(Note):
    """Pooled runs drew the same lengths."""


class LevelsNotTrusted(Note):
    """Levels that were left out, all for the same doubts."""

    users: list[int]
    why: list[Note]


class Extrapolated(Note):
    """The wall stands outside of the trusted levels."""

    wall: str
    side: Literal["above", "below"]
    users: int
    """The nearest trusted level."""


class FormulaAlone(Note):
    """No trusted level near the memory wall counted preemptions."""


class SentLate(Note):
    """An open loop's requests were sent later than they were due."""

    run_id: str
    late_p99_s: float
    limit_s: float
    due_p95_s: float | None
    """TTFT from due."""
    sent_p95_s: float | None
    """TTFT from sent."""


# Changes of the deployment that would move the answer.


class RaiseMemoryUtilization(Note):
    """Give vLLM a larger share of the GPU's memory."""

    to: float
    now: float


class LargerPool(Note):
    """Give the KV cache more memory, by a share of what it has."""

    by: float


class Fp8Cache(Note):
    """Store keys and values in eight bits."""


class ShorterContext(Note):
    """Cut requests that are longer than nearly all."""

    max_model_len: int
    cut_share: float


class OffloadHistories(Note):
    """Keep evicted histories in the host's memory."""


class ShorterHistories(Note):
    """Send less of each conversation back."""


class RaiseMaxNumSeqs(Note):
    """Let more requests into the batch."""


class LighterWork(Note):
    """Ask less of each step, or accept more time."""


class SecondReplica(Note):
    """Run the server twice."""

    keep_conversations: bool
    """Each conversation must return to the replica that has its history."""
