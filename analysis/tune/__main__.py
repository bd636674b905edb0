"""`python -m analysis.tune RUN`: which of vLLM's flags hold more users of this workload."""

from analysis.interruption import end_interruptions_with_a_sentence

if __name__ == "__main__":
    end_interruptions_with_a_sentence()  # first: the imports below take a second

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.cli import ExitCode, add_slo_flags, end_with_sentence
from analysis.reporting.console import progress
from analysis.reporting.followup.tune import show_tuning
from analysis.tune.answer import tune_answer
from analysis.tune.flags import TRIED_FLAGS
from analysis.twin.flags import add_measured_server_flags
from loadtest.simulator.routers import ROUTERS


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit code: 0 answered, 2 unreadable, 3 refused, 130 interrupted."""
    options = _parser().parse_args(argv)
    return end_with_sentence(lambda: _answered(options))


def _answered(options: argparse.Namespace) -> ExitCode:
    with progress() as bar:
        answer = tune_answer(options, bar)
    show_tuning(answer, as_json=options.format == "json")
    return ExitCode.ANSWERED


def _flag_name(text: str) -> str:
    """Reads the value of --keep: a flag of vLLM, with or without its dashes."""
    name = text.lstrip("-").replace("-", "_")
    if name not in TRIED_FLAGS:
        known = ", ".join(one.replace("_", "-") for one in TRIED_FLAGS)
        raise argparse.ArgumentTypeError(f"{text} is not tried anyway; tried are {known}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tune",
        description="Which of vLLM's flags hold more users of this workload within the objectives? Fits the "
        "simulated engine to a load test, tries flags on it, and prints the vllm serve line that holds most, "
        "with the load test that proves it.",
        epilog="Exit codes: 0 answered, also where no flag gives more; 2 wrong usage or unreadable input; 3 "
        "the run cannot support a simulated engine.",
    )
    add = parser.add_argument
    add("run", type=Path, metavar="RUN", help="a run folder, or a folder of runs that may be pooled")
    add(
        "--keep",
        action="append",
        type=_flag_name,
        default=[],
        metavar="FLAG",
        help="a flag that must stay as it is, such as kv-cache-dtype; repeat it for several",
    )
    add("--router", choices=tuple(ROUTERS), default="least-loaded", help="how requests reach the replicas")
    add("--format", choices=("text", "json"), default="text")
    add_measured_server_flags(parser)
    add_slo_flags(parser)
    parser.set_defaults(hold_out=None, seed=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
