"""`python -m analysis.tune RUN`, or `--config FILE --gpu NAME`: which of vLLM's flags hold more users."""

from analysis.interruption import end_interruptions_with_a_sentence

if __name__ == "__main__":
    end_interruptions_with_a_sentence()  # first: the imports below take a second

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.cli import ExitCode, add_slo_flags, cli_flag, end_with_sentence
from analysis.reporting.console import progress
from analysis.reporting.followup.tune import show_tuning
from analysis.sizing.flags import add_sizing_flags, sizing_flags
from analysis.tune.answer import tune_answer
from analysis.tune.flags import TRIED_FLAGS
from analysis.tune.planned import PLANNED_FLAGS, PLANNED_ROUNDS, planned_answer
from analysis.twin.flags import add_measured_server_flags
from loadtest.errors import InputError
from loadtest.simulator.routers import ROUTERS


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command. Returns the exit code: 0 answered, 2 unreadable, 3 refused, 130 interrupted."""
    options = _parser().parse_args(argv)
    return end_with_sentence(lambda: _answered(options))


def _answered(options: argparse.Namespace) -> ExitCode:
    planned = options.config is not None
    _refuse_flags_of_the_other(options, planned=planned)
    with progress() as bar:
        if planned:
            advance = bar.task("trying flags", total=PLANNED_ROUNDS)
            answer = planned_answer(sizing_flags(options), kept=options.keep, advance=advance)
        else:
            answer = tune_answer(options, bar)
    show_tuning(answer, as_json=options.format == "json")
    return ExitCode.ANSWERED


def _refuse_flags_of_the_other(options: argparse.Namespace, *, planned: bool) -> None:
    """Raises InputError where neither a run nor a planned deployment is named, or flags of both are given."""
    if planned == (options.run is not None):
        raise InputError("Give either a run folder, or --config and --gpu of a planned deployment.")
    if planned and (options.at_users or options.at_rate):
        raise InputError(
            "--at-users and --at-rate state a load, and flags are tried at the limit: leave them out."
        )
    parser, other = argparse.ArgumentParser(), argparse.ArgumentParser()
    add_sizing_flags(parser)
    add_measured_server_flags(other)
    of_run, of_plan = vars(other.parse_args([])), vars(parser.parse_args([]))
    for name, default in (of_run if planned else of_plan).items():
        if getattr(options, name) != default:
            what = "a run is tuned" if planned else "a deployment is planned with --config"
            raise InputError(f"{cli_flag(name)} counts only where {what}: leave it out.")


def _flag_name(text: str) -> str:
    """Reads the value of --keep: a flag of vLLM, with or without its dashes."""
    name = text.lstrip("-").replace("-", "_")
    tried = dict.fromkeys((*TRIED_FLAGS, *PLANNED_FLAGS))
    if name not in tried:
        known = ", ".join(one.replace("_", "-") for one in tried)
        raise argparse.ArgumentTypeError(f"{text} is not tried anyway; tried are {known}")
    return name


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.tune",
        description="Which of vLLM's flags hold more users of this workload within the objectives? Fits the "
        "simulated engine to a load test, or predicts it from config.json and the card, tries flags on it, "
        "and prints the vllm serve line that holds most, with the load test that proves it.",
        epilog="Exit codes: 0 answered, also where no flag gives more; 2 wrong usage or unreadable input; 3 "
        "the run cannot support a simulated engine.",
    )
    add = parser.add_argument
    add(
        "run",
        type=Path,
        nargs="?",
        metavar="RUN",
        help="a run folder, or a folder of runs that may be pooled; without it, --config and --gpu",
    )
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
    add_sizing_flags(parser)
    parser.set_defaults(hold_out=None, seed=0)
    return parser


if __name__ == "__main__":
    sys.exit(main())
