"""Converts one of our runs into the files that other load generators or Prometheus would have written.

Formats: guidellm 0.8.1, aiperf 0.13.0 and vLLM 0.32.0, as in tests/data.
"""

import json
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import msgspec

from loadtest.record import Outcome, RequestRecord, RunInfo, ServerSample

_MODEL = "tiny"
UPTIME_S = 34_000.0  # start of the first request: vllm bench serve counts from the machine's start


def rows_of(run: Path) -> list[RequestRecord]:
    return _lines(run / "requests-0.jsonl", RequestRecord)


def scrapes_of(run: Path) -> list[ServerSample]:
    return _lines(run / "server.jsonl", ServerSample)


def _lines(path: Path, kind: type[Any]) -> list[Any]:
    return [msgspec.json.decode(line, type=kind) for line in path.read_bytes().splitlines()]


def by_level(rows: Sequence[RequestRecord]) -> dict[int, list[RequestRecord]]:
    levels: dict[int, list[RequestRecord]] = {}
    for row in sorted(rows, key=lambda row: row.start_unix_s):
        levels.setdefault(row.level_users or 0, []).append(row)
    return levels


# guidellm


def write_guidellm(rows: Sequence[RequestRecord], file: Path) -> None:
    """Writes guidellm's results: one file for all levels."""
    report = {
        "metadata": {"version": 2, "guidellm_version": "0.8.1"},
        "config": {},
        "benchmarks": [guidellm_benchmark(users, found) for users, found in by_level(rows).items()],
    }
    file.write_text(json.dumps(report))


def guidellm_benchmark(users: int, rows: Sequence[RequestRecord], **strategy: Any) -> dict[str, Any]:
    ok = [_guidellm_request(row) for row in rows if row.outcome is Outcome.OK]
    cut = [_guidellm_request(row) for row in rows if row.outcome is Outcome.CANCELLED]
    failed = [_guidellm_request(row) for row in rows if row.outcome is Outcome.HTTP_ERROR]
    return {
        "type_": "generative_benchmark",
        "config": {
            "strategy": strategy or {"type_": "concurrent", "max_concurrency": users, "streams": users},
            "backend": {"kind": "openai_http", "target": "http://me:secret@host:8000", "model": _MODEL},
        },
        "metrics": {
            "request_totals": {"successful": len(ok), "errored": len(failed), "incomplete": len(cut)}
        },
        "requests": {"successful": ok, "incomplete": cut, "errored": failed, "total": None},
    }


def _guidellm_request(row: RequestRecord) -> dict[str, Any]:
    begin = row.start_unix_s
    ok = row.outcome is Outcome.OK
    timings = {
        "targeted_start": begin,
        "request_start": begin + (row.sent_s or 0.0),
        "first_token_iteration": begin + row.chunk_s[0] if row.chunk_s else None,
        "first_output_token_iteration": begin + row.first_answer_s if row.first_answer_s else None,
        "last_token_iteration": begin + row.chunk_s[-1] if row.chunk_s else None,
        "token_iterations": len(row.chunk_s),
        "request_end": begin + row.end_s if ok else None,
        "resolve_end": begin + row.end_s,
    }
    error = f"Server error '{row.http_status} Service Unavailable' for url 'http://h'"
    return {
        "type_": "generative_request_stats",
        "request_id": row.request_id,
        "info": {
            "conversation_id": f"{row.level_users}-{row.user}-{row.request_id}",
            "turn_index": row.turn,
            "timings": timings,
            "error": error if row.outcome is Outcome.HTTP_ERROR else None,
        },
        "input_metrics": {"total_tokens": row.prompt_tokens, "cached_tokens": row.cached_tokens},
        "output_metrics": {"total_tokens": row.output_tokens, "cached_tokens": None},
    }


# aiperf


