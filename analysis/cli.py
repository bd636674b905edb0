"""What the command lines of analysis share."""

import argparse
import math

import msgspec

from loadtest.record import RunInfo, Slo


def positive_number(text: str) -> float:
    """An argparse type."""
    value = float(text)
    if not (value > 0 and math.isfinite(value)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def positive_integer(text: str) -> int:
    """An argparse type: a whole number above 0."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text} is not a positive whole number")
    return int(text)


def fraction(text: str) -> float:
    """An argparse type: above 0 and below 1."""
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 1")
    return value


def add_slo_flags(parser: argparse.ArgumentParser) -> None:
    """The four objectives. A flag that is not given is None."""
    default = Slo()
    add = parser.add_argument
    add(
        "--slo-ttft-p95-s",
        type=positive_number,
        metavar="S",
        help=f"95 of 100 requests see their first token within S seconds (default {default.ttft_p95_s:g})",
    )
    add(
        "--slo-tpot-p95-s",
        type=positive_number,
        metavar="S",
        help=f"95 of 100 requests get a token every S seconds or faster (default {default.tpot_p95_s:g})",
    )
    add(
        "--slo-preempted-fraction",
        type=fraction,
        metavar="F",
        help=f"preemptions for each finished request, at most (default {default.preempted_fraction:g})",
    )
    add(
        "--slo-kv-blocked-fraction",
        type=fraction,
        metavar="F",
        help="share of time in which a request waits for KV blocks, at most "
        f"(default {default.kv_blocked_fraction:g})",
    )


class RefusedError(Exception):
    """The data cannot support an answer. Exit code 3."""


def slo_of(options: argparse.Namespace, info: RunInfo) -> Slo:
    """A flag, else what the run was made with, else the default."""
    flags = {name: getattr(options, f"slo_{name}") for name in Slo.__struct_fields__}
    given = {name: flag for name, flag in flags.items() if flag is not None}
    return msgspec.structs.replace(stored_slo(info), **given)


def stored_slo(info: RunInfo) -> Slo:
    """What the run was made with, else the default."""
    stored = {name: info.settings.get(f"slo_{name}") for name in Slo.__struct_fields__}
    return Slo(**{name: float(value) for name, value in stored.items() if isinstance(value, int | float)})
