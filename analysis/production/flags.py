"""Flags that say where the metrics of a deployment are, for the commands that read them."""

import argparse
import re
from pathlib import Path

from analysis.cli import positive_number
from analysis.production.engines import Production, read_engines
from analysis.production.pages import read_pages
from analysis.production.prometheus_api import TOKEN_VARIABLE, read_prometheus
from loadtest.errors import InputError

DEFAULT_RANGE = "7d"
_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def add_source_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags of both sources. None of them has a value that is not given."""
    add = parser.add_argument_group(
        "metrics", "Either a Prometheus server that scrapes vLLM, or pages that were saved one after another."
    ).add_argument
    add(
        "--prometheus",
        metavar="URL",
        help="address of Prometheus, or of what speaks its API, such as http://prometheus:9090; a "
        f"token is taken from the environment variable {TOKEN_VARIABLE}, and user and password from the URL",
    )
    add(
        "--range",
        type=_duration_s,
        metavar="TIME",
        help=f"how far back to look: 30m, 6h, 7d (default {DEFAULT_RANGE}); a whole week shows every hour",
    )
    add(
        "--selector", metavar="LABELS", help='which servers, as matchers of PromQL: \'job="vllm",pod=~"a.*"\''
    )
    add(
        "--metrics",
        type=Path,
        nargs="+",
        metavar="FILE",
        help="instead: two or more saved pages of one server's /metrics; when each was written is its time",
    )
    add(
        "--interval",
        type=positive_number,
        metavar="S",
        help="seconds between two pages, in their order",
    )
    add("--model", metavar="NAME", help="which model, where there are several")


def read_production(options: argparse.Namespace) -> Production:
    """Reads the source that the flags name. Raises InputError for flags that do not go together."""
    if (options.prometheus is None) == (options.metrics is None):
        raise InputError("Say where the metrics are: either --prometheus URL or --metrics FILE FILE ...")
    if options.metrics is not None:
        if options.range is not None or options.selector is not None:
            raise InputError("--range and --selector are for --prometheus: pages are read whole.")
        history = read_pages(options.metrics, interval_s=options.interval, model=options.model)
        return read_engines(history)
    if options.interval is not None:
        raise InputError("--interval is for --metrics: Prometheus knows the times of its scrapes.")
    range_s = options.range or _duration_s(DEFAULT_RANGE)
    return read_engines(
        read_prometheus(
            options.prometheus, range_s=range_s, model=options.model, selector=stated_selector(options)
        )
    )


def stated_selector(options: argparse.Namespace) -> str:
    """Returns the matchers of labels that were given, without braces."""
    return str(options.selector or "").strip().strip("{},")


def _duration_s(text: str) -> float:
    found = re.fullmatch(r"(\d+)([smhdw])", text)
    if found is None or int(found[1]) == 0:
        raise argparse.ArgumentTypeError(f"{text} is not a time such as 30m, 6h or 7d")
    return float(int(found[1]) * _UNITS_S[found[2]])
