"""Writes metrics in Prometheus' text format, with the names, types, labels and buckets of vLLM 0.32."""

import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Mapping

from loadtest.simulator.engine.requests import Request
from loadtest.simulator.engine.scheduler import Engine
from loadtest.simulator.presets import Preset

Labels = Mapping[str, str]
STARTED_UNIX_S = time.time()
"""When this process imported the module: within a second of its start."""

# Source: vllm/v1/metrics/buckets.py of 0.32.
LATENCY_BUCKETS_S = (
    0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0,
    120.0, 240.0, 480.0, 960.0, 1920.0, 7680.0,
)  # fmt: skip
TTFT_BUCKETS_S = (
    0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0,
)  # fmt: skip
ITL_BUCKETS_S = (
    0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
    10.0, 20.0, 40.0, 80.0,
)  # fmt: skip
PREEMPTION_BUCKETS = (1.0, 2.0, 3.0, 4.0, 5.0, 10.0, 20.0)
ITERATION_BUCKETS = tuple(2.0**power for power in (0, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14))


def token_buckets(max_model_len: int) -> tuple[float, ...]:
    """Returns the bucket bounds for histograms of token counts: 1, 2, 5, 10, ... up to `max_model_len`."""
    series = (float(mantissa * 10**power) for power in range(10) for mantissa in (1, 2, 5))
    return tuple(bound for bound in series if bound <= max_model_len)


class Histogram:
    """Counts values in buckets, each with an upper bound. The last bucket has the bound +Inf."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Counts a value `times` times."""
        self._counts[bisect_left(self.bounds, value)] += times
        self._sum += value * times

    def render(self, name: str, documentation: str, labels: Labels) -> Iterable[str]:
        """Yields the lines of the histogram."""
        yield from _header(name, documentation, "histogram")
        total = 0
        for bound, count in zip((*self.bounds, float("inf")), self._counts, strict=True):
            total += count
            le = "+Inf" if bound == float("inf") else str(bound)
            yield sample_line(f"{name}_bucket", {**labels, "le": le}, total)
        yield sample_line(f"{name}_count", labels, total)
        yield sample_line(f"{name}_sum", labels, self._sum)


class Histograms:
    """The histograms of vLLM that a load test can compare with its own figures."""

    def __init__(self, max_model_len: int) -> None:
        self.ttft = Histogram(TTFT_BUCKETS_S)
        self.itl = Histogram(ITL_BUCKETS_S)
        self.tpot = Histogram(ITL_BUCKETS_S)
        self.e2e = Histogram(LATENCY_BUCKETS_S)
        self.queue = Histogram(LATENCY_BUCKETS_S)
        self.inference = Histogram(LATENCY_BUCKETS_S)
        self.prefill = Histogram(LATENCY_BUCKETS_S)
        self.decode = Histogram(LATENCY_BUCKETS_S)
        self.preemptions = Histogram(PREEMPTION_BUCKETS)
        self.iteration = Histogram(ITERATION_BUCKETS)
        self.prompt_tokens = Histogram(token_buckets(max_model_len))
        self.generation_tokens = Histogram(token_buckets(max_model_len))

    def observe_finished(self, request: Request) -> None:
        """Adds the times and lengths of a finished request. Raises ValueError for an unfinished one."""
        admitted_s, first_s, end_s = request.admitted_s, request.first_token_s, request.end_s
        if admitted_s is None or first_s is None or end_s is None:
            raise ValueError("Only a finished request has all its times.")
        self.e2e.observe(end_s - request.arrival_s)
        self.queue.observe(admitted_s - request.arrival_s)
        self.inference.observe(end_s - admitted_s)
        self.prefill.observe(first_s - admitted_s)
        self.decode.observe(end_s - first_s)
        self.tpot.observe((end_s - first_s) / max(1, request.output_tokens - 1))
        self.preemptions.observe(request.preemptions)
        self.prompt_tokens.observe(request.prompt_tokens)
        self.generation_tokens.observe(request.output_tokens)

    def render(self, labels: Labels) -> Iterator[str]:
        """Yields the lines of all histograms."""
        for name, histogram, documentation in (
            ("request_prompt_tokens", self.prompt_tokens, "Number of prefill tokens processed."),
            ("request_generation_tokens", self.generation_tokens, "Number of generation tokens processed."),
            ("iteration_tokens_total", self.iteration, "Histogram of number of tokens per engine_step."),
            ("time_to_first_token_seconds", self.ttft, "Histogram of time to first token in seconds."),
            ("inter_token_latency_seconds", self.itl, "Histogram of inter-token latency in seconds."),
            (
                "request_time_per_output_token_seconds",
                self.tpot,
                "Histogram of time_per_output_token_seconds per request.",
            ),
            ("e2e_request_latency_seconds", self.e2e, "Histogram of e2e request latency in seconds."),
            (
                "request_queue_time_seconds",
                self.queue,
                "Histogram of time spent in WAITING phase for request.",
            ),
            (
                "request_inference_time_seconds",
                self.inference,
                "Histogram of time spent in RUNNING phase for request.",
            ),
            (
                "request_prefill_time_seconds",
                self.prefill,
                "Histogram of time spent in PREFILL phase for request.",
            ),
            (
                "request_decode_time_seconds",
                self.decode,
                "Histogram of time spent in DECODE phase for request.",
            ),
            (
                "request_num_preemptions",
                self.preemptions,
                "Histogram of the number of times a request was preempted.",
            ),
        ):
            yield from histogram.render(f"vllm:{name}", documentation, labels)


