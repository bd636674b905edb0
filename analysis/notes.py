"""Doubts, refusals, warnings and options as codes with values. `analysis.reporting.words` puts them into
words."""

from typing import Literal

import msgspec


class Note(msgspec.Struct, kw_only=True):
    """Something that a person must be told. The subclass is the code, and its fields are the values."""


class PlainSentence(Note):
    """A sentence that was worded where the problem was noticed: by the load test, or by a reader of files."""

    sentence: str


# Doubts: why a level is not trusted.


class NotSteady(Note):
    """Request durations or KV usage drift in every part of the level that was tried as its window."""


class TooFewRequests(Note):
    """Too few requests ended in the window."""

    ended: int
    needed: int


class GeneratorLate(Note):
    """The event loop that takes the times ran late. `lag_s` is the mean over the window."""

    lag_s: float
    limit_s: float


class GeneratorBusy(Note):
    """The load generator used nearly all of its core."""

    cpu: float
    """CPU time of the busiest worker, as a share of one core."""
    limit: float


class ClientErrors(Note):
    """Requests failed on the load generator's side: the connection failed, or the request timed out."""

    failed: int
    ended: int


class LoadNotReached(Note):
    """Requests in flight were fewer than users."""

    in_flight: float
    users: int


class TooMuchLoad(Note):
    """Requests in flight were more than users."""

    in_flight: float
    users: int


class LittlesLawOff(Note):
    """Request rate times request duration does not equal the requests in flight (Little's law)."""

    off: float
    """Relative difference from the requests in flight."""


class TokensDisagree(Note):
    """Over the whole run, the server counted a different number of output tokens than the rows hold."""

    off: float
    """Relative difference; positive where the server counted more."""


class ForeignLoad(Note):
    """The server held requests that the load test did not send. `requests` is their mean number."""

    requests: float


# Reasons to refuse: why there is no answer.


class NoRequests(Note):
    """The run holds no request."""


class NoSuccess(Note):
    """Every request failed."""


class OpenLoop(Note):
    """Requests were sent at set times (an open loop), so there are no users to count."""


class NoLevels(Note):
    """No level lasted longer than its settling time."""


class NoTrustedLevel(Note):
    """No level can be trusted. `why` lists the doubts, each once."""

    why: list[Note]


class PastWallAtLowest(Note):
    """The lowest trusted level is past a wall already, so the wall lies below all that was measured."""

    users: int
    wall: str


# Warnings.


class NotPooled(Note):
    """Runs of the same model that were left out, because they have another deployment or workload."""

    run_ids: list[str]
    differing: list[str]


class SimulatorLate(Note):
    """The embedded server itself sent tokens late."""

    late_s: float
    """Seconds by which a token was late: the median over scrapes."""


class PoolUnknown(Note):
    """The server's metrics did not say how many KV blocks it has."""


class TooFewLengths(Note):
    """Too few finished requests have known token counts, so the KV-cache wall cannot be placed."""

    needed: int


class SpreadOverEngines(Note):
    """Several engines with a pool each: users are taken as spread evenly over them."""

    engines: int


class GaugeDisagrees(Note):
    """The server's gauge of KV usage disagrees with the usage that follows from the requests' lengths."""

    off: float
    """Relative difference; positive where the gauge shows more."""


class Lockstep(Note):
    """Output lengths hardly vary, so requests begin and end together. `cv` is their coefficient of
    variation."""

    cv: float


class HeavyTail(Note):
    """Output lengths vary so much that more requests are needed. `cv` is their coefficient of variation."""

    cv: float
    requests: int
    needed: int


class SeedRepeated(Note):
    """Runs that are pooled used the same seed, so they drew the same lengths."""


class LevelsNotTrusted(Note):
    """Levels that were left out, all because of the same doubts."""

    users: list[int]
    why: list[Note]


class Extrapolated(Note):
    """The first wall lies above or below all trusted levels."""

    wall: str
    side: Literal["above", "below"]
    users: int
    """Users of the nearest trusted level."""


class FormulaAlone(Note):
    """No trusted level near the KV-cache wall measured preemptions or blocked time. Only the formula is
    left."""


class SentLate(Note):
    """In an open loop, requests were sent later than they were due."""

    run_id: str
    late_p99_s: float
    limit_s: float
    due_p95_s: float | None
    """p95 of the seconds from due to the first token; None where not known."""
    sent_p95_s: float | None
    """p95 of the seconds from sent to the first token; None where not known."""


# Options: changes of the deployment that would raise the answer.


class RaiseMemoryUtilization(Note):
    """Option: vLLM gets a larger share of the GPU's memory, `to` instead of `now`."""

    to: float
    now: float


class LargerPool(Note):
    """Option: the KV cache gets more memory. `by` is the share of its present size that is added."""

    by: float


class Fp8Cache(Note):
    """Option: keys and values are stored in eight bits."""


class ShorterContext(Note):
    """Option: a lower `max_model_len`, which cuts off the longest requests. `cut_share` is their share."""

    max_model_len: int
    cut_share: float


class OffloadHistories(Note):
    """Option: evicted conversation histories are kept in the host's memory."""


class ShorterHistories(Note):
    """Option: each request sends less of its conversation's history."""


class RaiseMaxNumSeqs(Note):
    """Option: a larger `max_num_seqs`, so that more requests run at once."""


class LighterWork(Note):
    """Option: shorter prompts, a faster GPU, or a looser objective."""


class SecondReplica(Note):
    """Option: a second replica of the server."""

    keep_conversations: bool
    """Whether each conversation must return to the replica that holds its history."""
