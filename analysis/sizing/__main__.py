"""`python -m analysis.sizing --config FILE --gpu NAME`: how many users a deployment would hold."""

from analysis.interruption import end_interruptions_with_a_sentence

if __name__ == "__main__":
    end_interruptions_with_a_sentence()  # first: the imports below take a second

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from analysis.cli import (
    ExitCode,
    add_slo_flags,
    end_with_sentence,
    positive_integer,
    positive_number,
    share,
)
from analysis.reporting.console import progress
from analysis.reporting.sizing.page import (
    SIZING_FORMS,
    show_claims,
    show_purchase,
    show_sizing,
    write_vram_figure,
)
from analysis.sizing.claims import check_claims, read_claims
from analysis.sizing.flags import SizingFlags, add_sizing_flags, sizing_flags
from analysis.sizing.predict import predict
from analysis.sizing.purchase.demand import Demand, named_cards, stated_demand
from analysis.sizing.purchase.fleet import MAX_RANKED, compare_cards
from analysis.sizing.purchase.prices import stated_prices
from loadtest.errors import InputError


def main(argv: Sequence[str] | None = None) -> int:
    """Runs `python -m analysis.sizing` and returns its exit code (`analysis.cli.ExitCode`)."""
    options = _parser().parse_args(argv)
    return end_with_sentence(lambda: _answered(options))


def _answered(options: argparse.Namespace) -> ExitCode:
    if options.claim is not None:
        show_claims(check_claims(read_claims(options.claim)), form=options.format)
        return ExitCode.ANSWERED
    demand = stated_demand(users=options.for_users, headcount=options.headcount, active=options.active)
    if demand is not None:
        return _what_to_buy(options, demand)
    _refuse_purchase_flags(options)
    flags = sizing_flags(options)
    sizing = predict(flags)
    show_sizing(sizing, flags.workload, form=options.format)
    if options.figure is not None and not sizing.refused:
        write_vram_figure(sizing, options.figure)
    return ExitCode.REFUSED if sizing.refused else ExitCode.ANSWERED


def _what_to_buy(options: argparse.Namespace, demand: Demand) -> ExitCode:
    flags = sizing_flags(options)
    cards = _compared_cards(flags)
    prices = stated_prices(path=options.prices, every_gpu_hour=options.gpu_price)
    if options.figure is not None:
        raise InputError("--figure draws one deployment, not a choice of cards: leave it out.")
    most = len(cards) if options.gpu or options.vram_gib else MAX_RANKED
    with progress(after_s=1.0) as bar:
        step = bar.task("comparing cards", total=min(most, len(cards)))
        purchase = compare_cards(flags, cards, demand=demand, prices=prices, most=most, on_ranked=step)
    show_purchase(purchase, flags.workload, form=options.format)
    return ExitCode.REFUSED if purchase.refused else ExitCode.ANSWERED


def _compared_cards(flags: SizingFlags) -> list[str]:
    """Returns the names of the cards to compare. Raises InputError for flags that do not fit them."""
    if flags.gpus is not None:
        raise InputError("--gpus states the number of cards that --for-users asks for: leave it out.")
    if flags.workload.at_users or flags.workload.at_rate or flags.data_parallel_size:
        raise InputError(
            "--at-users, --at-rate and --data-parallel-size are of one deployment, not of a choice of cards: "
            "leave them out."
        )
    figures = (flags.vram_gib, flags.bandwidth_gbps, flags.tflops)
    if all(figures):
        return [flags.gpu or f"{flags.vram_gib:g} GiB card"]
    cards = named_cards(flags.gpu)
    if len(cards) > 1 and any(figures):
        raise InputError("--vram-gib, --bandwidth-gbps and --tflops are of one card: name it with --gpu.")
    if len(cards) > 1 and (flags.vllm_log or flags.calibrate):
        raise InputError("--vllm-log and --calibrate are of one card: name it with --gpu.")
    return cards


def _refuse_purchase_flags(options: argparse.Namespace) -> None:
    """Raises InputError for flags that need a number of users to hold, and for missing ones."""
    if options.prices is not None or options.gpu_price is not None:
        raise InputError(
            "Prices need a number of users to hold: give --for-users, or --headcount and --active."
        )
    if options.config is None or (options.gpu is None and options.vram_gib is None):
        raise InputError(
            "Give --config and --gpu (or --vram-gib, --bandwidth-gbps and --tflops), or --claim."
        )
    if options.gpu is not None and "," in options.gpu:
        raise InputError("Several cards are compared for a number of users: give --for-users.")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.sizing",
        description="How many users would this deployment hold? Answers from the model's config.json and the "
        "GPU's data sheet, without a server and without a GPU.",
        epilog="DIST is N, LO-HI, lognormal:MEAN,CV or exp:MEAN. Exit codes: 0 answered, 2 wrong usage or "
        "unreadable input, 3 refused: the model does not fit, or one user alone misses an objective.",
    )
    add_sizing_flags(parser)
    add_slo_flags(parser)
    _add_purchase_flags(parser)
    add = parser.add_argument_group("output").add_argument
    add(
        "--claim",
        type=Path,
        metavar="FILE",
        help="instead check claimed figures (TOML, see docs/sizing.md) against physics",
    )
    add("--format", default="text", choices=SIZING_FORMS, help="what is printed (default: %(default)s)")
    add("--figure", type=Path, metavar="FILE", help="also draw where the GPU's memory goes, as SVG")
    return parser


def _add_purchase_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group(
        "what to buy",
        "The other way round: how many of which cards hold a number of users? Without --gpu the whole "
        f"catalogue is compared, and the best {MAX_RANKED} are shown.",
    ).add_argument
    add(
        "--for-users",
        type=positive_integer,
        metavar="N",
        help="people who use the service at the same time, in the busiest hour; how often they ask says "
        "--think-s",
    )
    add("--headcount", type=positive_integer, metavar="N", help="or: people who may use it, ...")
    add(
        "--active",
        type=share,
        metavar="F",
        help="... and the share of them who do so in the busiest hour, such as 0.2",
    )
    add(
        "--prices",
        type=Path,
        metavar="FILE",
        help='what cards cost an hour, in TOML or JSON: a table [gpu_hour] with lines such as "L40S" = 1.9, '
        'and perhaps currency = "EUR"; the answer is then sorted by cost',
    )
    add("--gpu-price", type=positive_number, metavar="X", help="or: what each of these cards costs an hour")


if __name__ == "__main__":
    sys.exit(main())
