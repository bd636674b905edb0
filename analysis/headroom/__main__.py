"""`python -m analysis.headroom --prometheus URL`: how much more a server in production holds."""

from analysis.interruption import end_interruptions_with_a_sentence

if __name__ == "__main__":
    end_interruptions_with_a_sentence()  # first: the imports below take a second

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import msgspec

from analysis.cli import (
    ExitCode,
    RefusedError,
    add_latency_slo_flags,
    add_memory_slo_flags,
    end_with_sentence,
    positive_integer,
    stated_slo,
)
from analysis.headroom.answer import headroom_answer
from analysis.production.flags import add_source_flags, read_production, stated_selector
from analysis.reporting.production.headroom import rule_text, show_headroom, write_rule


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m analysis.headroom` and returns its exit code (`analysis.cli.ExitCode`)."""
    options = _parser().parse_args(argv)
    return end_with_sentence(lambda: _answered(options))


def _answered(options: argparse.Namespace) -> ExitCode:
    production = read_production(options)
    answer = headroom_answer(production, stated_slo(options), max_num_seqs=options.max_num_seqs)
    rule = rule_text(answer, selector=stated_selector(options))
    if options.rule is not None:
        if rule is None:
            raise RefusedError("There is no rule to write: an objective is shown to be met at no load.")
        write_rule(rule, options.rule)
    show_headroom(msgspec.structs.replace(answer, rule=rule), as_json=options.format == "json")
    return ExitCode.ANSWERED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.headroom",
        description="How far is this vLLM server from its limits, if nobody may load it? Reads the metrics "
        "that it has anyway and sends it nothing: requests in flight now and at the peak, where memory ends, "
        "whether TTFT and TPOT held at the loads that were seen, and when an autoscaler should start another "
        "replica. Latency is not extrapolated beyond the loads that were seen.",
        epilog="Exit codes: 0 answered, 2 wrong usage or unreadable input, 3 too few requests "
        "finished in this time.",
    )
    add_source_flags(parser)
    add_memory_slo_flags(add_latency_slo_flags(parser))
    parser.add_argument(
        "--max-num-seqs",
        type=positive_integer,
        metavar="N",
        help="vLLM's flag, which /metrics does not tell: more requests wait",
    )
    add = parser.add_argument_group("output").add_argument
    add("--rule", type=Path, metavar="FILE", help="write recording rules for Prometheus there, as YAML")
    add("--format", choices=("text", "json"), default="text", help="what is printed (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
