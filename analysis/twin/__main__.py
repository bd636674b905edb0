"""`python -m analysis.twin RUN` fits the simulated engine to a run and predicts loads that were never run."""

from analysis.interruption import end_interruptions_with_a_sentence

if __name__ == "__main__":
    end_interruptions_with_a_sentence()  # first: the imports below take a second

import argparse
import math
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.cli import ExitCode, add_slo_flags, end_with_sentence, positive_integer
from analysis.reporting import twin as twin_report
from analysis.reporting.console import progress
from analysis.twin.answer import twin_answer
from analysis.twin.flags import add_measured_server_flags
from loadtest.record import RUN_FILE
from loadtest.simulator.presets import PRESETS
from loadtest.simulator.routers import ROUTERS


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m analysis.twin` and returns its exit code (`analysis.cli.ExitCode`).

    The code is REFUSED when no twin can be fitted or no fleet holds a single user.
    """
    options = _parser().parse_args(argv)
    return end_with_sentence(lambda: _answered(options))


def _answered(options: argparse.Namespace) -> ExitCode:
    with progress() as bar:
        answer = twin_answer(options, bar)
    folder = options.output or _run_folder(options.run)
    if folder is not None:
        twin_report.write_twin(answer, folder=folder)
    twin_report.show_twin(answer, as_json=options.format == "json")
    return ExitCode.ANSWERED


def _run_folder(folder: Path | None) -> Path | None:
    """Returns the folder if it holds a single run, else None."""
    return folder if folder and (folder / RUN_FILE).is_file() else None


def _user_list(text: str) -> list[int]:
    """Parses the value of a flag: whole numbers above 0, separated by commas."""
    found = [int(part) if part.strip().isdecimal() else 0 for part in text.split(",")]
    if not all(found):
        raise argparse.ArgumentTypeError(f"{text} is not a list of users, such as 8,16,32")
    return found


def _class_weight(text: str) -> tuple[str, float]:
    """Parses the value of a flag: the name of a class and its weight."""
    name, _, weight = text.rpartition("=")
    try:
        number = float(weight)
    except ValueError:
        number = math.nan
    if not name or not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not a class and its weight, such as agent=2")
    return name, number


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.twin",
        description="Fits the simulated engine to a load test, prints its error on a level that it was not "
        "fitted to, and predicts what was never run: other users, lengths, pools, flags, arrivals, replicas, "
        "fleets.",
        epilog="Exit codes: 0 answered, 2 wrong usage or unreadable input, 3 the run cannot support a twin. "
        "Writes twin.json and twin.svg into the run folder, or where --output says.",
    )
    _add_source(parser)
    add_measured_server_flags(parser)
    _add_changes(parser)
    _add_fleets(parser)
    add_slo_flags(parser)
    return parser


def _add_source(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments that say what the twin is fitted to, what it predicts, and what is written."""
    add = parser.add_argument
    add(
        "run",
        nargs="?",
        type=Path,
        metavar="RUN",
        help="a run folder, or a folder of runs that may be pooled",
    )
    add("--preset", metavar="NAME", help=f"instead of a run: one of {', '.join(PRESETS)}")
    add(
        "--users",
        type=_user_list,
        metavar="N,N,...",
        help="numbers of users to predict (default: the levels of the run)",
    )
    add(
        "--hold-out",
        type=int,
        metavar="USERS",
        help="the level that the fit does not see and is checked against (default: the highest trusted one)",
    )
    add("--format", choices=("text", "json"), default="text")
    add("--output", type=Path, metavar="FOLDER", help="where twin.json and twin.svg go")
    add("--seed", type=int, default=0)


def _add_changes(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that change the server or the load that the twin predicts."""
    add = parser.add_argument_group("what if (vLLM's names where vLLM has them)").add_argument
    add("--max-num-seqs", type=positive_integer, metavar="N")
    add("--max-num-batched-tokens", type=positive_integer, metavar="N")
    add(
        "--num-gpu-blocks",
        type=positive_integer,
        metavar="N",
        help="the pool in blocks, the null block included",
    )
    add("--kv-cache-memory-gib", type=float, metavar="GIB", help="the pool in GiB of each GPU")
    add("--gpu-memory-utilization", type=float, metavar="SHARE")
    add(
        "--kv-cache-dtype",
        choices=("fp8",),
        help="half the bytes a token: twice the blocks, half the time to read them",
    )
    add("--enable-prefix-caching", action=argparse.BooleanOptionalAction)
    add(
        "--prompt-tokens",
        metavar="DISTRIBUTION",
        help="as in the load test: 512, 100-900, lognormal:512,0.6, exp:512",
    )
    add("--output-tokens", metavar="DISTRIBUTION")
    add("--think-s", metavar="DISTRIBUTION", help="pauses, in seconds")
    add(
        "--class-weight",
        type=_class_weight,
        action="append",
        metavar="NAME=W",
        help="another weight of a class of users, such as agent=2; repeat it for several; 0 leaves it out",
    )
    add(
        "--arrivals",
        metavar="PROCESS",
        help="an open loop instead of users: poisson:4, gamma:4,0.25, constant:4",
    )
    add(
        "--duration-s",
        type=float,
        default=300.0,
        help="how long requests arrive, with --arrivals (default %(default)g)",
    )
    add("--trace", type=Path, metavar="FILE", help="an open loop: a recorded trace, as in the load test")
    add("--trace-speed", type=float, default=1.0)
    add(
        "--replicas",
        type=positive_integer,
        metavar="N",
        help="replicas behind a router (default: as measured)",
    )
    add(
        "--router",
        choices=tuple(ROUTERS),
        default="least-loaded",
        help="how requests are spread over replicas (default %(default)s)",
    )


def _add_fleets(parser: argparse.ArgumentParser) -> None:
    """Adds the flags for fleets."""
    add = parser.add_argument_group("fleets").add_argument
    add(
        "--fleet-users",
        type=positive_integer,
        metavar="N",
        help="say how many replicas this number of users needs",
    )
    add(
        "--spare-replicas",
        type=int,
        default=1,
        metavar="N",
        help="replicas that may be lost (default %(default)s)",
    )
    add("--price-per-gpu-hour", type=float, metavar="PRICE")


if __name__ == "__main__":
    sys.exit(main())
