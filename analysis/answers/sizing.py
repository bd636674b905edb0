"""The sizing JSON as types. Bands are [lower end, estimate, upper end] and cover 90 %. Knows no maths."""

from dataclasses import dataclass
from typing import Literal

import msgspec

from analysis.answers.capacity import Bound
from analysis.walls.names import WallName

SCHEMA = 1

Bytes = tuple[int, int, int]


class OverheadBytes(msgspec.Struct, kw_only=True, frozen=True):
    """What start-up takes beside the weights, on one GPU."""

    activation: int
    cuda_graphs: int
    non_torch: int


class OverheadBand(msgspec.Struct, kw_only=True, frozen=True):
    activation: Bytes
    cuda_graphs: Bytes
    non_torch: Bytes
    graphs_in_budget: bool
    """Whether CUDA graphs come out of the budget (from vLLM 0.21 on) or on top of it."""


class Effect(msgspec.Struct, kw_only=True, frozen=True):
    """What a change of one input does to the estimate."""

    input: str
    change: str
    effect_users: float


class Sizing(msgspec.Struct, kw_only=True, frozen=True):
    """The answer of `python -m analysis.sizing`. Bytes are of one GPU unless they say otherwise; where it is
    refused, what needs a pool is null."""

    schema: int = SCHEMA
    model: str
    gpu: str
    gpus: int
    tensor_parallel: int
    pipeline_parallel: int
    replicas: int
    vllm_version: str
    refused: bool = False
    reasons: list[str] = []
    parameters: int
    """Of the whole model."""
    weights_bytes: int
    weights_band_bytes: Bytes
    kv_bytes_per_token: int | None
    """Null where windows leave no single figure."""
    kv_fixed_bytes_per_request: int
    kv_layout: list[str]
    vram_bytes: int
    budget_bytes: int
    overhead_bytes: OverheadBytes
    overhead_band_bytes: OverheadBand
    pool_bytes: Bytes | None = None
    pool_tokens: Bytes | None = None
    blocks: Bytes | None = None
    """With the null block, as vLLM counts."""
    block_size: int
    vllm_kv_cache_tokens: int | None = None
    """"GPU KV cache size" of the log."""
    vllm_max_concurrency: float | None = None
    vllm_max_concurrency_band: tuple[float, float, float] | None = None
    max_model_len: int
    tokens_per_user: float | None = None
    """Mean of a request in flight, whole blocks; null where layers hold different numbers of tokens."""
    kv_bytes_per_user: float | None = None
    """The same in bytes, on one GPU."""
    in_flight_at_estimate: float | None = None
    users: tuple[int, int, int] | None = None
    users_x: tuple[float, float, float] | None = None
    binding: WallName = "not_reached"
    bounds: list[Bound] = []
    not_met: list[WallName] = []
    """Walls that stand beyond twice the first one."""
    decode_tok_s_alone: tuple[float, float, float] | None = None
    """Of one request with nobody else."""
    vllm_flags: list[str] = []
    sensitivity: list[Effect] = []
    calibrated_by: str | None
    assumptions: list[str] = []
    warnings: list[str] = []


ClaimVerdict = Literal["consistent", "impossible", "cannot be told"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedClaim:
    """One figure's verdict, with the arithmetic in words."""

    model: str
    figure: str
    claimed: str
    verdict: ClaimVerdict
    why: str
