"""Types of the answers of `python -m analysis.sizing`; the type `Sizing` is the content of its JSON.

A band is [lower end, estimate, upper end] and covers 90 %.
"""

from dataclasses import dataclass
from typing import Literal

import msgspec

from analysis.answers.capacity import Bound
from analysis.walls.names import WallName
from loadtest.record import Slo

SIZING_SCHEMA = 1

IntBand = tuple[int, int, int]
FloatBand = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatedWorkload:
    """The workload that the flags of sizing state.

    Token counts and think times are distributions, written as for the flag `--prompt-tokens`.
    """

    prompt_tokens: str
    output_tokens: str
    think_s: str
    slo: Slo
    turns: int = 1
    shared_prefix_tokens: int = 0
    at_users: int | None = None
    at_rate: float | None = None
    """Requests a second into one replica."""


class OverheadBytes(msgspec.Struct, kw_only=True, frozen=True):
    """Memory that start-up takes in addition to the weights, on one GPU, bytes."""

    activation: int
    cuda_graphs: int
    non_torch: int


class OverheadBand(msgspec.Struct, kw_only=True, frozen=True):
    """Bands of the memory that start-up takes in addition to the weights, on one GPU, bytes."""

    activation: IntBand
    cuda_graphs: IntBand
    non_torch: IntBand
    graphs_in_budget: bool
    """Whether CUDA graphs come out of the budget (from vLLM 0.21 on) or on top of it."""


class Effect(msgspec.Struct, kw_only=True, frozen=True):
    """How much the estimated number of users changes when one input changes."""

    input: str
    change: str
    effect_users: float


class LatencyBands(msgspec.Struct, kw_only=True, frozen=True):
    """Mean and percentiles of a time over the requests of a load, seconds, each as a band."""

    mean: FloatBand
    p50: FloatBand
    p95: FloatBand
    p99: FloatBand


class AtLoad(msgspec.Struct, kw_only=True, frozen=True):
    """What one load would see: `users` in a closed loop, or `rate_per_s` requests a second into a replica."""

    users: int | None
    rate_per_s: float | None
    stable: bool
    """Whether requests end as fast as they arrive."""
    in_flight: FloatBand
    output_tok_s: FloatBand
    ttft_s: LatencyBands | None
    """Null, as e2e_s, where the load is not stable: the times grow as long as it lasts."""
    tpot_s: LatencyBands | None
    e2e_s: LatencyBands | None


class UnmetObjective(msgspec.Struct, kw_only=True, frozen=True):
    """An objective that even one user alone does not get."""

    name: WallName
    objective_s: float
    """The p95 that is asked for, at most."""
    best_s: FloatBand
    """The p95 with one user."""


class Sizing(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of a sizing: the users, the walls (limits), the memory, and what vLLM will log.

    Bytes are those of one GPU, unless the field's name says otherwise. If the model does not fit, the fields
    that need a KV-cache pool are null.
    """

    schema: int = SIZING_SCHEMA
    model: str
    workload: StatedWorkload | None = None
    """What the flags stated of prompts, answers, pauses and objectives; null in files of earlier versions."""
    gpu: str
    gpus: int
    tensor_parallel: int
    pipeline_parallel: int
    replicas: int
    vllm_version: str
    refused: bool = False
    reasons: list[str] = []
    parameters: int
    """Number of parameters of the whole model."""
    weights_bytes: int
    weights_band_bytes: IntBand
    kv_bytes_per_token: int | None
    """Null where layers with windows leave no single figure."""
    kv_fixed_bytes_per_request: int
    kv_layout: list[str]
    vram_bytes: int
    budget_bytes: int
    overhead_bytes: OverheadBytes
    overhead_band_bytes: OverheadBand
    pool_bytes: IntBand | None = None
    pool_tokens: IntBand | None = None
    blocks: IntBand | None = None
    """KV blocks with the null block, as vLLM counts them."""
    block_size: int
    vllm_kv_cache_tokens: int | None = None
    """Tokens in the log line "GPU KV cache size"."""
    vllm_max_concurrency: float | None = None
    vllm_max_concurrency_band: FloatBand | None = None
    max_model_len: int
    tokens_per_user: float | None = None
    """Mean KV tokens of a request in flight, in whole blocks; null where layers differ in tokens held."""
    kv_bytes_per_user: float | None = None
    """Mean KV bytes of a request in flight, on one GPU."""
    in_flight_at_estimate: float | None = None
    users: IntBand | None = None
    users_x: FloatBand | None = None
    binding: WallName = "not_reached"
    bounds: list[Bound] = []
    not_met: list[WallName] = []
    """Walls of latency that are not crossed at the simulated loads: up to 1.5 times the first wall of memory
    and slots."""
    objectives_unmet: list[UnmetObjective] = []
    """Objectives that even one user alone does not get; the answer is then refused."""
    decode_tok_s_alone: FloatBand | None = None
    """Tokens a second of one request with nobody else."""
    at: AtLoad | None = None
    """The load of --at-users or --at-rate; null if neither was given."""
    vllm_flags: list[str] = []
    sensitivity: list[Effect] = []
    calibrated_by: str | None
    assumptions: list[str] = []
    warnings: list[str] = []


ClaimVerdict = Literal["consistent", "impossible", "cannot be told"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedClaim:
    """The verdict on one claimed figure, with the arithmetic in words."""

    model: str
    figure: str
    claimed: str
    verdict: ClaimVerdict
    why: str
