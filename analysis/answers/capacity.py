"""The answer of `python -m analysis.capacity`: how many users each model holds, and the evidence for it."""

import msgspec

from analysis.answers.replay import ReplayAnswer
from analysis.levels.failures.advice import Advice
from analysis.levels.failures.classes import Cause
from analysis.levels.level import Level
from analysis.levels.open_loop import Slice
from analysis.notes import Note
from analysis.statistics.samples import Quantiles
from analysis.walls.names import Basis, WallName
from loadtest.record import Outcome, Slo


class Headline(msgspec.Struct, kw_only=True, frozen=True):
    """The number of users to plan for, and how certain it is. All numbers are null if the answer is refused.

    `estimate_x` and `interval_x` are the limit in users and its interval, as real numbers. `estimate` and
    `interval` are the same values rounded down. `max_users`, the number to plan for, is the lower end of
    `interval_x` rounded down.
    """

    max_users: int | None = None
    estimate: int | None = None
    interval: tuple[int, int | None] | None = None
    estimate_x: float | None = None
    interval_x: tuple[float, float | None] | None = None
    at_least: bool = False
    """Whether no wall was reached; then the estimate and the upper ends are null."""
    binding: WallName = "not_reached"
    p_binding: dict[str, float] = {}
    """Probability that each wall is the first to be met, by the wall's name."""


class Bound(msgspec.Struct, kw_only=True, frozen=True):
    """The number of users at which one wall (a limit on users) lies.

    `users` and `interval` are whole numbers; `users_x` and `interval_x` are the same as real numbers.
    """

    name: WallName
    users: int
    interval: tuple[int, int]
    basis: Basis
    users_x: float
    interval_x: tuple[float, float]
    user_class: str | None = msgspec.field(default=None, name="class")
    """Class of users that misses the objective first; null where there are no classes, or no class does."""
    rise_x: tuple[float, float] | None = None
    """Users at which half, and twice, the share of misses that the limit allows is reached; null for a wall
    that is not found by a share of misses."""


class ClassObjective(msgspec.Struct, kw_only=True, frozen=True):
    """One objective of a class of users."""

    p95_s: float
    """Largest 95th percentile that is allowed, seconds."""
    met: bool | None
    """Whether at most one request in twenty missed it; null where no request tells."""


class ClassAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """What one class of users gets at the trusted level nearest to the answer."""

    level_users: int
    """Users of all classes at that level."""
    users: int
    """Users of this class at that level."""
    requests: int
    """Requests of the class that ended in the window of the level."""
    ttft_s: Quantiles
    tpot_s: Quantiles
    stall_s: Quantiles
    e2e_s: Quantiles
    in_time: tuple[float, float, float] | None
    """Share of the requests that met every objective of latency: lower end of the 90 % interval, estimate and
    upper end. Null without requests."""
    kv_share: float | None
    """Share of the class in the KV tokens that all classes hold, by the lengths of their requests."""
    objectives: dict[WallName, ClassObjective]


class WallNotMet(msgspec.Struct, kw_only=True, frozen=True):
    """A wall (limit) that was not met up to `up_to_users` users, the highest trusted level.

    The other fields are null where no share of misses tells of this wall.
    """

    name: WallName
    up_to_users: int
    user_class: str | None = msgspec.field(default=None, name="class")
    """Class of users for which least is known, where each has objectives; null otherwise."""
    limit: float | None = None
    """Largest share of misses that is allowed."""
    holds_to_users: int | None = None
    """Largest number of users for which the limit is known to hold; null also where it is for none."""
    share_at_most: float | None = None
    """Upper bound of the share of misses up to `holds_to_users` users, or at the lowest level."""
    more_requests: int | None = None
    """Further requests at `up_to_users` users that would prove the limit there; 0 where it is proved, null
    where they would be too many."""
    more_s: float | None = None


class LatencyAlone(msgspec.Struct, kw_only=True, frozen=True):
    """The number of users that the objectives for TTFT, TPOT and errors alone would allow, if waiting for
    memory and preemption were accepted."""

    users: int
    """The estimate, rounded down; with `at_least`, the largest number that is known to be allowed."""
    interval: tuple[int, int | None] | None = None
    """Its upper end is null where no level missed an objective; null where no level tells at all."""
    users_x: float
    interval_x: tuple[float, float | None] | None = None
    at_least: bool = False
    """Whether none of these objectives was missed at any trusted level."""
    basis: Basis
    limited_by: WallName = "not_reached"


class People(msgspec.Struct, kw_only=True, frozen=True):
    """The people that the users of an answer stand for, if a share of them is active at the peak."""

    active_fraction: float
    holds_people: int
    """People of whom `max_users` are active at the peak."""
    headcount: int | None
    """People as stated; null if only the share is."""
    users_needed: int | None
    """Users of the headcount who are active at the peak."""
    deployments: int | None
    """Deployments like this one that hold them, if a router spreads users evenly; null if one holds none."""


class BusiestHour(msgspec.Struct, kw_only=True, frozen=True):
    """The users at once that the requests of the busiest hour of a day stand for."""

    requests: int
    """Requests in that hour, as stated."""
    requests_per_user: float
    """Requests that a user of this load test sends in an hour, at the trusted level nearest to the answer."""
    users_mean: float
    users_needed: int
    """Users who are there at once for 95 % of that hour at most, if they come at random (Poisson)."""
    deployments: int | None
    """Deployments like this one that hold them, if a router spreads users evenly; null if one holds none."""


