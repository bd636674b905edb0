"""compare.json as types: two runs side by side, and the verdict of a gate. Knows no maths."""

from typing import Literal

import msgspec

from analysis.answers.capacity import ModelAnswer
from loadtest.record import Slo

COMPARE_SCHEMA = 1

FigureName = Literal[
    "max_users",
    "memory_users",
    "ttft_p50_s",
    "ttft_p95_s",
    "decode_tok_s",
    "tpot_p95_s",
    "output_tok_s",
    "kv_tokens_per_user",
    "kv_bytes_per_user",
    "kv_bytes_per_token",
    "kv_pool_tokens",
    "vram_held_bytes",
    "vram_no_load_bytes",
    "vram_at_peak_bytes",
    "max_model_len",
]
FIGURE_NAMES: dict[FigureName, str] = {
    "max_users": "maximum users",
    "memory_users": "users by KV cache alone",
    "ttft_p50_s": "TTFT p50",
    "ttft_p95_s": "TTFT p95",
    "decode_tok_s": "decode rate p50",
    "tpot_p95_s": "TPOT p95",
    "output_tok_s": "throughput",
    "kv_tokens_per_user": "KV tokens a request",
    "kv_bytes_per_user": "KV bytes a request",
    "kv_bytes_per_token": "KV cache a token",
    "kv_pool_tokens": "KV pool",
    "vram_no_load_bytes": "GPU memory, no load",
    "vram_at_peak_bytes": "GPU memory, in use at peak",
    "vram_held_bytes": "GPU memory, held from start",
    "max_model_len": "context",
}
MORE_IS_BETTER: frozenset[FigureName] = frozenset(("max_users", "output_tok_s"))
"""Of what a gate judges; of the rest less is better."""
DifferenceVerdict = Literal["yes", "perhaps", "not_seen", "equal"]
"""yes: beyond chance, all rows of the table considered; perhaps: beyond chance if this row stood alone;
equal: two facts that are the same."""
GateVerdict = Literal["ok", "worse", "unclear"]


class SideFigure(msgspec.Struct, kw_only=True, frozen=True):
    """One figure of one run. No interval: a fact, not an estimate. Null value: not known."""

    value: float | None = None
    interval: tuple[float, float | None] | None = None
    """At the confidence of the comparison; a null end is open."""
    at_least: bool = False
    predicted: bool = False
    """From the model's architecture and the GPU's data sheet, not measured."""


class ComparisonRow(msgspec.Struct, kw_only=True, frozen=True):
    """One figure of both runs."""

    figure: FigureName
    users: int | None = None
    """The level at which both were measured; null for what belongs to no level."""
    a: SideFigure
    b: SideFigure
    ratio: float | None = None
    """b over a."""
    ratio_interval: tuple[float | None, float | None] | None = None
    different: DifferenceVerdict | None = None


def row_name(row: ComparisonRow) -> str:
    """Figure and level, for tables and axes."""
    at = "" if row.users is None else f" at {row.users} user{'s' * (row.users != 1)}"
    return FIGURE_NAMES[row.figure] + at


class RunDifference(msgspec.Struct, kw_only=True, frozen=True):
    """Something that may differ, and does: what the comparison is about."""

    name: str
    a: str
    b: str


class GateCheck(msgspec.Struct, kw_only=True, frozen=True):
    """One criterion of the gate at one level. `worse_by` is a factor: 1.2 is 20 % worse."""

    users: int | None
    baseline: float | None
    run: float | None
    worse_by: float | None
    at_least: float | None
    """Lower bound on `worse_by` at the error that this check may make."""
    at_most: float | None
    """Upper bound at 95 %; null when open."""
    verdict: GateVerdict


class GateCriterion(msgspec.Struct, kw_only=True, frozen=True):
    """One criterion: worse where one check is, ok where one check at least is and none is worse."""

    figure: FigureName
    verdict: GateVerdict
    checks: list[GateCheck]
    why: str = ""


class GateAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """Did the second run get worse than the first, its baseline?"""

    verdict: GateVerdict
    tolerance: float
    """Worse by less than this share is let pass."""
    false_alarms: float
    """Probability of calling any of two equal deployments worse, all checks together, at most."""
    criteria: list[GateCriterion]


class Comparison(msgspec.Struct, kw_only=True, frozen=True):
    """`compare.json`."""

    schema: int = COMPARE_SCHEMA
    generated_unix_s: float
    confidence: float
    slo: Slo
    names: tuple[str, str]
    answers: tuple[ModelAnswer, ModelAnswer]
    """Of capacity.json, one for each run, under the same objectives."""
    common_levels: list[int]
    """Users at which both runs have a trusted level."""
    rows: list[ComparisonRow]
    differs: list[RunDifference]
    gate: GateAnswer | None = None
    warnings: list[str]
