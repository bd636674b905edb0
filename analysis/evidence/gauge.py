"""Comparison of the server's gauge of KV usage with the usage that is computed from the rows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from analysis.evidence.lengths import LengthPairs
from analysis.levels.context import Pool
from analysis.levels.level import Level
from analysis.reading.columns import Requests
from analysis.reading.runs import Run
from analysis.statistics.arrays import Floats
from loadtest.workload.classes import different_texts


@dataclass(frozen=True, kw_only=True, slots=True)
class Gauge:
    """KV usage per running request, from the scrapes of trusted levels in which no request waited."""

    tokens_per_request: float
    r2: float
    off: float
    """Usage by the gauge divided by usage by the rows at the same scrapes, less 1."""
    off_se: float


def gauge_of(runs: Sequence[Run], levels: Sequence[Level], pool: Pool, pairs: LengthPairs) -> Gauge | None:
    """Compares gauge and rows over all runs; None where fewer than five scrapes had requests running.

    pairs: lengths of the requests, with what they share.
    """
    shared_prefix = pairs.shared_prefix
    free = [level for level in levels if level.trusted and not level.server.waiting_fraction > 0]
    scrapes = [_scrapes(run, free, pool, pairs) for run in runs]
    running = np.concatenate([one.running for one in scrapes])
    held = np.concatenate([one.held for one in scrapes])
    if len(running) < 5:
        return None
    own = held - shared_prefix
    slope = float(own.sum() / running.sum())
    spread = float(np.sum((own - own.mean()) ** 2))
    r2 = 1.0 - float(np.sum((own - slope * running) ** 2)) / spread if spread > 0 else math.nan
    rebuilt = np.concatenate([one.rebuilt for one in scrapes])
    active = np.concatenate([one.active for one in scrapes])
    off, off_se = _disagreement(own / running, rebuilt, active)
    return Gauge(tokens_per_request=slope + shared_prefix, r2=r2, off=off, off_se=off_se)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class _Scrapes:
    running: Floats
    held: Floats
    """Tokens that the gauge shows, all engines together."""
    rebuilt: Floats
    """Tokens that follow from the rows, in whole blocks, a prefix that all requests share left out."""
    active: Floats


def _scrapes(run: Run, levels: Sequence[Level], pool: Pool, pairs: LengthPairs) -> _Scrapes:
    unix = run.server.unix_s
    inside = np.zeros(len(unix), dtype=np.bool_)
    for level in levels:
        if level.run_id == run.info.run_id:
            inside |= (unix >= level.window.begin_unix_s) & (unix <= level.window.end_unix_s)
    inside &= (run.server.running > 0) & ~np.isnan(run.server.kv_cache_usage)
    rebuilt, active = _rebuilt(run.requests, unix[inside], pool.block_tokens, pairs)
    return _Scrapes(
        running=run.server.running[inside],
        held=run.server.kv_cache_usage[inside] * pool.tokens,
        rebuilt=rebuilt,
        active=active,
    )


def _rebuilt(
    rows: Requests, at_unix_s: Floats, block_tokens: int, pairs: LengthPairs
) -> tuple[Floats, Floats]:
    """Returns two arrays, computed from the rows, with a value for each instant of `at_unix_s`.

    The first has the KV tokens in whole blocks, without a prefix that all requests share. A text that a class
    of users shares is counted as often as is expected, for as many requests of the class. The second array
    has the requests in flight.
    """
    shared = np.full(len(rows), pairs.shared_prefix // block_tokens * block_tokens)
    of_class = [rows.of_class(one.name) for one in pairs.classes]
    for one, mine in zip(pairs.classes, of_class, strict=True):
        shared[mine] = one.pairs.shared_prefix
    begins, ends = rows.start_unix_s + np.nan_to_num(rows.sent_s), rows.end_unix_s
    longest = float((ends - begins).max(initial=0.0))
    held, active = np.zeros(len(at_unix_s)), np.zeros(len(at_unix_s))
    for position, at in enumerate(at_unix_s):
        near = np.searchsorted(ends, [at, at + longest])  # rows are in the order of their ends
        index = np.arange(near[0], min(near[1] + 1, len(rows)))
        index = index[(begins[index] <= at) & (rows.prompt_tokens[index] >= 1)]
        first_s, last_s = rows.first_chunk_s[index], rows.last_chunk_s[index]
        since = at - rows.start_unix_s[index]
        decoded = np.clip((since - first_s) / np.maximum(last_s - first_s, 1e-9), 0.0, 1.0)
        tokens = np.maximum(rows.prompt_tokens[index] - shared[index], 1) + decoded * np.maximum(
            rows.output_tokens[index] - 1, 0
        )
        held[position] = np.sum(np.ceil(tokens / block_tokens)) * block_tokens
        for one, mine in zip(pairs.classes, of_class, strict=True):
            held[position] += one.pairs.shared_prefix * different_texts(
                one.shared_texts, int(mine[index].sum())
            )
        active[position] = len(index)
    return held, active


def _disagreement(per_running: Floats, rebuilt: Floats, active: Floats) -> tuple[float, float]:
    """Returns the relative difference of tokens per request between gauge and rows, and its standard error.

    The difference is (tokens by the gauge) / (tokens by the rows) - 1. With fewer than five scrapes, returns
    0 and an infinite error.
    """
    some = active > 0
    if some.sum() < 5:
        return 0.0, math.inf
    ours = rebuilt[some] / active[some]
    weight = active[some]
    ratio = float(np.sum(per_running[some] * weight) / np.sum(ours * weight))
    rest = weight * (per_running[some] - ratio * ours)
    error = math.sqrt(float(np.sum(rest**2)) * len(rest) / (len(rest) - 1)) / float(np.sum(ours * weight))
    return ratio - 1.0, error
