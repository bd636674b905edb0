"""`python -m analysis.sizing --config FILE --gpu NAME`: how many users a deployment would hold."""

from analysis.interruption import end_interruptions_with_a_sentence

if __name__ == "__main__":
    end_interruptions_with_a_sentence()  # first: the imports below take a second

import argparse
import sys
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from analysis.answers.sizing import StatedWorkload
from analysis.cli import (
    ExitCode,
    add_slo_flags,
    end_with_sentence,
    fraction,
    positive_integer,
    positive_number,
    share,
)
from analysis.reporting.console import progress
from analysis.reporting.sizing import (
    SIZING_FORMS,
    show_claims,
    show_purchase,
    show_sizing,
    write_vram_figure,
)
from analysis.sizing.claims import check_claims, read_claims
from analysis.sizing.flags import SizingFlags
from analysis.sizing.predict import predict
from analysis.sizing.purchase.demand import Demand, named_cards, stated_demand
from analysis.sizing.purchase.fleet import MAX_RANKED, compare_cards
from analysis.sizing.purchase.prices import stated_prices
from loadtest.errors import InputError
from loadtest.model.kv_cache import KV_DTYPES
from loadtest.model.startup import CURRENT_VERSION
from loadtest.model.weights import LORA_RANKS
from loadtest.record import Slo


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
    flags = _flags(options)
    sizing = predict(flags)
    show_sizing(sizing, flags.workload, form=options.format)
    if options.figure is not None and not sizing.refused:
        write_vram_figure(sizing, options.figure)
    return ExitCode.REFUSED if sizing.refused else ExitCode.ANSWERED


def _what_to_buy(options: argparse.Namespace, demand: Demand) -> ExitCode:
    flags = _flags(options)
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


def _flags(options: argparse.Namespace) -> SizingFlags:
    if options.config is None:
        raise InputError("Give --config, the model's config.json.")
    if options.at_rate is not None and options.turns > 1:
        raise InputError("--at-rate cannot be combined with --turns: an open loop has no users.")
    objectives = {name: getattr(options, f"slo_{name}") for name in Slo.__struct_fields__}
    workload = StatedWorkload(
        prompt_tokens=options.prompt_tokens,
        output_tokens=options.output_tokens,
        think_s=options.think_s,
        slo=Slo(**{name: value for name, value in objectives.items() if value is not None}),
        turns=options.turns,
        shared_prefix_tokens=options.shared_prefix_tokens,
        at_users=options.at_users,
        at_rate=options.at_rate,
    )
    names = [field.name for field in fields(SizingFlags) if field.name != "workload"]
    return SizingFlags(workload=workload, **{name: getattr(options, name) for name in names})


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m analysis.sizing",
        description="How many users would this deployment hold? Answers from the model's config.json and the "
        "GPU's data sheet, without a server and without a GPU.",
        epilog="DIST is N, LO-HI, lognormal:MEAN,CV or exp:MEAN. Exit codes: 0 answered, 2 wrong usage or "
        "unreadable input, 3 refused: the model does not fit, or one user alone misses an objective.",
    )
    _add_model_flags(parser)
    _add_server_flags(parser)
    _add_workload_flags(parser)
    add_slo_flags(parser)
    _add_purchase_flags(parser)
    _add_calibration_flags(parser)
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


def _add_model_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("model and cards").add_argument
    add("--config", type=Path, metavar="FILE", help="the model's config.json")
    add("--name", metavar="TEXT", help="the model's name in the answer (default: the file's)")
    add(
        "--gpu",
        metavar="NAME",
        help="T4, L4, A10G, L40S, RTX 4090, A100, H100, H200, B200, MI300X, ...; with --for-users several, "
        "with commas between",
    )
    add("--vram-gib", type=positive_number, metavar="X", help="memory as the driver reports it")
    add("--bandwidth-gbps", type=positive_number, metavar="Y", help="memory bandwidth, GB/s")
    add("--tflops", type=positive_number, metavar="Z", help="dense 16-bit TFLOP/s")
    add(
        "--gpus",
        type=positive_integer,
        metavar="N",
        help="number of cards; those beyond tp x pp hold replicas",
    )
    add("--weights-gib", type=positive_number, metavar="X", help="weights of one GPU, when known")


