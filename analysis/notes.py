"""Doubts, refusals, warnings and options, as codes with values.

`analysis.reporting.words` puts them into words. A wall is a limit on the number of users.
"""

from typing import Literal

import msgspec


class Note(msgspec.Struct, kw_only=True):
    """Something that the reader must be told. The subclass is the code, and its fields are the values."""


class PlainSentence(Note):
    """A finished sentence about a problem, from the load test or from the reading of its files."""

    sentence: str


# Doubts: why a level is not trusted.


class NotSteady(Note):
    """No steady window was found in the level: in every part tried, request durations or KV usage drift, or
    requests took longer for a while."""


class ServerAway(Note):
    """The server answered no request for a while in this level."""

    from_unix_s: float
    to_unix_s: float


class EngineRestarted(Note):
    """An engine of the server restarted in this level, seen in its counters at `unix_s`."""

    unix_s: float


class EnginesChanged(Note):
    """An engine of the server came or went in this level: there were from `least` to `most`."""

    least: int
    most: int


class FewerEngines(Note):
    """The level ran on fewer engines than others of its run, so its figures belong to a smaller server."""

    engines: int
    most: int


class AnotherPool(Note):
    """The KV cache had `tokens` in this level, and `tokens_later` after the server had come back."""

    tokens: int
    tokens_later: int


class TooFewRequests(Note):
    """Too few requests ended in the window."""

    ended: int
    needed: int


class GeneratorLate(Note):
    """The load generator's event loop ran late. `lag_s` is the mean lag over the window."""

    lag_s: float
    limit_s: float


class GeneratorFroze(Note):
    """The load generator itself stood still, for `lag_s` at most, while answers missed the objective for
    stalls."""

    lag_s: float
    share: float
    """Share of the answers that may owe their miss to it."""


class GeneratorBusy(Note):
    """A worker of the load generator used nearly all of its CPU core."""

    cpu: float
    """CPU time of the busiest worker, as a share of one core."""
    limit: float


class ClientErrors(Note):
    """Requests failed before they left the load generator."""

    failed: int
    ended: int


class LoadNotReached(Note):
    """Requests in flight were fewer than the users who did not pause because a request failed."""

    in_flight: float
    users: int
    paused: float = 0.0
    """Mean number of users who paused."""


class TooMuchLoad(Note):
    """Requests in flight were more than users."""

    in_flight: float
    users: int


class LittlesLawOff(Note):
    """The level's measurements contradict Little's law: request rate times request duration differs from the
    requests in flight by more than the tolerance."""

    off: float
    """Relative difference from the requests in flight."""


class TokensDisagree(Note):
    """Over the whole run, the server counted more or fewer output tokens than the request rows hold."""

    off: float
    """Relative difference; positive where the server counted more."""


class ForeignLoad(Note):
    """The server held requests that the load test did not send. `requests` is the mean number of them."""

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

    scenario: str = ""
    """Scenario of the load test, or the name of the tool whose results were imported."""


class NoTrustedLevel(Note):
    """No level can be trusted. `why` lists the doubts, each once."""

    why: list[Note]


class PastWallAtLowest(Note):
    """Even the lowest trusted level is beyond a wall, so the wall lies below all measured levels."""

    users: int
    wall: str


class TooFewToHold(Note):
    """Too few requests prove that a limit that was not passed holds at a number of users. As a reason to
    refuse, it holds at no number of users for certain."""

    wall: str
    users: int
    share_at_most: float
    """Upper bound of the share of misses."""
    limit: float
    more_requests: int | None
    """Further requests at this number of users that would prove it; None where they would be too many."""
    more_s: float | None
    user_class: str | None = None
    """Class of users for which least is known; None without classes."""


# Warnings.


class NotPooled(Note):
    """Runs of the same model that were left out, because they have another deployment or workload."""

    run_ids: list[str]
    differing: list[str]


class SeveralReplicas(Note):
    """Several replicas are behind one address, and the metrics are not those of all of them. The server's own
    figures are left out."""

    seen_share: float | None
    """Share of our output tokens that the metrics counted; None where scrapes came from several replicas by
    turns."""


