"""Puts a figure of run a beside the same figure of run b, with bounds on the ratio b / a."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from analysis.answers.compare import FigureName
from analysis.compare.sides import (
    MeasuredDeployment,
    decode_tok_s_of,
    latency_sample,
    throughput_of,
    ttft_s_of,
)
from analysis.levels.requests import tpot_of
from analysis.reading.columns import Requests
from analysis.statistics.arrays import Floats
from analysis.statistics.ratios import (
    Bounds,
    Quantity,
    exact_quantity,
    quantile,
    quantile_ratio_bounds,
    ratio_bounds,
)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class FigureContrast:
    """One figure of both runs; a or b is None if the figure is not known for this run."""

    figure: FigureName
    users: int | None = None
    a: Quantity | None
    b: Quantity | None
    bounds: Bounds | None = None
    """Bounds on b / a; None if both are facts, or if one is missing."""
    predicted: bool = False


def contrast_of_estimates(
    figure: FigureName,
    a: MeasuredDeployment,
    b: MeasuredDeployment,
    of: Callable[[MeasuredDeployment], Quantity | None],
) -> FigureContrast:
    """Compares a figure that is estimated with an uncertainty in each run.

    of: takes a run and returns its estimate; None if not known.
    """
    ours, theirs = of(a), of(b)
    bounds = ratio_bounds(ours, theirs) if ours and theirs else None
    return FigureContrast(figure=figure, a=ours, b=theirs, bounds=bounds)


def contrast_of_facts(figure: FigureName, values: Sequence[float | None]) -> FigureContrast:
    """Compares a figure that is known without error in each run.

    values: the value of a and the value of b; None for a value that is not known.
    """
    ours, theirs = (exact_quantity(value) if value else None for value in values)
    return FigureContrast(figure=figure, a=ours, b=theirs)


def contrast_at_level(
    figure: FigureName, a: MeasuredDeployment, b: MeasuredDeployment, users: int
) -> FigureContrast:
    """Compares a latency figure or the throughput of the trusted levels at `users` users in both runs."""
    if figure == "output_tok_s":
        return replace(
            contrast_of_estimates(figure, a, b, lambda side: throughput_of(side, users)), users=users
        )
    of, share = _QUANTILES[figure]
    ours, theirs = latency_sample(a, users, of), latency_sample(b, users, of)
    first, second = (quantile(sample, share) if sample else None for sample in (ours, theirs))
    known = ours and theirs and first and second
    bounds = quantile_ratio_bounds(ours, theirs, share) if known and ours and theirs else None
    return FigureContrast(figure=figure, users=users, a=first, b=second, bounds=bounds)


_QUANTILES: dict[FigureName, tuple[Callable[[Requests], Floats], float]] = {
    "ttft_p50_s": (ttft_s_of, 0.5),
    "ttft_p95_s": (ttft_s_of, 0.95),
    "decode_tok_s": (decode_tok_s_of, 0.5),
    "tpot_p95_s": (tpot_of, 0.95),
    "stall_p95_s": (lambda rows: rows.longest_gap_s, 0.95),
}
