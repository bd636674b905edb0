"""capacity.json as types: what is recommended, and the evidence. Knows no maths."""

import msgspec

from analysis.levels.open_loop import Slice
from analysis.statistics.samples import Quantiles
from analysis.walls.names import Basis, WallName
from loadtest.record import Slo

SCHEMA = 1
WALL_NAMES: dict[WallName, str] = {
    "kv_cache": "KV cache",
    "prefix_cache": "prefix cache",
    "ttft": "time to first token",
    "tpot": "time per output token",
    "throughput": "throughput",
    "max_num_seqs": "max_num_seqs",
    "errors": "errors",
    "not_reached": "none reached",
}


class Bound(msgspec.Struct, kw_only=True, frozen=True):
    """One wall: the users at which it stands. `users` and `interval` are whole users, `*_x` real-valued."""

    name: WallName
    users: int
    interval: tuple[int, int]
    basis: Basis
    users_x: float
    interval_x: tuple[float, float]


class Untouched(msgspec.Struct, kw_only=True, frozen=True):
    """A wall that was not met up to so many users."""

    name: WallName
    up_to_users: int


class Memory(msgspec.Struct, kw_only=True, frozen=True):
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
    """Of usage against requests running, over scrapes of trusted levels in which nobody waited."""
    gauge_tokens_per_user: float | None = None
    """The server's own twin of `tokens_per_user`: usage over running of the same scrape."""
    preempted_fraction_shift: float | None = None
    """ln of measured over predicted preemptions near the wall: how far the formula was moved."""
    pairs: int = 0
    """Requests whose lengths make the law."""


class Latency(msgspec.Struct, kw_only=True, frozen=True):
    """Step time of the engine: tau = base + per_seq * sequences + per_kv_token * tokens + prefill."""

    step_base_s: float | None = None
    step_per_seq_s: float | None = None
    """Includes the KV tokens of a mean sequence: one length mix cannot tell the two apart."""
    step_per_kv_token_s: float | None = None
    prefill_per_token_s: float | None = None
    knee_users: float | None = None
    """Where output throughput reaches 90 % of its limit. Advisory."""


class LevelAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """What was seen at one number of users. Counts: n (ended), errors, cancelled."""

    users: int
    run_id: str
    in_flight: float
    n: int
    window_s: float
    ttft_s: Quantiles
    tpot_s: Quantiles
    decode_tok_s: Quantiles
    chunk_gap_s: Quantiles
    gap_is_itl: bool
    e2e_s: Quantiles
    output_tok_s: float
    goodput_rps: float
    kv_cache_usage: float | None
    preempted_fraction: float | None
    kv_blocked_fraction: float | None
    prefix_hit_rate: float | None = None
    """Prompt tokens that the prefix cache held, of those looked up."""
    ttft_miss_fraction: float | None
    tpot_miss_fraction: float | None
    errors: int
    cancelled: int
    trusted: bool
    why_not: list[str]


class Lever(msgspec.Struct, kw_only=True, frozen=True):
    """Something that would move the answer. `users` is the new estimate, null where no model says."""

    change: str
    users: int | None
    gain_users: int | None
    limited_by: WallName | None
    beyond: bool = False
    """More users than a quarter above the highest trusted level: the model reaches far."""
    note: str = ""


class ModelAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The answer for one model."""

    model: str
    runs: list[str]
    max_users: int | None
    estimate: int | None
    interval: tuple[int, int | None] | None
    estimate_x: float | None
    interval_x: tuple[float, float | None] | None
    max_in_flight: int | None
    at_least: bool
    binding: WallName
    p_binding: dict[str, float]
    bounds: list[Bound]
    not_met: list[Untouched]
    memory: Memory
    latency: Latency
    levels: list[LevelAnswer]
    open_loop: list[Slice]
    """Empty unless requests came when they were due (`--arrivals`, `--trace`)."""
    levers: list[Lever]
    refused: bool
    reasons: list[str]
    warnings: list[str]
    host: str
    server: str
    gpu: str | None
    simulated: str | None
    workload: dict[str, str]
    timing_error_s: float | None
    """How late the load generator's own stamps may be at this load."""


class Answer(msgspec.Struct, kw_only=True, frozen=True):
    """`capacity.json`."""

    schema: int = SCHEMA
    generated_unix_s: float
    confidence: float
    slo: Slo
    models: list[ModelAnswer]
