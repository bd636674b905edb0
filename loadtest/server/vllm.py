"""Reads vLLM's metrics into ServerSample and ServerInfo. The field of a missing metric is None. Knows no
I/O."""

import re
from collections.abc import Iterable
from typing import Any

from prometheus_client.samples import Sample

from loadtest.record import ServerInfo, ServerSample
from loadtest.server.prometheus import parse_samples

# Metric names of current and older versions of vLLM. Counters have no `_total` here: older versions lack it.
_FIELDS = {
    "num_requests_running": "running",
    "num_requests_waiting": "waiting",
    "kv_cache_usage_perc": "kv_cache_usage",
    "gpu_cache_usage_perc": "kv_cache_usage",
    "num_preemptions": "preemptions_total",
    "prompt_tokens": "prompt_tokens_total",
    "generation_tokens": "generation_tokens_total",
    "prefix_cache_queries": "prefix_cache_queries_total",
    "gpu_prefix_cache_queries": "prefix_cache_queries_total",
    "prefix_cache_hits": "prefix_cache_hits_total",
    "gpu_prefix_cache_hits": "prefix_cache_hits_total",
    "request_success": "finished_total",
    "admission_rejections": "rejections_total",
}
_BY_REASON = "num_requests_waiting_by_reason"
_INFO = "cache_config_info"
_SIMULATOR_INFO = "seatcount_simulator_info"
_SIMULATOR_LATENESS = "seatcount_simulator_lateness_seconds"
METRIC_LINES = re.compile(
    rf"^(?:vllm:(?:{'|'.join([*_FIELDS, _BY_REASON, _INFO])})(?:_total)?"
    rf"|{_SIMULATOR_INFO}|{_SIMULATOR_LATENESS})[{{ ].*$",
    re.MULTILINE,
)
"""Matches the lines of a page that are read."""


def read_server_samples(page: str, *, model: str, unix_s: float) -> list[ServerSample]:
    """Reads a page of metrics and returns one row for each engine of `model`, sorted by engine. Raises
    ValueError if the page is not in Prometheus' format."""
    return build_server_samples(parse_samples(page, wanted=METRIC_LINES), model=model, unix_s=unix_s)


def build_server_samples(samples: Iterable[Sample], *, model: str, unix_s: float) -> list[ServerSample]:
    """Returns one row for each engine of `model`, sorted by engine. If no sample has the label of this model,
    the samples of all models are used."""
    samples = list(samples)
    named = [s for s in samples if s.labels.get("model_name") == model]
    rows: dict[str, dict[str, Any]] = {}
    for sample in named or samples:
        name = sample.name.removeprefix("vllm:").removesuffix("_total")
        field = "waiting_capacity" if _is_capacity(name, sample) else _FIELDS.get(name)
        if field:
            row = rows.setdefault(sample.labels.get("engine", "0"), {})
            row[field] = row.get(field, 0.0) + sample.value
    late = next((s.value for s in samples if s.name == _SIMULATOR_LATENESS), None)
    return [
        ServerSample(unix_s=unix_s, engine=engine, simulated_lateness_s=late, **rows[engine])
        for engine in sorted(rows)
    ]


def _is_capacity(name: str, sample: Sample) -> bool:
    return name == _BY_REASON and sample.labels.get("reason") == "capacity"


def read_server_info(page: str) -> ServerInfo:
    """Reads what a page of metrics states about the KV-cache pool."""
    return build_server_info(parse_samples(page, wanted=METRIC_LINES))


def build_server_info(samples: Iterable[Sample]) -> ServerInfo:
    """Returns what the metric `cache_config_info` states about the KV-cache pool. Only the first engine is
    read, because data-parallel engines are alike.

    `kv_bytes_per_token` is the size of the pool in bytes divided by its size in tokens. It is None if the
    number of blocks was overridden, because the two sizes then belong to different pools.
    """
    samples = list(samples)
    labels = next((s.labels for s in samples if s.name == f"vllm:{_INFO}"), {})
    preset = next((s.labels.get("preset") for s in samples if s.name == _SIMULATOR_INFO), None)
    tokens, memory = _integer(labels, "kv_cache_size_tokens"), _integer(labels, "kv_cache_memory_bytes")
    override = _integer(labels, "num_gpu_blocks_override")
    caching = labels.get("enable_prefix_caching")
    return ServerInfo(
        kv_cache_tokens=tokens,
        block_size=_integer(labels, "block_size"),
        num_gpu_blocks=_integer(labels, "num_gpu_blocks"),
        gpu_memory_utilization=_number(labels, "gpu_memory_utilization"),
        kv_cache_memory_bytes=memory,
        num_gpu_blocks_override=override,
        enable_prefix_caching=None if caching is None else caching == "True",
        cache_dtype=labels.get("cache_dtype"),
        kv_bytes_per_token=round(memory / tokens) if memory and tokens and override is None else None,
        simulated=preset,
    )


def _number(labels: dict[str, str], name: str) -> float | None:
    try:
        return float(labels[name])
    except (KeyError, ValueError):
        return None  # absent, or the text "None"


def _integer(labels: dict[str, str], name: str) -> int | None:
    value = _number(labels, name)
    return None if value is None else int(value)
