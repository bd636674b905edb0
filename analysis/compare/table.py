"""Builds the table of a comparison.

Each row holds one figure of both runs, and says whether the runs differ by more than chance.
"""

from dataclasses import replace

from analysis.answers.compare import ComparisonRow, DifferenceVerdict, FigureName, SideFigure
from analysis.capacity.headline import CONFIDENCE
from analysis.compare.contrasts import (
    FigureContrast,
    contrast_at_level,
    contrast_of_estimates,
    contrast_of_facts,
)
from analysis.compare.sides import (
    MeasuredDeployment,
    capacity_of,
    common_levels,
    kv_tokens,
    memory_users,
    scaled_quantity,
)
from analysis.compare.vram import vram_of
from analysis.statistics.ratios import Quantity, ratio_bounds
from analysis.statistics.samples import finite_or_none

CHANCE = 0.05
"""Largest probability that the table calls any figure of two equal deployments different."""
SAME_FACT = 0.001
"""Share by which facts may differ and still be called equal, because memory comes in whole blocks."""
LEVEL_FIGURES: tuple[FigureName, ...] = (
    "ttft_p50_s",
    "ttft_p95_s",
    "decode_tok_s",
    "tpot_p95_s",
    "stall_p95_s",
    "output_tok_s",
)


def comparison_rows(a: MeasuredDeployment, b: MeasuredDeployment) -> list[ComparisonRow]:
    """Returns the rows of the table. Latencies and throughput are given only at the `headline_levels`, and
    stalls only where they have an objective."""
    stalls_matter = any(side.judgement.evidence.slo.stall_p95_s is not None for side in (a, b))
    figures = [name for name in LEVEL_FIGURES if name != "stall_p95_s" or stalls_matter]
    contrasts = [
        contrast_of_estimates("max_users", a, b, capacity_of),
        contrast_of_estimates("memory_users", a, b, memory_users),
    ]
    for users in headline_levels(a, b):
        contrasts += [contrast_at_level(figure, a, b, users) for figure in figures]
    contrasts += _memory_contrasts(a, b)
    known = [contrast for contrast in contrasts if contrast.a is not None or contrast.b is not None]
    tests = sum(contrast.bounds is not None for contrast in known)
    return [_row(contrast, a, b, tests=max(tests, 1)) for contrast in known]


def headline_levels(a: MeasuredDeployment, b: MeasuredDeployment) -> list[int]:
    """Returns the numbers of users for which the table shows latencies and throughput, at most two, sorted.

    They are the lowest common level, and the highest common level that lies within the limits of both runs.
    """
    common = common_levels(a, b)
    held = [
        users for users in common if all(users <= (side.answer.headline.max_users or 0) for side in (a, b))
    ]
    return sorted({*common[:1], *held[-1:]})


def _memory_contrasts(a: MeasuredDeployment, b: MeasuredDeployment) -> list[FigureContrast]:
    per = [side.answer.memory.bytes_per_token for side in (a, b)]
    tokens = contrast_of_estimates("kv_tokens_per_user", a, b, kv_tokens)
    ours, theirs = scaled_quantity(tokens.a, per[0]), scaled_quantity(tokens.b, per[1])
    vram = [vram_of(side) for side in (a, b)]
    predicted = any(side.predicted for side in vram)
    return [
        tokens,
        FigureContrast(
            figure="kv_bytes_per_user",
            a=ours,
            b=theirs,
            bounds=ratio_bounds(ours, theirs) if ours and theirs else None,
        ),
        contrast_of_facts("kv_bytes_per_token", per),
        contrast_of_facts("kv_pool_tokens", [side.answer.memory.pool_tokens for side in (a, b)]),
        replace(
            contrast_of_facts("vram_no_load_bytes", [side.no_load for side in vram]), predicted=predicted
        ),
        replace(
            contrast_of_facts("vram_at_peak_bytes", [side.at_peak for side in vram]), predicted=predicted
        ),
        replace(contrast_of_facts("vram_held_bytes", [side.held for side in vram]), predicted=predicted),
        contrast_of_facts("max_model_len", [side.info.server.max_model_len for side in (a, b)]),
    ]


def _row(
    contrast: FigureContrast, a: MeasuredDeployment, b: MeasuredDeployment, *, tests: int
) -> ComparisonRow:
    open_ended = contrast.figure == "max_users"
    sides = [
        _side(quantity, at_least=open_ended and side.answer.headline.at_least, predicted=contrast.predicted)
        for quantity, side in ((contrast.a, a), (contrast.b, b))
    ]
    both = contrast.a is not None and contrast.b is not None and not any(side.at_least for side in sides)
    return ComparisonRow(
        figure=contrast.figure,
        users=contrast.users,
        a=sides[0],
        b=sides[1],
        ratio=contrast.b.value / contrast.a.value if both and contrast.a and contrast.b else None,
        ratio_interval=_ends(contrast.bounds((1.0 - CONFIDENCE) / 2)) if contrast.bounds else None,
        different=_different(contrast, tests),
    )


def _side(quantity: Quantity | None, *, at_least: bool, predicted: bool) -> SideFigure:
    if quantity is None:
        return SideFigure()
    low, high = quantity.bounds((1.0 - CONFIDENCE) / 2)
    interval = (low, finite_or_none(high)) if low != high else None
    return SideFigure(value=quantity.value, interval=interval, at_least=at_least, predicted=predicted)


def _ends(bounds: tuple[float, float]) -> tuple[float | None, float | None]:
    """Returns the ends of an interval of a ratio, with None for an open end."""
    low, high = bounds
    return low if low > 0 else None, finite_or_none(high)


def _different(contrast: FigureContrast, tests: int) -> DifferenceVerdict | None:
    """Returns whether a and b differ; None if the figure of a or of b is not known.

    - "yes": the difference is more than chance, also when all `tests` tests of the table are considered
      (Bonferroni correction); or two exact facts are not the same;
    - "perhaps": the difference would be more than chance if this row were the only one;
    - "not_seen": no difference was detected;
    - "equal": two exact facts are the same.
    """
    if contrast.a is None or contrast.b is None:
        return None
    if contrast.bounds is None:
        return "equal" if abs(contrast.b.value / contrast.a.value - 1.0) < SAME_FACT else "yes"
    if _excludes_one(contrast.bounds(CHANCE / 2 / tests)):
        return "yes"
    return "perhaps" if _excludes_one(contrast.bounds((1.0 - CONFIDENCE) / 2)) else "not_seen"


def _excludes_one(ends: tuple[float, float]) -> bool:
    return ends[0] > 1.0 or ends[1] < 1.0
