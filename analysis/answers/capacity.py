"""The answer of `python -m analysis.capacity`: how many users each model holds, and the evidence."""

import msgspec

from analysis.levels.level import Level
from analysis.levels.open_loop import Slice
from analysis.notes import Note
from analysis.walls.names import Basis, WallName
from loadtest.record import Slo


class Headline(msgspec.Struct, kw_only=True, frozen=True):
    """The number to plan with, and what it rests on. All numbers are null in a refusal.

    `max_users` is the lower end of `interval_x` rounded down, as are `estimate` and `interval`.
    """

    max_users: int | None = None
    estimate: int | None = None
    interval: tuple[int, int | None] | None = None
    estimate_x: float | None = None
    interval_x: tuple[float, float | None] | None = None
    at_least: bool = False
    """No wall was reached: the estimate and the upper end are null."""
    binding: WallName = "not_reached"
    p_binding: dict[str, float] = {}
    """Probability that each wall is the first."""


class Bound(msgspec.Struct, kw_only=True, frozen=True):
    """The number of users at which one wall stands: whole users, and real-valued ones in `*_x`."""

    name: WallName
    users: int
    interval: tuple[int, int]
    basis: Basis
    users_x: float
    interval_x: tuple[float, float]


class WallNotMet(msgspec.Struct, kw_only=True, frozen=True):
    """A wall that was not met by the highest trusted level."""

    name: WallName
    up_to_users: int


class MemoryFigures(msgspec.Struct, kw_only=True, frozen=True):
    """KV cache of one request in flight. Null where the server did not say enough."""

    pool_tokens: int | None = None
    tokens_per_user: float | None = None
    """Mean over a request's steps, whole blocks counted."""
    tokens_per_user_sd: float | None = None
    shared_prefix_tokens: int | None = None
    bytes_per_token: int | None = None
    vram_base_bytes: int | None = None
    vram_bytes_per_user: int | None = None
    r2: float | None = None
    """Fit of usage against requests running, over scrapes of trusted levels in which nobody waited."""
    gauge_tokens_per_user: float | None = None
    """`tokens_per_user` by the server's gauge: usage over running of the same scrape."""
    preempted_fraction_shift: float | None = None
    """ln of measured over predicted preemptions near the wall: how far the formula was moved."""
    pairs: int = 0
    """Requests whose lengths make the distribution."""


class LatencyFigures(msgspec.Struct, kw_only=True, frozen=True):
    """Step time of the engine: base + per_seq * sequences + per_kv_token * tokens + prefill."""

    step_base_s: float | None = None
    step_per_seq_s: float | None = None
    """Includes the KV tokens of a mean sequence: one length mix cannot tell the two apart."""
    step_per_kv_token_s: float | None = None
    prefill_per_token_s: float | None = None
    knee_users: float | None = None
    """Requests in flight at which output throughput reaches 90 % of its limit. Advisory."""


class WorkloadSummary(msgspec.Struct, kw_only=True, frozen=True):
    """What was asked of the server, and the lengths that came of it."""

    settings: dict[str, str]
    """Settings of the load test that shape the workload, as they were given."""
    requests: int = 0
    """Finished requests whose lengths are known; 0 where they are too few."""
    prompt_mean: float | None = None
    """Tokens, the history included."""
    output_mean: float | None = None


class Option(msgspec.Struct, kw_only=True, frozen=True):
    """A change that would move the limit. `users` is the new estimate, `users_x` the same real-valued; both
    are null where no model says."""

    change: Note
    users: int | None
    users_x: float | None
    gain_users: int | None
    limited_by: WallName | None
    beyond: bool = False
    """More users than a quarter above the highest trusted level: the model reaches far."""


class ModelAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The answer for one model."""

    model: str
    runs: list[str]
    headline: Headline
    max_in_flight: int | None
    bounds: list[Bound]
    """The nearest first."""
    not_met: list[WallNotMet]
    memory: MemoryFigures
    latency: LatencyFigures
    levels: list[Level]
    open_loop: list[Slice]
    """Empty unless requests came when they were due (`--arrivals`, `--trace`)."""
    options: list[Option]
    refused: bool
    reasons: list[Note]
    warnings: list[Note]
    host: str
    server: str
    gpu: str | None
    simulated: str | None
    """What the embedded server simulates; null of any other server."""
    workload: WorkloadSummary
    timing_error_s: float | None
    """How late the load generator's own stamps may be at this load."""

    @property
    def trusted(self) -> list[Level]:
        """Levels that the answer rests on."""
        return [level for level in self.levels if level.trusted]


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """What `capacity.json` holds."""

    generated_unix_s: float
    confidence: float
    slo: Slo
    models: list[ModelAnswer]