def write_aiperf(rows: Sequence[RequestRecord], folder: Path) -> None:
    """Writes aiperf's results: one folder for each level."""
    for users, found in by_level(rows).items():
        place = folder / f"{_MODEL}-openai-chat-concurrency{users}"
        place.mkdir(parents=True)
        lines = "".join(json.dumps(aiperf_record(row)) + "\n" for row in found)
        (place / "profile_export.jsonl").write_text(lines)
        (place / "profile_export_aiperf.json").write_text(json.dumps(aiperf_summary(users)))


def aiperf_summary(users: int) -> dict[str, Any]:
    return {
        "schema_version": "1.1",
        "aiperf_version": "0.13.0",
        "input_config": {
            "models": {"items": [{"name": _MODEL}]},
            "endpoint": {"urls": ["http://host:8000"], "type": "chat", "streaming": True},
            "phases": [{"kind": "profiling", "type": "concurrency", "concurrency": users}],
        },
    }


def aiperf_record(row: RequestRecord) -> dict[str, Any]:
    metrics: dict[str, Any] = {
        "http_req_connection_overhead": {"value": 1e3 * (row.sent_s or 0.0), "unit": "ms"}
    }
    if row.chunk_s:
        gaps = [1e3 * (b - a) for a, b in zip(row.chunk_s, row.chunk_s[1:], strict=False)]
        metrics |= {
            "time_to_first_token": {"value": 1e3 * row.chunk_s[0], "unit": "ms"},
            "time_to_first_output_token": {"value": 1e3 * (row.first_answer_s or 0.0), "unit": "ms"},
            "inter_chunk_latency": {"value": gaps, "unit": "ms"},
            "input_sequence_length": {"value": 1, "unit": "tokens"},
            "output_sequence_length": {"value": 1, "unit": "tokens"},
            "usage_prompt_tokens": {"value": row.prompt_tokens, "unit": "tokens"},
            "usage_completion_tokens": {"value": row.output_tokens, "unit": "tokens"},
        }
    failed = {"code": row.http_status, "type": "HTTPError", "message": "busy"}
    return {
        "metadata": {
            "request_start_ns": round(1e9 * row.start_unix_s),
            "request_end_ns": round(1e9 * (row.start_unix_s + row.end_s)),
            "benchmark_phase": "profiling",
            "was_cancelled": row.outcome is Outcome.CANCELLED,
            "x_correlation_id": row.request_id,
            "turn_index": row.turn,
        },
        "metrics": metrics,
        **({"error": failed} if row.outcome is Outcome.HTTP_ERROR else {}),
    }


# vllm bench serve


def write_vllm_bench(rows: Sequence[RequestRecord], folder: Path, **changes: Any) -> None:
    """Writes results of vllm bench serve, one file a level. `changes` set fields; None removes a field."""
    folder.mkdir(exist_ok=True)
    for users, found in by_level(rows).items():
        result = vllm_bench(users, found) | changes
        kept = {name: value for name, value in result.items() if value is not None}
        (folder / f"c{users}.json").write_text(json.dumps(kept))


def vllm_bench(users: int, rows: Sequence[RequestRecord]) -> dict[str, Any]:
    """Builds a result of vllm bench serve. The first gap is 0: role chunk and first token come together."""
    ended = max(row.start_unix_s + row.end_s for row in rows)
    zero = rows[0].start_unix_s - UPTIME_S
    ok = [row.outcome is Outcome.OK for row in rows]
    gaps = [
        [0.0, *(b - a for a, b in zip(row.chunk_s, row.chunk_s[1:], strict=False))] if row.chunk_s else []
        for row in rows
    ]
    return {
        "date": f"{datetime.fromtimestamp(ended + 1.2):%Y%m%d-%H%M%S}",
        "endpoint_type": "openai-chat",
        "backend": "openai-chat",
        "model_id": _MODEL,
        "num_prompts": len(rows),
        "request_rate": "inf",
        "max_concurrency": users,
        "duration": ended - rows[0].start_unix_s,
        "completed": sum(ok),
        "input_lens": [row.prompt_tokens or 0 for row in rows],
        "output_lens": [row.output_tokens or 0 for row in rows],
        "ttfts": [row.chunk_s[0] if row.chunk_s else 0.0 for row in rows],
        "itls": gaps,
        "start_times": [row.start_unix_s - zero for row in rows],
        "queue_times": [0.0 for _ in rows],
        "errors": ["" if good else "Service Unavailable" for good in ok],
    }


