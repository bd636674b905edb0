"""Figures of real runs and of the twin, under the same names."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from analysis.evidence.evidence import Evidence, gather_evidence
from analysis.evidence.lengths import length_pairs_of
from analysis.levels.level import Level
from analysis.levels.requests import tpot_of
from analysis.levels.window import ended_inside
from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Ints
from analysis.twin.predictions import measured_figures
from analysis.virtual.run import VirtualFigures, VirtualRun
from benchmarks.proofs.fidelity.conditions import OBJECTIVES
from testing.vllm.server import BLOCK_SIZE

TwinFigures = dict[str, float]


TABLE_ROWS = (
    ("KV usage, points", "kv_usage", 100.0),
    ("running", "running", 1.0),
    ("waiting", "waiting", 1.0),
    ("preemptions, % of requests", "preempted_fraction", 100.0),
    ("prefix hits, points", "prefix_hit_rate", 100.0),
    ("TTFT p50, ms", "ttft_p50_s", 1e3),
    ("TTFT p95, ms", "ttft_p95_s", 1e3),
    ("TPOT p50, ms", "tpot_p50_s", 1e3),
    ("TPOT p95, ms", "tpot_p95_s", 1e3),
    ("ITL p50, ms", "itl_p50_s", 1e3),
    ("ITL p95, ms", "itl_p95_s", 1e3),
)


SUMMARY_ROWS = (
    ("KV, points", "kv_usage", 100.0),
    ("running", "running", 1.0),
    ("waiting", "waiting", 1.0),
    ("preempted, points", "preempted_fraction", 100.0),
    ("hits, points", "prefix_hit_rate", 100.0),
    ("TTFT p50", "ttft_p50_s", 1.0),
    ("TTFT p95", "ttft_p95_s", 1.0),
    ("ITL p50", "itl_p50_s", 1.0),
    ("ITL p95", "itl_p95_s", 1.0),
)


def closed_loop_evidence(run: Run) -> tuple[Evidence, Level]:
    evidence = gather_evidence([run], slo=OBJECTIVES)
    evidence = replace(evidence, pairs=length_pairs_of([run], block_tokens=BLOCK_SIZE))
    return evidence, evidence.levels[0]


def closed_loop_figures(run: Run, level: Level) -> TwinFigures:
    inside = (run.server.unix_s >= level.window.begin_unix_s) & (run.server.unix_s <= level.window.end_unix_s)
    rows = run.requests
    index = np.flatnonzero(rows.ok & ended_inside(rows, level.window))
    gaps = np.concatenate([rows.gap_s[rows.gap_start[row] : rows.gap_start[row + 1]] for row in index])
    return (
        measured_figures(level)
        | _times(rows, index, gaps)
        | {
            "waiting": float(np.nanmean(run.server.waiting[inside])),
            "prefix_hit_rate": _hit_rate(run),
        }
    )


def open_loop_figures(run: Run) -> TwinFigures:
    rows = run.requests
    at = rows.start_unix_s + rows.sent_s
    inside = (run.server.unix_s >= at.min()) & (run.server.unix_s <= at.max())
    preempted = run.server.preemptions_total
    return {
        "kv_usage": float(np.nanmean(run.server.kv_cache_usage[inside])),
        "running": float(np.nanmean(run.server.running[inside])),
        "waiting": float(np.nanmean(run.server.waiting[inside])),
        "preempted_fraction": float(preempted[-1] - preempted[0]) / len(rows),
        "prefix_hit_rate": _hit_rate(run),
    } | _times(rows, np.flatnonzero(rows.ok), rows.gap_s)


def _times(rows: Requests, index: Ints, gaps: np.ndarray) -> TwinFigures:
    """Computes p50 and p95 in seconds: TTFT and TPOT over the requests at `index`, ITL over `gaps`."""
    columns = {
        "ttft": (rows.first_chunk_s - rows.sent_s)[index],
        "tpot": tpot_of(rows)[index],
        "itl": gaps,
    }
    return {
        f"{name}_p{place}_s": float(np.nanquantile(values, place / 100))
        for name, values in columns.items()
        for place in (50, 95)
    }


def _hit_rate(run: Run) -> float:
    cached, prompt = run.requests.cached_tokens, run.requests.prompt_tokens
    return float(np.nansum(cached) / np.nansum(prompt))


def twin_figures(seen: VirtualFigures) -> TwinFigures:
    return {key: float(getattr(seen, key)) for _, key, _ in TABLE_ROWS}


def histogram_distance(run: Run, level: Level, played: VirtualRun) -> str:
    """Compares KV usage: standard deviations, and the largest distance of the two distribution functions."""
    inside = (run.server.unix_s >= level.window.begin_unix_s) & (run.server.unix_s <= level.window.end_unix_s)
    seen = np.sort(run.server.kv_cache_usage[inside])
    grid = np.linspace(played.window[0], played.window[1], 4000)
    twin = np.sort(_usage_at(played, grid))
    points = np.linspace(0.0, 1.0, 201)
    distance = np.abs(
        np.searchsorted(seen, points, side="right") / len(seen)
        - np.searchsorted(twin, points, side="right") / len(twin)
    ).max()
    return (
        f"KV usage: {100 * seen.std():.1f} points around its mean, the twin {100 * twin.std():.1f}; "
        f"distance of the histograms {distance:.2f}"
    )


def usage_errors(runs: Sequence[Run], sides: Sequence[VirtualRun]) -> str:
    found = []
    for run, played in zip(runs, sides, strict=True):
        rows = run.requests
        begin = (rows.start_unix_s + rows.sent_s).min()
        inside = (run.server.unix_s >= begin) & (run.server.unix_s <= begin + played.window[1])
        twin = _usage_at(played, run.server.unix_s[inside] - begin)
        found.append(100 * float(np.nanmean(np.abs(twin - run.server.kv_cache_usage[inside]))))
    one, other = (run.server for run in runs)
    starts = [(run.requests.start_unix_s + run.requests.sent_s).min() for run in runs]
    grid = np.arange(0.0, sides[0].window[1], 0.25)
    between = np.abs(
        np.interp(grid, one.unix_s - starts[0], one.kv_cache_usage)
        - np.interp(grid, other.unix_s - starts[1], other.kv_cache_usage)
    )
    errors = " and ".join(f"{error:.2f}" for error in found)
    return (
        f"KV usage over time, mean absolute error: {errors} points; between the two real runs "
        f"{100 * between.mean():.2f}"
    )


def _usage_at(played: VirtualRun, at_s: np.ndarray) -> np.ndarray:
    (trace,) = played.traces
    place = np.searchsorted(np.asarray(trace.step_end_s), at_s, side="right") - 1
    used = np.asarray(trace.used_blocks)[np.maximum(place, 0)] / trace.pool_blocks
    return np.where(place >= 0, used, 0.0)
