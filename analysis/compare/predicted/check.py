"""Reads a sizing and a load test, and holds one against the other."""

import argparse
from collections.abc import Sequence

import msgspec

from analysis.answers.sizing import Sizing
from analysis.answers.sizing_check import CheckedWall, SizingCheck, SizingVerdict
from analysis.cli import RefusedError, stored_slo
from analysis.compare.pair import runs_of_one_model
from analysis.compare.predicted.conditions import Mismatch, blocking, mismatches_with, unknown_conditions
from analysis.compare.predicted.figures import (
    EVERYTHING,
    SizedAndMeasured,
    checked_figures,
    measured_lengths_advice,
)
from analysis.compare.predicted.sizing_file import read_sizing
from analysis.compare.sides import MeasuredDeployment, deployment_of
from analysis.reading.pooling import read_group
from analysis.reporting.console import ProgressBar
from analysis.reporting.words import sentences
from analysis.walls.names import WallName
from analysis.walls.placed import RESAMPLES
from loadtest.errors import InputError
from loadtest.record import Slo

SURE = 0.9
"""Probability from which on a wall is said to be the first: the level of all intervals."""


def check_sizing(options: argparse.Namespace, bar: ProgressBar) -> SizingCheck:
    """Holds a sizing against a load test.

    Raises InputError if either cannot be used, and RefusedError for an open loop or a sizing without users.
    """
    if any(getattr(options, f"slo_{name}") is not None for name in Slo.__struct_fields__):
        raise InputError(
            "With --predicted the objectives are those of the sizing: leave the --slo flags out."
        )
    sizing = read_sizing(options.predicted)
    (folder,) = options.runs
    group, notes = runs_of_one_model(folder)
    info = group[-1].info
    if info.arrivals:
        raise RefusedError(f"{folder} is an open loop: it has no users to compare a sizing with. Run levels.")
    slo = sizing.workload.slo if sizing.workload else stored_slo(info)
    slo = msgspec.structs.replace(slo, stall_p95_s=None)
    side = deployment_of(
        read_group(group, bar.task),
        name="measured",
        slo=slo,
        on_step=bar.task("placing the walls", total=RESAMPLES),
    )
    differs = mismatches_with(sizing, side)
    both = SizedAndMeasured(sizing=sizing, side=side, differs=differs, folder=folder)
    figures = checked_figures(both)
    return SizingCheck(
        model=side.answer.model,
        gpu=sizing.gpu,
        runs=side.answer.runs,
        slo=slo,
        differs=[one.text for one in differs],
        figures=figures,
        binding=checked_wall(sizing, side, differs),
        warnings=[*notes, *_stalls_left_out(stored_slo(info)), *_warnings(both)],
    )


def _stalls_left_out(slo: Slo) -> list[str]:
    if slo.stall_p95_s is None:
        return []
    return ["A sizing does not predict stalls: the run's objective for them is left out."]


def _warnings(both: SizedAndMeasured) -> list[str]:
    side = both.side
    found = unknown_conditions(both.sizing, side)
    if blocking(both.differs, ["lengths"]) and (advice := measured_lengths_advice(both)):
        found.append(advice)
    if both.sizing.at is not None and both.sizing.at.users is None:
        found.append(
            "The sizing predicts latencies at a rate; the run has levels of users: they are left out."
        )
    return found + sentences(side.answer.warnings) + sentences(side.answer.reasons)


def checked_wall(sizing: Sizing, side: MeasuredDeployment, differs: Sequence[Mismatch]) -> CheckedWall:
    """Judges which wall is met first."""
    head = side.answer.headline
    verdict, reason = _wall_verdict(sizing, side, differs)
    return CheckedWall(
        predicted=sizing.binding,
        measured=head.binding,
        p_measured=head.p_binding,
        verdict=verdict,
        reason=reason,
    )


def _wall_verdict(
    sizing: Sizing, side: MeasuredDeployment, differs: Sequence[Mismatch]
) -> tuple[SizingVerdict, str]:
    head = side.answer.headline
    if reason := blocking(differs, EVERYTHING):
        return "not established", reason
    if side.refused or head.binding == "not_reached":
        return "not established", "no wall was reached"
    if head.p_binding.get(head.binding, 0.0) < SURE:
        return "not established", "the load test does not tell which wall comes first"
    if head.binding == sizing.binding:
        return "supported", "the same wall comes first"
    if head.binding in possible_walls(sizing):
        return "not established", "the bands of the sizing leave open which of these walls comes first"
    return "refuted", "another wall comes first"


def possible_walls(sizing: Sizing) -> list[WallName]:
    """Returns the walls that may come first as far as the bands of the sizing tell."""
    first = min((one.interval_x[1] for one in sizing.bounds), default=0.0)
    return [one.name for one in sizing.bounds if one.interval_x[0] <= first]
