"""Types of the answers of `python -m analysis.sizing`; the type `Sizing` is the content of its JSON.

A band is [lower end, estimate, upper end] and covers 90 %.
"""

from dataclasses import dataclass, field
from typing import Literal

import msgspec

from analysis.answers.capacity import Bound
from analysis.walls.names import WallName
from loadtest.record import Slo, UserClass

SIZING_SCHEMA = 1

IntBand = tuple[int, int, int]
FloatBand = tuple[float, float, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class StatedWorkload:
    """The workload that the flags of sizing state.

    Token counts and think times are distributions, written as for the flag `--prompt-tokens`; they are null
    where a workload file says what users ask.
    """

    prompt_tokens: str | None
    output_tokens: str | None
    think_s: str | None
    slo: Slo
    turns: int = 1
    shared_prefix_tokens: int = 0
    classes: list[UserClass] = field(default_factory=list)
    """The classes of users of the workload file; empty without one."""
    at_users: int | None = None
    at_rate: float | None = None
    """Requests a second into one replica."""

    @property
    def user_classes(self) -> list[UserClass]:
        """The classes of the workload file; without one, a single class of all users."""
        if self.prompt_tokens is None or self.output_tokens is None:
            return self.classes
        everyone = UserClass(
            name="",
            prompt_tokens=self.prompt_tokens,
            output_tokens=self.output_tokens,
            think_s=self.think_s or "0",
            turns=str(self.turns),
            shared_tokens=self.shared_prefix_tokens,
        )
        return [everyone]


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


class SizedClass(msgspec.Struct, kw_only=True, frozen=True):
    """What one class of users of a mix would get, at the users to plan with."""

    name: str
    users: int
    """Users of this class, of all replicas."""
    ttft_p95_s: FloatBand | None
    """Null where so few users leave none for the class."""
    tpot_p95_s: FloatBand | None
    """Null also where all answers of the class have a single token."""
    ttft_objective_s: float
    """Largest p95 of TTFT that is allowed for the class."""
    tpot_objective_s: float
    kv_share: float
    """Share of the class in the KV blocks that all classes hold on average."""


class UnmetObjective(msgspec.Struct, kw_only=True, frozen=True):
    """An objective that even one user alone does not get."""

    name: WallName
    user_class: str | None = msgspec.field(default=None, name="class")
    """Class of the user in a mix; null if all users are alike."""
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
    classes: list[SizedClass] = []
    """Each class of users of a mix, at the users to plan with; empty if all users are alike."""
    at: AtLoad | None = None
    """The load of --at-users or --at-rate; null if neither was given."""
    vllm_flags: list[str] = []
    sensitivity: list[Effect] = []
    calibrated_by: str | None
    times_factor: float | None = None
    """Factor on all predicted times, from the run that calibrates; null where no run does."""
    assumptions: list[str] = []
    warnings: list[str] = []


class FleetCandidate(msgspec.Struct, kw_only=True, frozen=True):
    """Equal replicas on one type of card that hold the asked users, and what they cost.

    A cost or power that is not known is null.
    """

    gpu: str
    """The card's name in the catalogue."""
    tensor_parallel: int
    pipeline_parallel: int
    max_model_len: int
    users_per_replica: IntBand
    users_per_replica_x: FloatBand
    binding: WallName
    replicas: int
    """Replicas that surely hold the users: as many as are needed at the lower end of `users_per_replica`."""
    replicas_by_estimate: int
    replicas_perhaps: int
    """Replicas that are needed at the upper end of `users_per_replica`."""
    cards: int
    """Cards of all `replicas`."""
    vram_bytes: int
    """Memory of all cards."""
    capacity_users: IntBand
    """Users that all replicas hold together."""
    headroom_fraction: float
    """Share by which the lower end of `capacity_users` exceeds the asked users."""
    output_tok_s: float
    """Output tokens a second of all asked users together."""
    power_w: float | None
    """Board power of all cards: an upper bound of what they draw."""
    energy_at_most_kwh_per_hour: float | None
    price_per_gpu_hour: float | None = None
    cost_per_hour: float | None = None
    cost_per_user_hour: float | None = None
    cost_per_million_output_tokens: float | None = None
    vllm_flags: list[str]
    """Flags of `vllm serve` of one replica."""
    assumptions: list[str] = []
    warnings: list[str] = []


OmittedStatus = Literal["does_not_fit", "objective_not_met", "not_sure", "impossible", "not_computed"]


class OmittedCandidate(msgspec.Struct, kw_only=True, frozen=True):
    """A card and tensor parallelism that is not offered, and why."""

    gpu: str
    tensor_parallel: int
    status: OmittedStatus
    """not_sure: the lower end of the band is below one user. impossible: vLLM would refuse the flags on this
    card. not_computed: it cannot rank before those that were."""
    why: str
    objectives_unmet: list[UnmetObjective] = []


class Purchase(msgspec.Struct, kw_only=True, frozen=True):
    """The answer to what to buy: ways to hold a number of users, the best first."""

    schema: int = SIZING_SCHEMA
    model: str
    for_users: int
    headcount: int | None
    active_fraction: float | None
    currency: str | None
    refused: bool
    """Whether no candidate holds the users."""
    reasons: list[str]
    fleet: list[FleetCandidate]
    omitted: list[OmittedCandidate]
    assumptions: list[str]
    """What is assumed beside the assumptions of the candidates."""


ClaimVerdict = Literal["consistent", "impossible", "cannot be told"]


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedClaim:
    """The verdict on one claimed figure, with the arithmetic in words."""

    model: str
    figure: str
    claimed: str
    verdict: ClaimVerdict
    why: str
