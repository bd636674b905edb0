"""The metrics of a deployment over time, as Prometheus or saved pages of /metrics give them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

from analysis.statistics.arrays import Floats
from loadtest.errors import InputError
from loadtest.server.vllm import HISTOGRAM_NAMES, METRIC_NAMES

LENGTH_HISTOGRAMS = {
    "prompt_tokens": ("request_prompt_tokens",),
    "output_tokens": ("request_generation_tokens",),
}
LATENCY_HISTOGRAMS = {
    "ttft_s": HISTOGRAM_NAMES["ttft"],
    # Versions without a histogram of each request's TPOT have one of every gap, under two names.
    "tpot_s": (*HISTOGRAM_NAMES["tpot"], "inter_token_latency_seconds"),
}
SERVER_HISTOGRAMS = LENGTH_HISTOGRAMS | LATENCY_HISTOGRAMS
"""Names of the histograms that are read, the best first, by what they are of."""
SERVER_GAUGES = {name: METRIC_NAMES[name] for name in ("running", "waiting", "kv_cache_usage")}
SERVER_COUNTERS = {
    name: METRIC_NAMES[name]
    for name in (
        "finished_total",
        "preemptions_total",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
    )
}
POOL_INFO = "cache_config_info"
SIMULATED_INFO = "seatcount_simulator_info"
RUNNING = "num_requests_running"
"""The gauge that every version of vLLM has, under this name."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class TimeSeries:
    """One metric with one set of labels, at rising times. Shape (n,) each."""

    name: str
    """Without `vllm:` and without `_total`."""
    labels: dict[str, str]
    unix_s: Floats
    values: Floats


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class DeploymentHistory:
    """What the engines of one model said of themselves over a time."""

    source: str
    """Where it is from, as it may be shown."""
    model: str
    gauges: Sequence[TimeSeries]
    """Values of scrapes, none of them twice."""
    counters: Sequence[TimeSeries]
    """Counters and histograms, on a coarser grid than the gauges."""
    infos: Sequence[tuple[str, dict[str, str]]]
    """Name and labels of POOL_INFO and SIMULATED_INFO."""
    times_known: bool = True
    """Whether the times of day are right."""
    warnings: list[str] = field(default_factory=list)


def short_name(name: str) -> str:
    """Returns a metric's name without vLLM's prefix and a counter's suffix."""
    return name.removeprefix("vllm:").removesuffix("_total")


def chosen_model(names: Sequence[str], wanted: str | None, *, source: str) -> str:
    """Returns the model to read. Raises InputError where it is not there, or several are and none is
    named."""
    if wanted is not None:
        if wanted not in names:
            raise InputError(f"{source} has no model {wanted}: it has {', '.join(names) or 'none'}.")
        return wanted
    if len(names) > 1:
        raise InputError(f"{source} has several models ({', '.join(names)}): choose one with --model.")
    return names[0]


def scalar_pattern() -> str:
    """Returns a regular expression of the names of the counters that are read, with or without `_total`."""
    names = [re.escape(name) for names in SERVER_COUNTERS.values() for name in names]
    return f"vllm:(?:{'|'.join(names)})(?:_total)?"