class MemoryFigures(msgspec.Struct, kw_only=True, frozen=True):
    """The size of the KV-cache pool, the KV cache that one request in flight takes, and the GPU memory.

    A field is null where the data do not tell.
    """

    pool_tokens: int | None = None
    tokens_per_user: float | None = None
    """Mean KV tokens of a request over its steps, in whole blocks, a shared prefix included."""
    tokens_per_user_sd: float | None = None
    shared_prefix_tokens: int | None = None
    bytes_per_token: int | None = None
    vram_base_bytes: int | None = None
    vram_bytes_per_user: int | None = None
    r2: float | None = None
    """R2 of usage against requests running, over scrapes of trusted levels in which no request waited."""
    gauge_tokens_per_user: float | None = None
    """`tokens_per_user` by the server's gauge: usage divided by requests running in the same scrape."""
    preempted_fraction_shift: float | None = None
    """How far the formula is moved near the wall: ln(measured preemptions / predicted ones)."""
    pairs: int = 0
    """Number of requests from whose lengths the distribution is made."""
    own_prompts_hit_rate: float | None = None
    """Share of the own prompts' text that an unlimited prefix cache would find if each were sent once."""


class LatencyFigures(msgspec.Struct, kw_only=True, frozen=True):
    """Step time of the engine, as a sum of four terms.

    Step time = base + per_seq * sequences + per_kv_token * KV tokens + prefill_per_token * prompt tokens.
    """

    step_base_s: float | None = None
    step_per_seq_s: float | None = None
    """Seconds for each sequence and its mean KV tokens: one mix of lengths cannot tell the two apart."""
    step_per_kv_token_s: float | None = None
    prefill_per_token_s: float | None = None
    knee_users: float | None = None
    """Requests in flight at which output throughput reaches 90 % of its limit. For information: it is no
    wall."""


class WorkloadSummary(msgspec.Struct, kw_only=True, frozen=True):
    """Settings of the load test, and the lengths of its finished requests."""

    settings: dict[str, str]
    """Settings of the load test that shape the workload, as given."""
    requests: int = 0
    """Number of finished requests whose lengths are known; 0 where they are too few."""
    prompt_mean: float | None = None
    """Mean prompt tokens of a request, the history included."""
    output_mean: float | None = None


class Option(msgspec.Struct, kw_only=True, frozen=True):
    """A change to the deployment or the workload that would raise the limit.

    `users_x` is the new limit, and `users` is the same rounded down. Both are null where no model predicts
    the new limit.
    """

    change: Note
    users: int | None
    users_x: float | None
    gain_users: int | None
    limited_by: WallName | None
    beyond: bool = False
    """Whether `users` is more than a quarter above the highest trusted level, far from what was measured."""


class Failures(msgspec.Struct, kw_only=True, frozen=True):
    """Requests that failed in the same way, in all levels together."""

    outcome: Outcome
    http_status: int | None
    """Status of the answer; null unless the outcome is `http_error`."""
    words: str | None
    """The most frequent of the server's own words; numbers in them vary."""
    count: int
    requests: int
    """All requests that ended in the windows of the levels, cancelled ones left out."""
    by_users: list[tuple[int, int, int]]
    """(users, failures, requests) for each number of users; empty without levels."""
    cause: Cause
    advice: Advice
    at_once: int | None = None
    """Unfinished requests that the server or gateway takes before it refuses one; null where unknown."""
    admitted_rps: float | None = None
    """Requests a second that a gateway with a rate limit lets through; null where unknown."""


class ModelAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The answer for one model."""

    model: str
    runs: list[str]
    headline: Headline
    max_in_flight: int | None
    bounds: list[Bound]
    """Walls that were met or that a model places, the nearest first."""
    not_met: list[WallNotMet]
    not_observable: list[WallName]
    """Walls that nothing in the runs could have shown, met or not."""
    prefix_cache: Bound | None
    """Where nine in ten prefix-cache hits of low load are left, if that is known and no objective makes it a
    wall."""
    by_latency_alone: LatencyAlone | None
    """Null where there is no limit, or where nothing tells."""
    busiest_hour: BusiestHour | None
    """Null if its requests are not stated (`--busiest-hour`), or there is no answer."""
    people: People | None
    """Null if the share of active people is not stated (`--active`), or there is no answer."""
    memory: MemoryFigures
    latency: LatencyFigures
    classes: dict[str, ClassAnswer]
    """What each class of users gets, by its name; empty without a workload file."""
    replay: ReplayAnswer | None
    """How faithful a replay of recorded sessions was; null without sessions (`--sessions`)."""
    levels: list[Level]
    open_loop: list[Slice]
    """Slices of open loops; empty unless requests were sent at set times (`--arrivals`, `--trace`)."""
    failures: list[Failures]
    """Failed requests by class, the most frequent first."""
    options: list[Option]
    refused: bool
    incomplete: bool
    """Whether a run does not hold what was planned: its rows were lost, or its server was dead. The warnings
    say why."""
    reasons: list[Note]
    warnings: list[Note]
    host: str
    server: str
    gpu: str | None
    simulated: str | None
    """Description of what the embedded server simulates; null for any other server."""
    workload: WorkloadSummary
    timing_error_s: float | None
    """Seconds by which times may be late: the largest mean lag of a trusted level; null where unknown."""

    @property
    def trusted(self) -> list[Level]:
        """Levels that the answer uses (trusted levels)."""
        return [level for level in self.levels if level.trusted]


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """Content of `capacity.json`."""

    generated_unix_s: float
    confidence: float
    slo: Slo
    models: list[ModelAnswer]
