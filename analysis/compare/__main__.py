"""Two models, or two versions of a server, side by side: `python -m analysis.compare RUN RUN`; with `--gate`,
a verdict on whether the second got worse."""

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from analysis.answers.compare import Comparison
from analysis.capacity.headline import CONFIDENCE
from analysis.cli import ExitCode, RefusedError, add_slo_flags, slo_of
from analysis.compare.comparison import SAME_RUN, comparison_rows, differs, gpu_of, mismatches, version_of
from analysis.compare.gate import TOLERANCE, gate_of
from analysis.compare.sides import (
    MeasuredDeployment,
    common_levels,
    deployment_of,
)
from analysis.reading.pooling import choose_runs, read_group
from analysis.reading.runs import RunFolder, find_runs, run_bytes
from analysis.reporting import compare as compare_report
from analysis.reporting.console import complain, progress
from analysis.reporting.not_pooled import not_pooled_text
from analysis.walls.placed import RESAMPLES
from loadtest.errors import InputError
from loadtest.record import RunInfo, Slo

# The command.


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m analysis.compare`. Returns the exit code: 0 compared (a gate: not worse), 2 unreadable, 3
    refused, 4 the gate failed."""
    options = _parser().parse_args(argv)
    try:
        found = read_and_compare(options)
        if options.output is not None:
            compare_report.write_comparison(found, folder=options.output)
    except InputError as problem:
        complain(str(problem))
        return ExitCode.BAD_INPUT
    except RefusedError as refusal:
        complain(str(refusal))
        return ExitCode.REFUSED
    except KeyboardInterrupt:
        return ExitCode.INTERRUPTED
    compare_report.show_comparison(found, form=options.format, folder=options.output)
    if found.gate is None:
        return ExitCode.ANSWERED
    exit_codes = {"ok": ExitCode.ANSWERED, "unclear": ExitCode.REFUSED, "worse": ExitCode.GATE_FAILED}
    return exit_codes[found.gate.verdict]


def read_and_compare(options: argparse.Namespace) -> Comparison:
    """Reads both sides and compares them. Raises InputError and RefusedError."""
    groups, notes = [], []
    for folder in options.runs:
        group, warnings = _one_model(folder)
        groups.append(group)
        notes += warnings
    a, b = (group[-1].info for group in groups)
    _refuse(groups, a, b)
    slo = _common_slo(options, a, b)
    with progress() as bar:
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
        sides[0], sides[1], slo=slo, gate=options.gate, tolerance=options.tolerance, notes=notes
    )


def comparison_of(
    a: MeasuredDeployment,
    b: MeasuredDeployment,
    *,
    slo: Slo,
    gate: bool = False,
    tolerance: float = TOLERANCE,
    notes: Sequence[str] = (),
) -> Comparison:
    """Raises RefusedError where the two have nothing that can be compared."""
    common = common_levels(a, b)
    if not common and (a.refused or b.refused):
        why = " ".join((a if a.refused else b).judgement.reasons)
        raise RefusedError(
            f"These runs have no level that is trusted in both, and no capacity to compare: {why}"
        )
    return Comparison(
        generated_unix_s=time.time(),
        confidence=CONFIDENCE,
        slo=slo,
        names=(a.name, b.name),
        answers=(a.answer, b.answer),
        common_levels=common,
        rows=comparison_rows(a, b),
        differs=differs(a.info, b.info),
        gate=gate_of(a, b, tolerance=tolerance) if gate else None,
        warnings=[*notes, *warnings_of_both(a, b, common)],
    )


def warnings_of_both(a: MeasuredDeployment, b: MeasuredDeployment, common: Sequence[int]) -> list[str]:
    found = []
    if not common:
        levels = " and ".join(
            ", ".join(map(str, side.judgement.evidence.trusted)) or "none" for side in (a, b)
        )
        found.append(
            f"No level is trusted in both runs (users: {levels}): latency and throughput are not compared. "
            "Run both at the same --levels."
        )
    if None in (gpu_of(a.info), gpu_of(b.info)):
        found.append(
            "Whether both ran on the same kind of GPU is not known: a run does not say which it was."
        )
    for side in (a, b):
        found += [f"{side.name}: {warning}" for warning in side.answer.warnings]
        found += [f"{side.name}: {reason}" for reason in side.judgement.reasons]
    return found


def _one_model(folder: Path) -> tuple[list[RunFolder], list[str]]:
    """The newest runs there that may be pooled, as `analysis.capacity` chooses them, and what it left out."""
    groups, left_out = choose_runs(find_runs(folder), None)
    if len(groups) > 1:
        names = ", ".join(group[0].info.model for group in groups)
        raise InputError(f"{folder} holds runs of several models ({names}): name the run folder of one.")
    return groups[0], [not_pooled_text(note) for notes in left_out.values() for note in notes]


def _refuse(groups: Sequence[Sequence[RunFolder]], a: RunInfo, b: RunInfo) -> None:
    """Raises RefusedError, or InputError where both sides share a run."""
    first, second = ({run.info.run_id: run_bytes(run) for run in group} for group in groups)
    if first.items() & second.items():
        raise InputError(SAME_RUN)
    found = mismatches(a, b)
    if found:
        raise RefusedError(
            f"These runs must not be compared, because they differ in {'; '.join(found)}. Run both with the "
            "same workload on the same GPU."
        )
    if a.arrivals and b.arrivals:
        raise RefusedError(
            "Both are open loops: they have no users, so there is no equal load to compare at. Run levels."
        )


def _common_slo(options: argparse.Namespace, a: RunInfo, b: RunInfo) -> Slo:
    """Raises RefusedError where the runs were made with different objectives and no flag decides."""
    ours, theirs = slo_of(options, a), slo_of(options, b)
    differ = [name for name in Slo.__struct_fields__ if getattr(ours, name) != getattr(theirs, name)]
    if differ:
        flags = " and ".join(f"--slo-{name.replace('_', '-')}" for name in differ)
        raise RefusedError(
            f"These runs were made with different objectives: say which to judge both by, with {flags}."
        )
    return ours


def _names(groups: Sequence[Sequence[RunFolder]], options: argparse.Namespace) -> tuple[str, str]:
    """What tells the two apart: their models, else their servers' versions, else their folders."""
    a, b = (group[-1].info for group in groups)
    if options.gate:
        return "baseline", "run"
    if a.model != b.model:
        return a.model, b.model
    if (a.server.engine, a.server.version) != (b.server.engine, b.server.version):
        return version_of(a), version_of(b)
    first, second = (folder.resolve().name for folder in options.runs)
    return (first, second) if first != second else (str(options.runs[0]), str(options.runs[1]))


def _tolerance(text: str) -> float:
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a share from 0 to 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare",
        description="Two models, or two versions of a server, side by side: how many users each holds, how "
        "fast and at what memory, and which differences are real. Both runs must have the same workload and "
        "GPU.",
        epilog="Exit codes: 0 compared, and with --gate: not worse; 2 wrong usage or unreadable input; 3 "
        "refused, or the data cannot support a verdict; 4 the gate failed.",
    )
    add = parser.add_argument
    add("runs", type=Path, nargs=2, metavar="RUN", help="a run folder, or a folder of runs of one model")
    add("--gate", action="store_true", help="has the second run got worse than the first, its baseline?")
    add(
        "--tolerance",
        type=_tolerance,
        default=TOLERANCE,
        metavar="F",
        help="with --gate: let pass what is worse by less than this share (default %(default)s)",
    )
    add(
        "--format",
        choices=compare_report.COMPARE_FORMS,
        default="text",
        help="what is printed (default %(default)s)",
    )
    add(
        "--output",
        type=Path,
        metavar="DIR",
        help="also write compare.html, compare.md and compare.json there",
    )
    add_slo_flags(parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
