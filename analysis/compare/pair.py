"""Reads the two runs of a comparison, and refuses runs that must not be compared."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from analysis.answers.compare import Comparison
from analysis.cli import RefusedError, cli_flag, slo_of
from analysis.compare.comparison import comparison_of
from analysis.compare.differences import mismatches, version_of
from analysis.compare.sides import deployment_of
from analysis.reading.pooling import choose_runs, read_group
from analysis.reading.runs import RunFolder, find_runs, run_bytes
from analysis.reporting.console import ProgressBar
from analysis.reporting.words import words
from analysis.walls.placed import RESAMPLES
from loadtest.errors import InputError
from loadtest.record import RunInfo, Slo


def read_and_compare(options: argparse.Namespace, bar: ProgressBar) -> Comparison:
    """Reads both runs and compares them.

    Raises InputError if a run cannot be used, and RefusedError if the runs must not be compared.
    """
    groups, notes = [], []
    for folder in options.runs:
        group, warnings = runs_of_one_model(folder)
        groups.append(group)
        notes += warnings
    a, b = (group[-1].info for group in groups)
    _refuse(groups, a, b)
    slo = _common_slo(options, a, b)
    sides = [
        deployment_of(
            read_group(group, bar.task),
            name=name,
            slo=slo,
            on_step=bar.task("placing the walls", total=RESAMPLES),
        )
        for group, name in zip(groups, _names(groups, options), strict=True)
    ]
    return comparison_of(
        sides[0],
        sides[1],
        slo=slo,
        gate=options.gate,
        tolerance=options.tolerance,
        margin=options.margin,
        notes=notes,
    )


def runs_of_one_model(folder: Path) -> tuple[list[RunFolder], list[str]]:
    """Returns the newest runs of a folder that can be pooled, and a warning for the runs that are left out.

    Raises InputError if the folder holds runs of several models.
    """
    groups, left_out = choose_runs(find_runs(folder), None)
    if len(groups) > 1:
        names = ", ".join(group[0].info.model for group in groups)
        raise InputError(f"{folder} holds runs of several models ({names}): name the run folder of one.")
    return groups[0], [words(note) for notes in left_out.values() for note in notes]


def _refuse(groups: Sequence[Sequence[RunFolder]], a: RunInfo, b: RunInfo) -> None:
    """Checks that the two runs may be compared.

    Raises RefusedError if they must not be compared, and InputError if both are the same run.
    """
    first, second = ({run.info.run_id: run_bytes(run) for run in group} for group in groups)
    if first.items() & second.items():
        raise InputError("Both are the same run: a comparison needs two that were made apart.")
    found = mismatches(a, b)
    if found:
        raise RefusedError(
            f"These runs must not be compared, because they differ in {'; '.join(found)}. Run both with the "
            "same workload on the same GPU."
        )
    if a.arrivals and b.arrivals:
        raise RefusedError(
            "Both runs are open loops: without users there is no equal load to compare at. Run levels."
        )


def _common_slo(options: argparse.Namespace, a: RunInfo, b: RunInfo) -> Slo:
    """Returns the objectives by which both runs are judged.

    Raises RefusedError if the objectives of the runs differ and no flag sets them.
    """
    ours, theirs = slo_of(options, a), slo_of(options, b)
    differ = [name for name in Slo.__struct_fields__ if getattr(ours, name) != getattr(theirs, name)]
    if differ:
        flags = " and ".join(cli_flag(f"slo_{name}") for name in differ)
        raise RefusedError(
            f"These runs were made with different objectives: say which to judge both by, with {flags}."
        )
    return ours


def _names(groups: Sequence[Sequence[RunFolder]], options: argparse.Namespace) -> tuple[str, str]:
    """Returns the names of the two runs: "baseline" and "run" for a gate.

    Without a gate, the names are the first of these that differ: models, server versions, folders.
    """
    a, b = (group[-1].info for group in groups)
    if options.gate:
        return "baseline", "run"
    if a.model != b.model:
        return a.model, b.model
    if (a.server.engine, a.server.version) != (b.server.engine, b.server.version):
        return version_of(a), version_of(b)
    first, second = (folder.resolve().name for folder in options.runs)
    return (first, second) if first != second else (str(options.runs[0]), str(options.runs[1]))
