"""`python -m analysis.workload --prometheus URL`: the workload of a server in production, as a file."""

from analysis.interruption import end_interruptions_with_a_sentence

if __name__ == "__main__":
    end_interruptions_with_a_sentence()  # first: the imports below take a second

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.cli import ExitCode, add_latency_slo_flags, end_with_sentence, stated_slo
from analysis.production.flags import add_source_flags, read_production
from analysis.reporting.production.workload import show_workload, write_workload_file
from analysis.workload.answer import workload_answer


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m analysis.workload` and returns its exit code (`analysis.cli.ExitCode`)."""
    options = _parser().parse_args(argv)
    return end_with_sentence(lambda: _answered(options))


def _answered(options: argparse.Namespace) -> ExitCode:
    answer = workload_answer(read_production(options), stated_slo(options))
    if options.output is not None:
        write_workload_file(answer, options.output)
    show_workload(answer, as_json=options.format == "json", output=options.output)
    return ExitCode.ANSWERED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.workload",
        description="What do the users of this vLLM server send? Reads how long prompts and answers are, how "
        "many requests arrive and when, from the metrics that the server has anyway, sends it nothing, and "
        "writes a workload file for the load test.",
        epilog="With a file: locust -f scenarios/chat.py --workload FILE. Exit codes: 0 answered, 2 wrong "
        "usage or unreadable input, 3 too few requests finished in this time.",
    )
    add_source_flags(parser)
    add_latency_slo_flags(parser)
    add = parser.add_argument_group("output").add_argument
    add("--output", type=Path, metavar="FILE", help="write the workload there, as TOML")
    add("--format", choices=("text", "json"), default="text", help="what is printed (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
