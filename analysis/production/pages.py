"""Reads saved pages of one server's /metrics as a history. Knows no Prometheus server."""

import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
from prometheus_client.samples import Sample

from analysis.production.series import (
    POOL_INFO,
    RUNNING,
    SIMULATED_INFO,
    DeploymentHistory,
    TimeSeries,
    chosen_model,
    short_name,
)
from loadtest.errors import InputError
from loadtest.server.prometheus import parse_samples

_LINES = re.compile(rf"^(?:vllm:\w+|{SIMULATED_INFO}|process_start_time_seconds)[{{ ].*$", re.MULTILINE)
_INFOS = (f"vllm:{POOL_INFO}", SIMULATED_INFO)


def read_pages(files: Sequence[Path], *, interval_s: float | None, model: str | None) -> DeploymentHistory:
    """Reads two or more pages of one server, each of which is a file.

    A file's time is when it was last written. With `interval_s`, the files follow one another in the order
    given, so many seconds apart, and the time of day is not known. Raises InputError for what cannot be read.
    """
    if len(files) < 2:
        raise InputError("--metrics needs two pages of /metrics or more: counters tell by their growth.")
    timed = _timed(files, interval_s)
    pages = [(unix_s, _samples(path)) for unix_s, path in timed]
    _refuse_several_servers(pages)
    names = sorted(
        {
            one.labels.get("model_name", "")
            for _, page in pages
            for one in page
            if one.name == f"vllm:{RUNNING}"
        }
    )
    if not names:
        raise InputError(f"{files[0]} holds no vllm:{RUNNING}: is it a page of vLLM's /metrics?")
    chosen = chosen_model(names, model, source="The pages")
    series = _series(pages, chosen)
    infos = [(short_name(one.name), dict(one.labels)) for one in pages[-1][1] if one.name in _INFOS]
    return DeploymentHistory(
        source=f"{len(pages)} pages of /metrics",
        model=chosen,
        gauges=series,
        counters=series,
        infos=infos,
        times_known=interval_s is None,
    )


def _timed(files: Sequence[Path], interval_s: float | None) -> list[tuple[float, Path]]:
    if interval_s is not None:
        return [(number * interval_s, path) for number, path in enumerate(files)]
    try:
        timed = sorted((path.stat().st_mtime, path) for path in files)
    except OSError as problem:
        raise InputError(f"{problem.filename} cannot be read ({problem.strerror}).") from None
    if any(after - before < 1e-3 for (before, _), (after, _) in pairwise(timed)):
        raise InputError(
            "Pages of --metrics were written at the same time, so they are copies: name them in their order "
            "and say with --interval how many seconds lie between two."
        )
    return timed


def _samples(path: Path) -> list[Sample]:
    try:
        return parse_samples(path.read_text(), wanted=_LINES)
    except OSError as problem:
        raise InputError(f"{path} cannot be read ({problem.strerror}).") from None
    except ValueError as problem:
        raise InputError(f"{path} is not what /metrics writes ({problem}).") from None


def _refuse_several_servers(pages: Sequence[tuple[float, Sequence[Sample]]]) -> None:
    """Raises InputError where pages come back to a process that was left before."""
    starts = [
        next((one.value for one in page if one.name == "process_start_time_seconds"), 0.0)
        for _, page in pages
    ]
    changes = sum(before != after for before, after in pairwise(starts))
    if changes >= len(set(starts)):
        raise InputError(
            "The pages of --metrics are of several servers: give those of one, or ask a Prometheus server."
        )


def _series(pages: Sequence[tuple[float, Sequence[Sample]]], model: str) -> list[TimeSeries]:
    found: dict[tuple[str, ...], tuple[Sample, list[float], list[float]]] = {}
    for unix_s, page in pages:
        for one in page:
            if not one.name.startswith("vllm:") or one.labels.get("model_name", model) != model:
                continue
            key = (one.name, *(f"{name}={value}" for name, value in sorted(one.labels.items())))
            _, times, values = found.setdefault(key, (one, [], []))
            times.append(unix_s)
            values.append(one.value)
    return [
        TimeSeries(
            name=short_name(sample.name),
            labels=dict(sample.labels),
            unix_s=np.array(times),
            values=np.array(values),
        )
        for sample, times, values in found.values()
    ]