def render_metric(
    name: str, documentation: str, kind: str, samples: Iterable[tuple[Labels, float]]
) -> Iterable[str]:
    """Yields the lines of a gauge or a counter. samples: pairs of labels and value."""
    yield from _header(name, documentation, kind)
    for labels, value in samples:
        yield sample_line(name, labels, value)


def sample_line(name: str, labels: Labels, value: float) -> str:
    """Builds the line of one sample, with labels sorted by name, as in vLLM."""
    inner = ",".join(f'{key}="{_escape(labels[key])}"' for key in sorted(labels))
    return f"{name}{{{inner}}} {float(value)!r}" if labels else f"{name} {float(value)!r}"


def _header(name: str, documentation: str, kind: str) -> Iterable[str]:
    yield f"# HELP {name} {documentation}"
    yield f"# TYPE {name} {kind}"


def _escape(value: str) -> str:
    return value.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def render_metrics(
    *,
    preset: Preset,
    engine: Engine,
    histograms: Histograms,
    finished_by_reason: Mapping[str, int],
    cached_tokens: int,
    lateness_s: float,
) -> list[str]:
    """Returns the lines of /metrics."""
    labels = {"engine": "0", "model_name": preset.model}
    return [
        *_gauges(engine, labels),
        *_counters(engine, labels, cached_tokens),
        *_outcomes(engine, labels, finished_by_reason),
        *histograms.render(labels),
        *_identity(preset, engine, lateness_s),
    ]


def _gauges(engine: Engine, labels: Labels) -> Iterator[str]:
    gauges = engine.gauges
    for name, documentation, value in (
        ("num_requests_running", "Number of requests in model execution batches.", gauges.running),
        ("num_requests_waiting", "Number of requests waiting to be processed.", gauges.waiting),
        ("kv_cache_usage_perc", "KV-cache usage. 1 means 100 percent usage.", engine.usage),
    ):
        yield from render_metric(f"vllm:{name}", documentation, "gauge", [(labels, value)])
    by_reason = (("capacity", gauges.waiting), ("deferred", 0))
    yield from render_metric(
        "vllm:num_requests_waiting_by_reason",
        "Number of waiting requests by reason.",
        "gauge",
        [({**labels, "reason": reason}, value) for reason, value in by_reason],
    )


