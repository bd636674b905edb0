"""The gate: judges whether a run is worse than its baseline by more than noise. Reads no files."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from analysis.answers.compare import (
    MORE_IS_BETTER,
    FigureName,
    GateAnswer,
    GateCheck,
    GateCriterion,
    GateMean,
    GateVerdict,
)
from analysis.compare.contrasts import FigureContrast, contrast_at_level
from analysis.compare.sides import MeasuredDeployment, capacity_of, common_levels
from analysis.reporting.words import sentences
from analysis.statistics.ratios import Bounds, Quantity, exact_quantity, mean_ratio_bounds, ratio_bounds
from analysis.statistics.samples import finite_or_none

FALSE_ALARMS = 0.05
TOLERANCE = 0.05
MARGIN = 0.1
"""What runs of a few minutes can show of two equal deployments (`python -m benchmarks gate`)."""
OK_ERROR = 0.05
"""One-sided error of a criterion that says ok."""
JUDGED_LEVEL_FIGURES: tuple[FigureName, ...] = ("ttft_p95_s", "tpot_p95_s", "output_tok_s")


def gate_of(
    baseline: MeasuredDeployment,
    run: MeasuredDeployment,
    *,
    tolerance: float = TOLERANCE,
    margin: float = MARGIN,
    false_alarms: float = FALSE_ALARMS,
) -> GateAnswer:
    """Judges four criteria: capacity, TTFT p95, TPOT p95 and throughput.

    Capacity has one check. Each other criterion has one check for each level that is trusted in both runs
    and not above the baseline's limit. The verdict of a criterion is the first that applies:
    - "worse": at one level at least, the run is surely worse than the baseline by more than `tolerance`.
    - "ok": with an error of OK_ERROR, the run is not worse than `margin` (non-inferiority), which is at least
      the tolerance. Criteria with levels need this of the mean over their levels, and that no level is
      suspected to be worse.
    - "unclear": all other cases.

    The verdict of the gate is "worse" if any criterion is "worse", else "unclear" if any criterion is
    "unclear", else "ok".

    If the two deployments are equal, the gate says "worse" with a probability of at most `false_alarms`. Each
    criterion gets a quarter of `false_alarms`, divided equally among the levels (Bonferroni correction). If
    one figure is worse by the margin, the gate says "ok" with a probability of at most OK_ERROR, because
    all four criteria must say it.
    """
    levels, share = _levels(baseline, run), false_alarms / (1 + len(JUDGED_LEVEL_FIGURES))
    limits = _Limits(tolerance=tolerance, margin=max(margin, tolerance))
    criteria = [_capacity(baseline, run, limits, error=share)]
    criteria += [
        _level_criterion(figure, baseline, run, levels, limits, error=share)
        for figure in JUDGED_LEVEL_FIGURES
    ]
    verdicts = {criterion.verdict for criterion in criteria}
    verdict: GateVerdict = "worse" if "worse" in verdicts else "unclear" if "unclear" in verdicts else "ok"
    return GateAnswer(
        verdict=verdict,
        tolerance=tolerance,
        margin=limits.margin,
        false_alarms=false_alarms,
        criteria=criteria,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Limits:
    """Shares by which a figure may be worse: surely more than `tolerance` is worse, surely less than `margin`
    is ok."""

    tolerance: float
    margin: float

    def wider(self, share: float) -> "_Limits":
        return _Limits(tolerance=self.tolerance + share, margin=self.margin + share)


def _levels(baseline: MeasuredDeployment, run: MeasuredDeployment) -> list[int]:
    """Returns the numbers of users of the common levels that the gate checks, up to the baseline's limit.

    Beyond the limit, latencies are mostly noise, and nobody runs a server there. If the baseline has no
    limit, returns all common levels.
    """
    held = baseline.answer.headline.max_users
    return [users for users in common_levels(baseline, run) if held is None or users <= held]


NO_LEVEL = (
    "no level is trusted in both runs, held by the baseline, and long enough: run both at the same levels."
)
BASELINE_WITHOUT_WALL = (
    "the baseline met no wall, so it shows only that it holds {users:.0f}: run it at more users."
)
SUSPECTED = (
    "it may be more than {tolerance:g} % worse at {users} users (95 % sure there, too little for all checks "
    "together): hold that level for longer."
)
RUN_WITHOUT_WALL = "the run met no wall: measure it at more users."


# The maximum of users.


def _capacity(
    baseline: MeasuredDeployment, run: MeasuredDeployment, limits: _Limits, *, error: float
) -> GateCriterion:
    ours, theirs = capacity_of(baseline), capacity_of(run)
    if ours is None or theirs is None:
        side = baseline if ours is None else run
        why = f"the {side.name} has no answer. {' '.join(sentences(side.answer.reasons))}".rstrip()
        return GateCriterion(figure="max_users", verdict="unclear", margin=limits.margin, checks=[], why=why)
    without_wall = baseline.answer.headline.at_least
    if without_wall:
        ours = exact_quantity(ours.value)  # a run that surely holds fewer is worse all the same
    contrast = FigureContrast(figure="max_users", a=ours, b=theirs, bounds=ratio_bounds(ours, theirs))
    found = _check(ours, theirs, contrast, limits, error=error)
    verdict, why = found.verdict, ""
    if without_wall and verdict != "worse":
        verdict, why = "unclear", BASELINE_WITHOUT_WALL.format(users=ours.value)
    elif verdict == "unclear" and run.answer.headline.at_least:
        why = RUN_WITHOUT_WALL
    return GateCriterion(figure="max_users", verdict=verdict, margin=limits.margin, checks=[found], why=why)


# The figures of levels.


def _level_criterion(
    figure: FigureName,
    baseline: MeasuredDeployment,
    run: MeasuredDeployment,
    levels: Sequence[int],
    limits: _Limits,
    *,
    error: float,
) -> GateCriterion:
    contrasts = [contrast_at_level(figure, baseline, run, users) for users in levels]
    known = [one for one in contrasts if one.a is not None and one.b is not None]
    allowed = [limits.wider(_lateness(one, baseline, run)) for one in known]
    margin = max((one.margin for one in allowed), default=limits.margin)
    checks = [
        _check(one.a, one.b, one, limit, error=error / len(levels))
        for one, limit in zip(known, allowed, strict=True)
        if one.a is not None and one.b is not None
    ]
    mean = _mean(known, levels)
    suspected = [
        one.users or 0
        for one, limit in zip(known, allowed, strict=True)
        if _worse_by(one)(OK_ERROR)[0] > 1.0 + limit.tolerance
    ]
    verdict = _level_verdict(checks, mean, margin, suspected)
    why = "" if verdict != "unclear" or checks else NO_LEVEL
    if verdict == "unclear" and suspected:
        why = SUSPECTED.format(users=", ".join(map(str, suspected)), tolerance=100 * limits.tolerance)
    return GateCriterion(figure=figure, verdict=verdict, margin=margin, checks=checks, mean=mean, why=why)


def _level_verdict(
    checks: Sequence[GateCheck], mean: GateMean | None, margin: float, suspected: Sequence[int]
) -> GateVerdict:
    if any(check.verdict == "worse" for check in checks):
        return "worse"
    if mean is None or mean.at_most is None or mean.at_most > 1.0 + margin:
        return "unclear"
    if len(mean.users) < len(mean.left_out) or max(mean.left_out, default=0) > max(mean.users):
        return "unclear"  # the levels that cannot tell must not be outvoted
    return "unclear" if suspected else "ok"


def _mean(contrasts: Sequence[FigureContrast], levels: Sequence[int]) -> GateMean | None:
    if not contrasts:
        return None
    users = [one.users for one in contrasts if one.users is not None]
    ratios = [_ratio(one) for one in contrasts]
    at_most = mean_ratio_bounds(ratios, [_worse_by(one) for one in contrasts])(OK_ERROR)[1]
    return GateMean(
        users=users,
        left_out=[one for one in levels if one not in users],
        worse_by=math.exp(sum(map(math.log, ratios)) / len(ratios)),
        at_most=finite_or_none(at_most),
    )


def _lateness(contrast: FigureContrast, baseline: MeasuredDeployment, run: MeasuredDeployment) -> float:
    """Returns the load generator's largest lag at a level, as a share of the baseline's TTFT p95.

    It can make TTFT look worse by so much. 0 for the other figures.
    """
    if contrast.figure != "ttft_p95_s" or contrast.a is None or contrast.users is None:
        return 0.0
    lags = [level.lag_s for side in (baseline, run) for level in side.at(contrast.users)]
    return max((lag for lag in lags if not math.isnan(lag)), default=0.0) / contrast.a.value


def _check(
    ours: Quantity, theirs: Quantity, contrast: FigureContrast, limits: _Limits, *, error: float
) -> GateCheck:
    """Judges one figure of both runs.

    contrast: must have bounds on the ratio. error: the one-sided error that the verdict "worse" may have.
    """
    worse_by = _worse_by(contrast)
    at_least, at_most = worse_by(error)[0], worse_by(OK_ERROR)[1]
    verdict: GateVerdict = (
        "worse"
        if at_least > 1.0 + limits.tolerance
        else "ok"
        if at_most <= 1.0 + limits.margin
        else "unclear"
    )
    return GateCheck(
        users=contrast.users,
        baseline=ours.value,
        run=theirs.value,
        worse_by=_ratio(contrast),
        at_least=at_least,
        at_most=finite_or_none(at_most),
        verdict=verdict,
    )


def _ratio(contrast: FigureContrast) -> float:
    """Returns how many times worse run b is than run a, above 1 if it is worse."""
    assert contrast.a is not None
    assert contrast.b is not None
    ratio = contrast.b.value / contrast.a.value
    return 1.0 / ratio if contrast.figure in MORE_IS_BETTER else ratio


def _worse_by(contrast: FigureContrast) -> Bounds:
    """Returns bounds on how many times worse run b is than run a."""
    assert contrast.bounds is not None
    return _inverse(contrast.bounds) if contrast.figure in MORE_IS_BETTER else contrast.bounds


def _inverse(bounds: Bounds) -> Bounds:
    def turned(error: float) -> tuple[float, float]:
        low, high = bounds(error)
        return 1.0 / high, 1.0 / low if low > 0 else math.inf

    return turned