class GatheredChunks(Note):
    """Something between the engine and the client, such as a gateway, gathers the chunks of an answer and
    sends many at once, most at the level of `users`. TTFT then includes its waiting, and TPOT is unknown."""

    users: int
    arrivals_per_chunk: float
    engine_tpot_s: float | None
    """The engine's own mean TPOT at that level; None where it has no histogram."""
    engine_ttft_s: float | None
    """The engine's own mean TTFT at that level; None where it has no histogram."""


class DelayOutsideEngine(Note):
    """The first token took longer than the engine's own histogram says, most at the level of `users`. All
    times are means; those of the engine are from its histograms."""

    users: int
    ttft_s: float
    engine_ttft_s: float
    duration_s: float
    engine_duration_s: float | None


class SimulatorLate(Note):
    """The embedded server itself sent tokens late."""

    late_s: float
    """Seconds by which a token was late: the median over scrapes."""


class PoolUnknown(Note):
    """The server's metrics did not say how many KV blocks it has."""


class TooFewLengths(Note):
    """Too few finished requests have known token counts, so the KV-cache wall cannot be placed."""

    needed: int


class SuspectedMaxNumSeqs(Note):
    """Requests wait while memory is free and always about `slots` run: this looks like max_num_seqs, which
    nobody stated."""

    slots: int


class SpreadOverEngines(Note):
    """There are several engines, each with its own KV-cache pool. Users are assumed to be spread evenly."""

    engines: int


class GaugeDisagrees(Note):
    """The server's KV usage gauge disagrees with the usage computed from the requests' lengths."""

    off: float
    """Relative difference; positive where the gauge shows more."""


class Lockstep(Note):
    """Output lengths hardly vary, so requests begin and end together.

    `cv` is the coefficient of variation of the output lengths.
    """

    cv: float


class HeavyTail(Note):
    """Output lengths vary so much that more requests are needed.

    `cv` is the coefficient of variation of the output lengths.
    """

    cv: float
    requests: int
    needed: int


class SeedRepeated(Note):
    """Pooled runs used the same seed, so their requests have the same random lengths."""


class LevelsNotTrusted(Note):
    """Levels that the answer does not use, all because of the same doubts (`why`)."""

    users: list[int]
    why: list[Note]


class Extrapolated(Note):
    """The wall that is met first lies above or below all trusted levels, so its place is extrapolated."""

    wall: str
    side: Literal["above", "below"]
    users: int
    """Users of the nearest trusted level."""


class FormulaAlone(Note):
    """The KV-cache wall is known from the formula alone, not from measurements near it.

    No trusted level near this wall measured preemptions or the time in which requests were blocked.
    """


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
    """Option: vLLM gets a larger share of the GPU's memory. `now` is the present share, `to` the new one."""

    to: float
    now: float


class LargerPool(Note):
    """Option: the KV cache gets more memory. `by` is the increase as a share of the present size."""

    by: float


class Fp8Cache(Note):
    """Option: the KV cache stores keys and values in eight bits (FP8)."""


class ShorterContext(Note):
    """Option: a lower `max_model_len`. It cuts off the longest requests, a share of `cut_share`."""

    max_model_len: int
    cut_share: float


class OffloadHistories(Note):
    """Option: evicted conversation histories are kept in the host's memory."""


class ShorterHistories(Note):
    """Option: each request sends less of its conversation's history."""


class RaiseMaxNumSeqs(Note):
    """Option: a larger `max_num_seqs`, so that more requests run at once."""


class SmallerTokenBudget(Note):
    """Option: a smaller `max_num_batched_tokens`, so that long prompts are computed in shorter steps."""


class LighterWork(Note):
    """Option: shorter prompts, a faster GPU, or a looser objective."""


class FasterGateway(Note):
    """Option: less delay before the engine, where most of the time to the first token passes."""

    users: int
    ttft_s: float
    """The clients' mean time to first token at `users` users."""
    engine_s: float
    """The part of it that the engine's own histogram shows."""


class LessRefusal(Note):
    """Option: whatever turns requests away, the server's queue or a gateway's rate limit, takes more."""


class SecondReplica(Note):
    """Option: a second replica of the server."""

    keep_conversations: bool
    """Whether each conversation must return to the replica that holds its history."""
