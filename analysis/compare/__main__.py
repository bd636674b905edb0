"""`python -m analysis.compare RUN RUN` compares two models, or two versions of a server.

With `--gate` it tells CI whether the second run is worse than the first, and with `--predicted` whether one
run supports what a sizing predicted.
"""

from analysis.interruption import end_interruptions_with_a_sentence

if __name__ == "__main__":
    end_interruptions_with_a_sentence()  # first: the imports below take a second

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.answers.compare import GateVerdict
from analysis.cli import ExitCode, add_slo_flags, end_with_sentence
from analysis.compare.gate import MARGIN, TOLERANCE
from analysis.compare.pair import read_and_compare
from analysis.compare.predicted.check import check_sizing
from analysis.reporting import compare as compare_report
from analysis.reporting.console import progress
from analysis.reporting.followup.sizing_check import show_sizing_check
from loadtest.errors import InputError

EXIT_CODES: dict[GateVerdict, ExitCode] = {
    "ok": ExitCode.ANSWERED,
    "unclear": ExitCode.REFUSED,
    "worse": ExitCode.GATE_FAILED,
}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m analysis.compare` and returns the exit code.

    With --gate, the exit code depends on the verdict of the gate.
    """
    options = _parser().parse_args(argv)
    return end_with_sentence(lambda: _checked(options) if options.predicted else _compared(options))


def _checked(options: argparse.Namespace) -> ExitCode:
    """Holds a sizing against one run. The code is REFUSED if no figure can be compared."""
    if len(options.runs) != 1 or options.gate or options.output:
        raise InputError("--predicted takes one RUN, and neither --gate nor --output.")
    with progress() as bar:
        found = check_sizing(options, bar)
    show_sizing_check(found, form=options.format)
    answered = found.counted("supported") + found.counted("refuted")
    return ExitCode.ANSWERED if answered else ExitCode.REFUSED


def _compared(options: argparse.Namespace) -> ExitCode:
    if len(options.runs) != 2:
        raise InputError("A comparison takes two runs: RUN RUN, or --predicted SIZING.json RUN.")
    with progress() as bar:
        found = read_and_compare(options, bar)
    if options.output is not None:
        compare_report.write_comparison(found, folder=options.output)
    compare_report.show_comparison(found, form=options.format, folder=options.output)
    return EXIT_CODES[found.gate.verdict] if found.gate else ExitCode.ANSWERED


def _share(text: str) -> float:
    """Parses the value of --tolerance or --margin, a number that is at least 0 and below 1."""
    value = float(text)
    if not 0 <= value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.compare",
        description="Compares two models, or two versions of a server: how many users each holds, how fast "
        "it answers, how much memory it takes, and which differences are real. Both runs must have the same "
        "workload and GPU. With --predicted: which figures of a sizing one run supports or refutes.",
        epilog="Exit codes: 0 compared, and with --gate: shown not to be worse; 2 wrong usage or unreadable "
        "input; 3 refused, or the data cannot support a verdict; 4 the gate failed.",
    )
    add = parser.add_argument
    add("runs", type=Path, nargs="+", metavar="RUN", help="a run folder, or a folder of runs of one model")
    add(
        "--predicted",
        type=Path,
        metavar="SIZING.json",
        help="instead hold one RUN against what `analysis.sizing --format json` printed before deployment",
    )
    add(
        "--gate",
        action="store_true",
        help="judge whether the second run got worse than the first, its baseline",
    )
    add(
        "--tolerance",
        type=_share,
        default=TOLERANCE,
        metavar="F",
        help="with --gate: a figure that is surely worse by more than this share fails (default %(default)s)",
    )
    add(
        "--margin",
        type=_share,
        default=MARGIN,
        metavar="F",
        help="with --gate: to pass, each figure must surely be less than this share worse "
        "(default %(default)s)",
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
