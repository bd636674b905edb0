"""The types of compare.json: two runs side by side, and the verdict of a gate. Knows no maths."""

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
    "stall_p95_s",
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
    "stall_p95_s": "stall p95",
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
"""Figures of which more is better; of the others that a gate judges, less is better."""
DifferenceVerdict = Literal["yes", "perhaps", "not_seen", "equal"]
"""yes: beyond chance, with all rows of the table considered; perhaps: beyond chance if this row were alone;
not_seen: not detected; equal: two facts that are the same."""
GateVerdict = Literal["ok", "worse", "unclear"]
"""ok: shown not to be worse by more than the margin (non-inferiority); worse: shown to be worse by more than
the tolerance; unclear: neither was shown."""


class SideFigure(msgspec.Struct, kw_only=True, frozen=True):
    """One figure of one run."""

    value: float | None = None
    """Null where it is not known."""
    interval: tuple[float, float | None] | None = None
    """The interval at the confidence of the comparison; a null end is open; null for a fact."""
    at_least: bool = False
    """No wall was met: the limit is this value or more."""
    predicted: bool = False
    """Computed from the model's architecture and the GPU's data sheet, not measured."""


class ComparisonRow(msgspec.Struct, kw_only=True, frozen=True):
    """One figure of both runs."""

    figure: FigureName
    users: int | None = None
    """Users of the level at which both were measured; null for a figure of no level."""
    a: SideFigure
    b: SideFigure
    ratio: float | None = None
    """b divided by a."""
    ratio_interval: tuple[float | None, float | None] | None = None
    different: DifferenceVerdict | None = None


def row_name(row: ComparisonRow) -> str:
    """Returns the figure's name with its level, such as `TTFT p95 at 8 users`, for tables and axes."""
    at = "" if row.users is None else f" at {row.users} user{'s' * (row.users != 1)}"
    return FIGURE_NAMES[row.figure] + at


class RunDifference(msgspec.Struct, kw_only=True, frozen=True):
    """One allowed difference between the runs, such as the model or a server flag."""

    name: str
    a: str
    b: str


class GateCheck(msgspec.Struct, kw_only=True, frozen=True):
    """One criterion of the gate, checked at one level; `users` is null for the check of capacity."""

    users: int | None
    baseline: float | None
    run: float | None
    worse_by: float | None
    """How many times worse the run is: 1.2 is 20 % worse."""
    at_least: float | None
    """The lower bound on `worse_by` at the error that this check may make."""
    at_most: float | None
    """The upper bound on `worse_by` at 95 %; null where it is open."""
    verdict: GateVerdict


class GateMean(msgspec.Struct, kw_only=True, frozen=True):
    """How much worse the run is in the mean over levels: the geometric mean of their ratios, all with the
    same weight."""

    users: list[int]
    """The levels' numbers of users."""
    left_out: list[int]
    """Common levels with too few requests for this figure."""
    worse_by: float
    at_most: float | None
    """The upper bound on `worse_by` at 95 %; null where it is open."""


class GateCriterion(msgspec.Struct, kw_only=True, frozen=True):
    """One figure that the gate judges, with its checks at several levels.

    The verdict is "worse" if any check is "worse". It is "ok" if the mean over the levels is shown to be
    within the margin, and no level is suspected to be beyond it. Else it is "unclear".
    """

    figure: FigureName
    verdict: GateVerdict
    margin: float
    """The share by which the figure must surely not be worse: the margin of the gate and, for TTFT, the load
    generator's own lateness."""
    checks: list[GateCheck]
    mean: GateMean | None = None
    """Null for the maximum of users, which has a single check, and where no level has the figure."""
    why: str = ""
    """The reason for a verdict of "unclear"."""


class GateAnswer(msgspec.Struct, kw_only=True, frozen=True):
    """The verdict on whether the second run is worse than the first run, which is its baseline."""

    verdict: GateVerdict
    tolerance: float
    """A figure that is surely worse by more than this share fails the gate."""
    margin: float
    """A figure that is surely worse by less than this share passes the gate."""
    false_alarms: float
    """The probability, at most, of calling one of two equal deployments worse, all checks together."""
    criteria: list[GateCriterion]


class Comparison(msgspec.Struct, kw_only=True, frozen=True):
    """The content of compare.json."""

    schema: int = COMPARE_SCHEMA
    generated_unix_s: float
    confidence: float
    slo: Slo
    names: tuple[str, str]
    answers: tuple[ModelAnswer, ModelAnswer]
    """The answers of capacity.json for each run, under the same objectives."""
    common_levels: list[int]
    """Numbers of users at which both runs have a trusted level."""
    rows: list[ComparisonRow]
    differs: list[RunDifference]
    gate: GateAnswer | None = None
    warnings: list[str]
