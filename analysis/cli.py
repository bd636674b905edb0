"""What the commands `python -m analysis.*` have in common: flag types, the objectives, and exit codes.

| exit code | meaning |
|---|---|
| 0 | answered |
| 1 | unexpected error |
| 2 | wrong usage or unreadable input: one sentence on stderr |
| 3 | refused: the data cannot support an answer, or the run is incomplete; the reasons are printed |
| 4 | a gate failed |
| 130 | interrupted |
"""

import argparse
import math
from collections.abc import Callable
from enum import IntEnum

import msgspec

from analysis.interruption import INTERRUPTED, INTERRUPTED_SENTENCE, raise_interruptions
from analysis.reporting.console import print_error
from loadtest.errors import InputError
from loadtest.record import RunInfo, Slo

ArgumentGroup = argparse._ArgumentGroup  # has no public name


class ExitCode(IntEnum):
    """Exit codes of a command. Python itself exits with 1 after an unexpected error, argparse with 2."""

    ANSWERED = 0
    BAD_INPUT = 2
    REFUSED = 3
    GATE_FAILED = 4
    INTERRUPTED = INTERRUPTED


class RefusedError(Exception):
    """The data cannot support an answer; the message says why. The exit code is `ExitCode.REFUSED`."""


def end_with_sentence(work: Callable[[], ExitCode]) -> ExitCode:
    """Does the work of a command and returns its exit code.

    Bad input, a refusal and an interruption become a sentence on stderr and their exit code.
    """
    try:
        raise_interruptions()
        return work()
    except InputError as problem:
        print_error(str(problem))
        return ExitCode.BAD_INPUT
    except RefusedError as refusal:
        print_error(str(refusal))
        return ExitCode.REFUSED
    except KeyboardInterrupt:
        print_error(INTERRUPTED_SENTENCE)
        return ExitCode.INTERRUPTED


def cli_flag(name: str) -> str:
    """Returns a setting's name as a flag of the command line."""
    return f"--{name.replace('_', '-')}"


def positive_number(text: str) -> float:
    """Reads a flag's value as a finite number above 0. Raises argparse.ArgumentTypeError."""
    value = _number(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def positive_integer(text: str) -> int:
    """Reads a flag's value as a whole number above 0. Raises argparse.ArgumentTypeError."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def fraction(text: str) -> float:
    """Reads a flag's value as a number between 0 and 1, both excluded. Raises argparse.ArgumentTypeError."""
    value = _number(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def share(text: str) -> float:
    """Reads a flag's value as a number above 0, at most 1. Raises argparse.ArgumentTypeError."""
    value = _number(text)
    if not 0 < value <= 1:
        raise argparse.ArgumentTypeError(f"{text} is not above 0 and at most 1")
    return value


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number") from None


def add_slo_flags(parser: argparse.ArgumentParser) -> None:
    """Adds a flag for each objective. A flag that is not given has the value None."""
    group = add_latency_slo_flags(parser)
    add_memory_slo_flags(group)
    group.add_argument(
        "--slo-prefix-hit-fraction",
        type=fraction,
        metavar="F",
        help="share of the prefix-cache hits at low load that must be kept, at least (default: no objective)",
    )


def add_latency_slo_flags(parser: argparse.ArgumentParser) -> ArgumentGroup:
    """Adds the flags of the objectives of TTFT and TPOT, and returns their group."""
    default = Slo()
    group = parser.add_argument_group("objectives")
    group.add_argument(
        "--slo-ttft-p95-s",
        type=positive_number,
        metavar="S",
        help=f"95 of 100 requests get their first token within S seconds (default {default.ttft_p95_s:g})",
    )
    group.add_argument(
        "--slo-tpot-p95-s",
        type=positive_number,
        metavar="S",
        help=f"95 of 100 requests take at most S seconds a further token (default {default.tpot_p95_s:g})",
    )
    return group


def add_memory_slo_flags(group: ArgumentGroup) -> None:
    """Adds the flags of the objectives of the KV cache to the group of objectives."""
    default = Slo()
    add = group.add_argument
    add(
        "--slo-stall-p95-s",
        type=positive_number,
        metavar="S",
        help="95 of 100 answers stand still for at most S seconds between two events (default: no objective)",
    )
    add(
        "--slo-preempted-fraction",
        type=share,
        metavar="F",
        help=f"preemptions for each finished request, at most (default {default.preempted_fraction:g})",
    )
    add(
        "--slo-kv-blocked-fraction",
        type=share,
        metavar="F",
        help="share of the time in which a request waits for KV blocks, at most "
        f"(default {default.kv_blocked_fraction:g})",
    )


def slo_of(options: argparse.Namespace, info: RunInfo) -> Slo:
    """Returns the objectives by which a run is judged.

    Each objective is the value of its flag. Without a flag it is the value in the run's settings, and without
    either it is the default.
    """
    flags = {name: getattr(options, f"slo_{name}") for name in Slo.__struct_fields__}
    given = {name: flag for name, flag in flags.items() if flag is not None}
    return msgspec.structs.replace(stored_slo(info), **given)


def stated_slo(options: argparse.Namespace) -> Slo:
    """Returns the objectives by which a command without a run judges: flags, else defaults."""
    flags = {name: getattr(options, f"slo_{name}", None) for name in Slo.__struct_fields__}
    return Slo(**{name: flag for name, flag in flags.items() if flag is not None})


def stored_slo(info: RunInfo) -> Slo:
    """Returns the objectives in a run's settings.

    An objective that the settings do not state has its default value.
    """
    stored = {name: info.settings.get(f"slo_{name}") for name in Slo.__struct_fields__}
    return Slo(**{name: float(value) for name, value in stored.items() if isinstance(value, int | float)})