def _counters(engine: Engine, labels: Labels, cached_tokens: int) -> Iterator[str]:
    counters = engine.counters
    queried = "Prefix cache queries, in terms of number of queried tokens."
    cached = "Number of cached prompt tokens (local + external)."
    for name, documentation, value in (
        ("prefix_cache_queries", queried, counters.prefix_queries),
        (
            "prefix_cache_hits",
            "Prefix cache hits, in terms of number of cached tokens.",
            counters.prefix_hits,
        ),
        ("num_preemptions", "Cumulative number of preemption from the engine.", counters.preemptions),
        ("prompt_tokens", "Number of prefill tokens processed.", counters.prompt_tokens),
        ("prompt_tokens_cached", cached, cached_tokens),
        ("generation_tokens", "Number of generation tokens processed.", counters.generation_tokens),
    ):
        yield from render_metric(f"vllm:{name}_total", documentation, "counter", [(labels, value)])


def _outcomes(engine: Engine, labels: Labels, finished_by_reason: Mapping[str, int]) -> Iterator[str]:
    reasons = ("stop", "length", "abort", "error", "repetition")  # vLLM counts no aborts either
    yield from render_metric(
        "vllm:request_success_total",
        "Count of successfully processed requests.",
        "counter",
        [({**labels, "finished_reason": reason}, finished_by_reason.get(reason, 0)) for reason in reasons],
    )
    counters = engine.counters
    rejections = (
        ("max_num_queued_reqs", counters.rejected),
        ("max_num_queued_tokens", counters.rejected_for_tokens),
    )
    yield from render_metric(
        "vllm:admission_rejections_total",
        "Number of admission attempts rejected by a queue limit, by reason.",
        "counter",
        [({"model_name": labels["model_name"], "reason": reason}, value) for reason, value in rejections],
    )


def _identity(preset: Preset, engine: Engine, lateness_s: float) -> Iterator[str]:
    yield from render_metric(
        "vllm:cache_config_info",
        "Information of the LLMEngine CacheConfig",
        "gauge",
        [(_cache_config(preset, engine), 1)],
    )
    yield from render_metric(
        "process_start_time_seconds",
        "Start time of the process since unix epoch in seconds.",
        "gauge",
        [({}, STARTED_UNIX_S)],
    )
    yield from render_metric(
        "seatcount_simulator_info",
        "This is Seatcount's embedded server, not a vLLM.",
        "gauge",
        [({"preset": preset.name}, 1)],
    )
    yield from render_metric(
        "seatcount_simulator_lateness_seconds",
        "Largest delay of a step's tokens behind their due time in the last 10 s.",
        "gauge",
        [({}, lateness_s)],
    )


def _cache_config(preset: Preset, engine: Engine) -> dict[str, str]:
    """Builds the labels of vLLM 0.32's cache_config_info, all as strings. `kv_cache_size_tokens` includes the
    null block."""
    config = engine.config
    tokens = config.num_gpu_blocks * config.block_size
    pool = preset.pool()
    labels: dict[str, object] = {
        "block_size": config.block_size,
        "cache_dtype": "auto",
        "enable_prefix_caching": config.enable_prefix_caching,
        "engine": 0,
        "gpu_memory_utilization": preset.gpu_memory_utilization,
        "is_attention_free": False,
        "kv_cache_max_concurrency": tokens / config.max_model_len,
        "kv_cache_memory_bytes": pool.num_gpu_blocks * pool.bytes_per_block,
        "kv_cache_size_tokens": tokens,
        "num_cpu_blocks": None,
        "num_gpu_blocks": config.num_gpu_blocks,
        "num_gpu_blocks_override": preset.num_gpu_blocks_override,
        "prefix_caching_hash_algo": "sha256",
        "sliding_window": None,
    }
    return {name: str(value) for name, value in labels.items()}
