"""Judges one predicted band by a measured interval. Knows no figure by name."""

import math
from dataclasses import dataclass

from analysis.answers.sizing import FloatBand
from analysis.answers.sizing_check import MeasuredInterval, SizingVerdict

NARROW = 1.2
"""Widest measured interval, upper end over lower end, that supports a band narrower than itself. Chosen: the
interval of a wall that levels of 30 s surround is rarely wider (docs/benchmarks.md)."""
FACT = 0.001
"""Share by which figures without an error may differ and be equal: memory comes in whole blocks."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BandVerdict:
    """The verdict on a figure, its reason, and for a refuted one how far apart interval and band are."""

    verdict: SizingVerdict
    reason: str = ""
    off_at_least: float | None = None


def judge_band(predicted: FloatBand, value: float | None, interval: MeasuredInterval) -> BandVerdict:
    """Judges a band by a measured interval.

    value: the measured estimate; None where only bounds are known.
    """
    low, high = interval[0], math.inf if interval[1] is None else interval[1]
    bottom, _, top = predicted
    slack = FACT if bottom == top else 0.0
    if low > top * (1 + slack):
        return _refuted("more", low / top if top else math.inf)
    if high < bottom * (1 - slack):
        return _refuted("less", high / bottom)
    if bottom <= low and high <= top:
        return BandVerdict(verdict="supported", reason="the measured interval lies within the predicted band")
    if math.isinf(high):
        return BandVerdict(verdict="not established", reason=f"measured only to be at least {low:.3g}")
    width = high / low if low > 0 else math.inf
    if width > max(NARROW, top / bottom if bottom > 0 else 1.0):
        return BandVerdict(
            verdict="not established",
            reason="the measured interval is wider than the predicted band: hold levels for longer",
        )
    if value is not None and not bottom * (1 - slack) <= value <= top * (1 + slack) and bottom != top:
        return BandVerdict(
            verdict="not established",
            reason="the measured value lies outside the band, but not surely: hold levels for longer",
        )
    return BandVerdict(verdict="supported", reason="the measured interval overlaps the predicted band")


def _refuted(direction: str, off: float) -> BandVerdict:
    times = off if direction == "more" else 1 / off if off else math.inf
    share = 100 * (times - 1) if direction == "more" else 100 * (1 - 1 / times)
    said = (
        f"{times:.3g} times the band's upper end"
        if share >= 100
        else f"{share:.2g} % {direction} than the band"
    )
    return BandVerdict(verdict="refuted", reason=f"at least {said}", off_at_least=off)
