"""The gate: judges whether a run is worse than its baseline by more than noise. Reads no files."""

import math
from collections.abc import Sequence

from analysis.answers.compare import (
    MORE_IS_BETTER,
    FigureName,
    GateAnswer,
    GateCheck,
    GateCriterion,
    GateVerdict,
)
from analysis.compare.contrasts import FigureContrast, contrast_at_level
from analysis.compare.sides import MeasuredDeployment, capacity_of, common_levels
from analysis.reporting.words import sentences
from analysis.statistics.ratios import Bounds, Quantity, exact_quantity, ratio_bounds
from analysis.statistics.samples import finite_or_none

FALSE_ALARMS = 0.05
TOLERANCE = 0.05
BLIND_FACTOR = 1.5
"""A check is ok only if it is OK_ERROR sure that the run is less than this many times worse."""
OK_ERROR = 0.05
"""One-sided error of a check that says ok."""
JUDGED_LEVEL_FIGURES: tuple[FigureName, ...] = ("ttft_p95_s", "tpot_p95_s", "output_tok_s")


def gate_of(
    baseline: MeasuredDeployment,
    run: MeasuredDeployment,
    *,
    tolerance: float = TOLERANCE,
    false_alarms: float = FALSE_ALARMS,
) -> GateAnswer:
    """Judges four criteria: capacity, TTFT p95, TPOT p95 and throughput.

    Capacity has one check. Each other criterion has one check for each level that is trusted in both runs
    and not above the baseline's limit. The verdict of a check is the first that applies:
    - "worse": the run is surely worse than the baseline by more than `tolerance`.
    - "ok": the run is less than BLIND_FACTOR times as bad as the baseline, with an error of OK_ERROR.
    - "unclear": all other cases.

    `_criterion` combines the checks of a criterion. The verdict of the gate is "worse" if any criterion is
    "worse", else "unclear" if any criterion is "unclear", else "ok".

    If the two deployments are equal, the gate says "worse" with a probability of at most `false_alarms`. Each
    criterion gets a quarter of `false_alarms`, divided equally among the levels (Bonferroni correction).
    """
    levels, share = _levels(baseline, run), false_alarms / (1 + len(JUDGED_LEVEL_FIGURES))
    criteria = [_capacity(baseline, run, error=share, tolerance=tolerance)]
    for figure in JUDGED_LEVEL_FIGURES:
        contrasts = [contrast_at_level(figure, baseline, run, users) for users in levels]
        checks = [
            _check(
                contrast.a,
                contrast.b,
                contrast,
                error=share / len(levels),
                tolerance=_check_tolerance(contrast, baseline, run, tolerance),
            )
            for contrast in contrasts
            if contrast.a is not None and contrast.b is not None
        ]
        criteria.append(_criterion(figure, checks))
    verdicts = {criterion.verdict for criterion in criteria}
    verdict: GateVerdict = "worse" if "worse" in verdicts else "unclear" if "unclear" in verdicts else "ok"
    return GateAnswer(verdict=verdict, tolerance=tolerance, false_alarms=false_alarms, criteria=criteria)


def _levels(baseline: MeasuredDeployment, run: MeasuredDeployment) -> list[int]:
    """Returns the numbers of users of the common levels that the gate checks, up to the baseline's limit.

    Beyond the limit, latencies are mostly noise, and nobody runs a server there. If the baseline has no
    limit, returns all common levels.
    """
    held = baseline.answer.headline.max_users
    return [users for users in common_levels(baseline, run) if held is None or users <= held]


def _check_tolerance(
    contrast: FigureContrast, baseline: MeasuredDeployment, run: MeasuredDeployment, tolerance: float
) -> float:
    """Returns the tolerance of one check, as a share of the baseline's value.

    For TTFT p95, adds the load generator's largest lag at this level, divided by the baseline's TTFT p95.
    """
    if contrast.figure != "ttft_p95_s" or contrast.a is None or contrast.users is None:
        return tolerance
    lags = [level.lag_s for side in (baseline, run) for level in side.at(contrast.users)]
    return tolerance + max((lag for lag in lags if not math.isnan(lag)), default=0.0) / contrast.a.value


def _capacity(
    baseline: MeasuredDeployment, run: MeasuredDeployment, *, error: float, tolerance: float
) -> GateCriterion:
    ours, theirs = capacity_of(baseline), capacity_of(run)
    if ours is None or theirs is None:
        reasons = (baseline if ours is None else run).judgement.reasons
        return GateCriterion(
            figure="max_users", verdict="unclear", checks=[], why=" ".join(sentences(reasons))
        )
    if baseline.answer.headline.at_least:
        ours = exact_quantity(ours.value)  # the baseline showed no more users, so the run need not
    contrast = FigureContrast(figure="max_users", a=ours, b=theirs, bounds=ratio_bounds(ours, theirs))
    found = _check(ours, theirs, contrast, error=error, tolerance=tolerance)
    why = ""
    if found.verdict == "unclear":
        why = "The run met no wall: measure it at more users." if run.answer.headline.at_least else TOO_WIDE
    return GateCriterion(figure="max_users", verdict=found.verdict, checks=[found], why=why)


TOO_WIDE = (
    "The intervals are too wide for a verdict: hold levels for longer, or run more of them near the wall."
)
NO_LEVEL = (
    "No level is trusted in both runs, held by the baseline, and long enough: run both at the same levels."
)


def _check(
    ours: Quantity, theirs: Quantity, contrast: FigureContrast, *, error: float, tolerance: float
) -> GateCheck:
    """Judges one figure of both runs.

    contrast: must have bounds on the ratio. error: the one-sided error that the verdict "worse" may have.
    """
    assert contrast.bounds is not None
    turned = contrast.figure in MORE_IS_BETTER
    worse_by = _inverse(contrast.bounds) if turned else contrast.bounds
    ratio = theirs.value / ours.value
    at_least, at_most = worse_by(error)[0], worse_by(OK_ERROR)[1]
    verdict: GateVerdict = (
        "worse" if at_least > 1.0 + tolerance else "ok" if at_most < BLIND_FACTOR else "unclear"
    )
    return GateCheck(
        users=contrast.users,
        baseline=ours.value,
        run=theirs.value,
        worse_by=1.0 / ratio if turned else ratio,
        at_least=at_least,
        at_most=finite_or_none(at_most),
        verdict=verdict,
    )


def _inverse(bounds: Bounds) -> Bounds:
    def turned(error: float) -> tuple[float, float]:
        low, high = bounds(error)
        return 1.0 / high, 1.0 / low if low > 0 else math.inf

    return turned


def _criterion(figure: FigureName, checks: Sequence[GateCheck]) -> GateCriterion:
    """Combines the checks of one figure into a criterion.

    The verdict is "worse" if any check is "worse". If none is, it is "ok" if any check is "ok", and "unclear"
    if no check is.
    """
    verdicts = {check.verdict for check in checks}
    verdict: GateVerdict = "worse" if "worse" in verdicts else "ok" if "ok" in verdicts else "unclear"
    why = "" if verdict != "unclear" else TOO_WIDE if checks else NO_LEVEL
    return GateCriterion(figure=figure, verdict=verdict, checks=list(checks), why=why)
