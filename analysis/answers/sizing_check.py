"""The types of what `python -m analysis.compare --predicted` prints: a sizing held against a load test."""

from typing import Literal

import msgspec

from analysis.answers.sizing import FloatBand
from analysis.walls.names import WallName
from loadtest.record import Slo

SizingVerdict = Literal["supported", "refuted", "not established"]
"""supported: the measured interval lies in the predicted band, or overlaps it and is narrow enough. refuted:
the two are apart. not established: not measured, too wide an interval, or a wall that was not reached."""
MeasuredInterval = tuple[float, float | None]
"""Ends of a 90 % interval; the upper end is null where only a lower bound is known."""


class CheckedFigure(msgspec.Struct, kw_only=True, frozen=True):
    """One predicted figure beside what was measured."""

    figure: str
    """Such as `pool_tokens`, `users`, `users_kv_cache`, `ttft_p95_s`."""
    users: int | None = None
    """The load, for a figure of one level."""
    predicted: FloatBand
    measured: float | None = None
    interval: MeasuredInterval | None = None
    verdict: SizingVerdict
    ratio: float | None = None
    """Measured value divided by the predicted estimate."""
    off_at_least: float | None = None
    """Nearest ends of interval and band, measured divided by predicted; null unless refuted."""
    reason: str = ""
    correct: str | None = None
    """What to correct in the sizing; null where nothing has to be."""


class CheckedWall(msgspec.Struct, kw_only=True, frozen=True):
    """The wall that was predicted to be met first, beside the one that was."""

    predicted: WallName
    measured: WallName
    p_measured: dict[str, float] = {}
    """Probability that each wall is the first, as the analysis of the load test says."""
    verdict: SizingVerdict
    reason: str = ""


class SizingCheck(msgspec.Struct, kw_only=True, frozen=True):
    """A sizing held against a load test of the same deployment."""

    schema: int = 1
    model: str
    gpu: str
    runs: list[str]
    slo: Slo
    """The objectives of the sizing, by which the run is judged too."""
    differs: list[str]
    """What is not the same in the sizing and in the run, each a clause."""
    figures: list[CheckedFigure]
    binding: CheckedWall
    warnings: list[str] = []

    def counted(self, verdict: SizingVerdict) -> int:
        """Returns how many figures, the binding wall included, have this verdict."""
        verdicts = [*(one.verdict for one in self.figures), self.binding.verdict]
        return verdicts.count(verdict)
