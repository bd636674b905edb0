"""Reads vLLM's metrics into ServerSample and ServerInfo. The field of a missing metric is None. Knows no
I/O."""

import re
from collections.abc import Iterable
from typing import Any

from prometheus_client.samples import Sample

from loadtest.record import ServerInfo, ServerSample
from loadtest.server.prometheus import parse_samples

# vLLM 0.9.2 to 0.10 writes a gauge under its new and its old name.
METRIC_NAMES = {
    "running": ("num_requests_running",),
    "waiting": ("num_requests_waiting",),
    "kv_cache_usage": ("kv_cache_usage_perc", "gpu_cache_usage_perc"),
    "preemptions_total": ("num_preemptions",),
    "prompt_tokens_total": ("prompt_tokens",),
    "generation_tokens_total": ("generation_tokens",),
    "prefix_cache_queries_total": ("prefix_cache_queries", "gpu_prefix_cache_queries"),
    "prefix_cache_hits_total": ("prefix_cache_hits", "gpu_prefix_cache_hits"),
    "finished_total": ("request_success",),
    "rejections_total": ("admission_rejections",),
}
"""Metric names of each field of a ServerSample, the newest first, without `vllm:`. Counters have no `_total`
here, because older versions lack it."""
HISTOGRAM_NAMES = {
    "ttft": ("time_to_first_token_seconds",),
    "tpot": ("request_time_per_output_token_seconds", "time_per_output_token_seconds"),
    "e2e": ("e2e_request_latency_seconds",),
    "queue": ("request_queue_time_seconds",),
}
"""Names of the histograms of times. The older name of TPOT's counts every gap between two tokens, the newer
one every request."""
for _field, _names in HISTOGRAM_NAMES.items():
    METRIC_NAMES[f"{_field}_sum_s"] = tuple(f"{name}_sum" for name in _names)
    METRIC_NAMES[f"{_field}_count"] = tuple(f"{name}_count" for name in _names)
_BY_REASON = "num_requests_waiting_by_reason"
_INFO = "cache_config_info"
_SIMULATOR_INFO = "seatcount_simulator_info"
_SIMULATOR_LATENESS = "seatcount_simulator_lateness_seconds"
_STARTED = "process_start_time_seconds"
_OURS = "|".join([*(name for names in METRIC_NAMES.values() for name in names), _BY_REASON, _INFO])
METRIC_LINES = re.compile(
    rf"^(?:vllm:(?:{_OURS})(?:_total)?|{_SIMULATOR_INFO}|{_SIMULATOR_LATENESS})[{{ ].*$", re.MULTILINE
)
"""Matches the lines of a page that tell something about vLLM."""
_PAGE_LINES = re.compile(f"{METRIC_LINES.pattern}|^{_STARTED}[{{ ].*$", re.MULTILINE)


def read_server_samples(page: str, *, model: str, unix_s: float) -> list[ServerSample]:
    """Reads a page of metrics and returns one row for each engine of `model`, sorted by engine. Raises
    ValueError if the page is not in Prometheus' format."""
    return build_server_samples(parse_samples(page, wanted=_PAGE_LINES), model=model, unix_s=unix_s)


def build_server_samples(samples: Iterable[Sample], *, model: str, unix_s: float) -> list[ServerSample]:
    """Returns one row for each engine of `model`, sorted by engine. If no sample has the label of this model,
    the samples of all models are used."""
    samples = list(samples)
    named = [s for s in samples if s.labels.get("model_name") == model]
    sums: dict[str, dict[str, float]] = {}
    first = min((s.labels["engine"] for s in named or samples if "engine" in s.labels), default="0")
    for sample in named or samples:
        if sample.name.startswith("vllm:") and not sample.name.endswith(_INFO):
            engine = sums.setdefault(sample.labels.get("engine", first), {})  # rejections have no engine
            name = _short_name(sample)
            engine[name] = engine.get(name, 0.0) + sample.value
    blocks = {
        s.labels.get("engine", first): _integer(s.labels, "num_gpu_blocks")
        for s in samples
        if s.name == f"vllm:{_INFO}"
    }
    late, started = _first(samples, _SIMULATOR_LATENESS), _first(samples, _STARTED)
    rows = {engine: _fields(found) for engine, found in sums.items()}
    return [
        ServerSample(
            unix_s=unix_s,
            engine=engine,
            num_gpu_blocks=blocks.get(engine),
            started_unix_s=started,
            simulated_lateness_s=late,
            **rows[engine],
        )
        for engine in sorted(rows)
        if rows[engine]
    ]


def _short_name(sample: Sample) -> str:
    name = sample.name.removeprefix("vllm:").removesuffix("_total")
    return f"{name}:{sample.labels.get('reason')}" if name == _BY_REASON else name


def _fields(found: dict[str, float]) -> dict[str, Any]:
    """Returns the fields of a row from the values of one engine. Of several names of a field the first that
    is there counts."""
    fields = {
        field: next((found[name] for name in names if name in found), None)
        for field, names in {**METRIC_NAMES, "waiting_capacity": (f"{_BY_REASON}:capacity",)}.items()
    }
    return {field: value for field, value in fields.items() if value is not None}


def _first(samples: list[Sample], name: str) -> float | None:
    return next((sample.value for sample in samples if sample.name == name), None)


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