def _add_server_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("flags of vllm serve").add_argument
    add("--tp", "--tensor-parallel-size", type=positive_integer, metavar="N", help="default: all cards")
    add("--pp", "--pipeline-parallel-size", type=positive_integer, metavar="N", help="default: 1")
    add(
        "--data-parallel-size",
        type=positive_integer,
        metavar="N",
        help="engines of one server, which divide a model's experts (default: 1)",
    )
    add("--enable-expert-parallel", action="store_true", help="divide whole experts, not their widths")
    add("--dtype", default="auto", choices=["auto", "half", "float16", "bfloat16", "float", "float32"])
    add("--quantization", "-q", metavar="METHOD", help="fp8, bitsandbytes, modelopt, ...")
    add("--kv-cache-dtype", default="auto", choices=KV_DTYPES)
    add(
        "--gpu-memory-utilization",
        type=fraction,
        metavar="F",
        help="default: that of the version, 0.92 from 0.20 on",
    )
    add(
        "--max-model-len",
        type=positive_integer,
        metavar="N",
        help="default: the model's own, lowered to what fits",
    )
    default = "default: vLLM's for a card of this size"
    add("--max-num-seqs", type=positive_integer, metavar="N", help=default)
    add("--max-num-batched-tokens", type=positive_integer, metavar="N", help=default)
    add("--enforce-eager", action="store_true", help="without CUDA graphs")
    add("--block-size", type=positive_integer, default=16, metavar="N", help="default: %(default)s")
    add("--enable-lora", action="store_true", help="with buffers for adapters")
    add("--max-loras", type=positive_integer, metavar="N", help="adapters in one batch (default: 1)")
    add("--max-lora-rank", type=int, choices=LORA_RANKS, help="default: 16")
    add(
        "--speculative-config",
        metavar="JSON",
        help="method (draft_model, eagle3, mtp, ngram), num_speculative_tokens, model (its config.json)",
    )
    add("--kv-offloading-size", type=positive_number, metavar="GIB", help="CPU memory for evicted KV blocks")
    add(
        "--flashinfer-sampler",
        action=argparse.BooleanOptionalAction,
        help="whether FlashInfer samples (VLLM_USE_FLASHINFER_SAMPLER); counts before 0.17",
    )
    add("--vllm-version", metavar="X.Y.Z", help=f"default: {'.'.join(map(str, CURRENT_VERSION))}")


def _add_workload_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("workload").add_argument
    for flag, default in (
        ("--prompt-tokens", "lognormal:512,0.6"),
        ("--output-tokens", "lognormal:128,0.6"),
        ("--think-s", "0"),
    ):
        add(flag, default=default, metavar="DIST", help="default: %(default)s")
    add(
        "--turns",
        type=positive_integer,
        default=1,
        metavar="N",
        help="turns of a conversation; each request sends its history (default: %(default)s)",
    )
    add(
        "--shared-prefix-tokens",
        type=positive_integer,
        default=0,
        metavar="N",
        help="tokens of a text that every prompt begins with, such as a system prompt, on top of the prompt",
    )
    one = parser.add_argument_group("one load, to predict its latency too").add_mutually_exclusive_group()
    one.add_argument("--at-users", type=positive_integer, metavar="N", help="this number of users")
    one.add_argument(
        "--at-rate", type=positive_number, metavar="R", help="requests a second into one replica (Poisson)"
    )


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


def _add_calibration_flags(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("calibration").add_argument
    add(
        "--vllm-log",
        type=Path,
        metavar="FILE",
        help="log of a real start-up on the same card: narrows the band",
    )
    add("--calibrate", type=Path, metavar="RUN", help="run folder of a load test, in place of a log")
    add(
        "--calibrate-config",
        type=Path,
        metavar="FILE",
        help="config.json of the model that started there, when it is another one",
    )


if __name__ == "__main__":
    sys.exit(main())