# The server


GAUGES = {
    "vllm:num_requests_running": "running",
    "vllm:num_requests_waiting": "waiting",
    "vllm:kv_cache_usage_perc": "kv_cache_usage",
    "vllm:num_preemptions_total": "preemptions_total",
    "vllm:generation_tokens_total": "generation_tokens_total",
}


def cache_labels(info: RunInfo) -> dict[str, str]:
    server = info.server
    return {
        "block_size": str(server.block_size),
        "num_gpu_blocks": str(server.num_gpu_blocks),
        "kv_cache_size_tokens": str(server.kv_cache_tokens),
        "num_gpu_blocks_override": "None",
        "engine": "0",
    }


def range_query(
    samples: Sequence[ServerSample], info: RunInfo, *, every: int = 1, **labels: str
) -> dict[str, Any]:
    """Builds Prometheus' response to query_range of {__name__=~"vllm:.*"}, with one of `every` samples."""
    common = {"instance": "host:8000", "job": "vllm", **labels}
    named = {"engine": "0", "model_name": _MODEL, **common}
    series: list[dict[str, Any]] = [
        {
            "metric": {"__name__": name, **named},
            "values": [[sample.unix_s, str(getattr(sample, field))] for sample in samples[::every]],
        }
        for name, field in GAUGES.items()
    ]
    pool = {"__name__": "vllm:cache_config_info", **cache_labels(info), **common}
    bucket = {"__name__": "vllm:time_to_first_token_seconds_bucket", "le": "0.1", **named}
    ones = [[sample.unix_s, "1"] for sample in samples[::every]]
    series += [{"metric": metric, "values": ones} for metric in (pool, bucket)]
    return {"status": "success", "data": {"resultType": "matrix", "result": series}}


def scrape_text(samples: Sequence[ServerSample], info: RunInfo, *, stamp: str = "# {}") -> str:
    """Builds successive pages of /metrics, each after a line with its time, formatted by `stamp`."""
    return "".join(line for sample in samples for line in _page(sample, info, stamp))


def _page(sample: ServerSample, info: RunInfo, stamp: str) -> Iterator[str]:
    labels = ",".join(f'{name}="{value}"' for name, value in cache_labels(info).items())
    yield stamp.format(f"{sample.unix_s:.3f}") + "\n"
    yield "# HELP vllm:cache_config_info Information of the LLMEngine CacheConfig\n"
    yield f"vllm:cache_config_info{{{labels}}} 1.0\n"
    for name, field in GAUGES.items():
        yield f'{name}{{engine="0",model_name="{_MODEL}"}} {getattr(sample, field)}\n'


def aiperf_scrapes(samples: Sequence[ServerSample]) -> str:
    """Builds aiperf's server_metrics_export.jsonl. Samples equal to the one before are left out.

    It has counters without `_total` and no labels of the cache.
    """
    lines, before = [], None
    for sample in samples:
        now = {
            name.removesuffix("_total"): [
                {"labels": {"engine": "0", "model_name": _MODEL}, "value": getattr(sample, field)}
            ]
            for name, field in GAUGES.items()
        }
        if now != before:
            line = {
                "endpoint_url": "http://host/metrics",
                "timestamp_ns": round(1e9 * sample.unix_s),
                "metrics": now,
            }
            lines.append(json.dumps(line) + "\n")
        before = now
    return "".join(lines)


def aiperf_cache(info: RunInfo) -> dict[str, Any]:
    """Builds aiperf's server_metrics_export.json, which has the labels of the cache."""
    series = [{"endpoint_url": "http://host/metrics", "labels": cache_labels(info), "stats": {"avg": 1.0}}]
    return {
        "aiperf_version": "0.13.0",
        "metrics": {"vllm:cache_config_info": {"type": "gauge", "series": series}},
    }
