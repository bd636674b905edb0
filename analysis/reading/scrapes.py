"""Turns the scrapes of a server's engines into columns, across restarts, and engines that come and go."""

import itertools
from collections.abc import Sequence

import msgspec
import numpy as np

from analysis.reading.columns import NAN, ServerSamples
from analysis.statistics.arrays import Floats
from loadtest.record import ServerSample

ADDED_GAUGES = (
    "running",
    "waiting",
    "waiting_capacity",
    "num_gpu_blocks",
    "vram_used_bytes",
    "simulated_lateness_s",
)
CONTINUED_COUNTERS = (
    "preemptions_total",
    "generation_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "ttft_sum_s",
    "ttft_count",
    "tpot_sum_s",
    "tpot_count",
    "e2e_sum_s",
    "e2e_count",
    "queue_sum_s",
    "queue_count",
)
START_SLACK_S = 1.0
"""Seconds by which two statements of one process's start may differ."""
MIN_RETURNS = 3
"""Returns to a replica that was left before, from which on scrapes count as coming from several replicas."""

Scrape = tuple[float, list[ServerSample]]


def server_samples_of(samples: Sequence[ServerSample]) -> ServerSamples:
    """Returns scrapes as columns.

    Scrapes that failed are left out, and those that lack an engine which was there before and came back. A
    counter that restarts goes on from its last value.
    """
    good = [sample for sample in samples if sample.error is None]
    pages, _ = failed_scrapes(samples)
    engines: dict[str | None, list[ServerSample]] = {}
    for sample in sorted(good, key=lambda sample: sample.unix_s):
        engines.setdefault(sample.engine, []).append(sample)
    alternating = any(_alternates(rows) for rows in engines.values())
    first_unix_s = min((rows[0].unix_s for rows in engines.values()), default=0.0)
    continued, restarts = [], []
    for rows in engines.values():
        whole, found = _continued(rows, forget=alternating, since_unix_s=first_unix_s)
        continued.append(whole)
        restarts += [] if alternating else found
    scrapes = _whole_scrapes(continued)
    there = np.array([len(rows) for _, rows in scrapes], dtype=np.int64)
    columns = {name: _added(scrapes, name) for name in ADDED_GAUGES}
    columns |= {
        name: _added(scrapes, name) + _of_gone(scrapes, continued, name) for name in CONTINUED_COUNTERS
    }
    return ServerSamples(
        unix_s=np.array([unix_s for unix_s, _ in scrapes], dtype=np.float64),
        engines=int(there.max(initial=1)),
        engines_there=there,
        kv_cache_usage=_added(scrapes, "kv_cache_usage") / np.maximum(there, 1),
        failed_scrapes=pages,
        restarts=tuple(sorted(restarts)),
        alternating=alternating,
        **columns,
    )


def unseen_spans(server: ServerSamples) -> list[tuple[float, float]]:
    """Returns the spans between scrapes, in seconds since 1970, in which a counter was lost: an engine
    restarted, came or went in each of them."""
    changed = np.flatnonzero(np.diff(server.engines_there))
    moves = [(float(server.unix_s[at]), float(server.unix_s[at + 1])) for at in changed]
    return sorted([*server.restarts, *moves])


def failed_scrapes(samples: Sequence[ServerSample]) -> tuple[int, int]:
    """Returns how many readings of /metrics failed, and how many of the GPU exporter alone.

    An error that names no engine, beside rows that were read at the same time, is one of the exporter.
    """
    read_at = {sample.unix_s for sample in samples if sample.error is None}
    failed = [sample for sample in samples if sample.error is not None]
    exporter = sum(sample.engine is None and sample.unix_s in read_at for sample in failed)
    pages = {(sample.unix_s, sample.engine) for sample in failed}
    return len(pages) - exporter, exporter


def _whole_scrapes(engines: Sequence[Sequence[ServerSample]]) -> list[Scrape]:
    """Returns the scrapes, in time order, that hold every engine that was there at the time."""
    spans = [(rows[0].unix_s, rows[-1].unix_s) for rows in engines]
    scrapes: dict[float, list[ServerSample]] = {}
    for rows in engines:
        for row in rows:
            scrapes.setdefault(row.unix_s, []).append(row)
    return [
        (unix_s, rows)
        for unix_s, rows in sorted(scrapes.items())
        if len(rows) >= sum(begin <= unix_s <= end for begin, end in spans)
    ]


def _alternates(rows: Sequence[ServerSample]) -> bool:
    """Whether scrapes of one engine come from several replicas by turns, as behind one address.

    Told by the start of the process, or else by the tokens: each replica's counter only rises, and scrapes
    come back to the counter of a replica that was left before.
    """
    starts = [round(row.started_unix_s / START_SLACK_S) for row in rows if row.started_unix_s is not None]
    if starts:
        return _returns(starts) >= MIN_RETURNS
    replicas: list[float] = []
    tokens = [row.generation_tokens_total for row in rows]
    served = [_replica_with(replicas, count) for count in tokens if count is not None]
    return _returns(served) >= MIN_RETURNS


def _replica_with(replicas: list[float], tokens: float) -> int:
    """Returns the number of the replica whose counter was last nearest below `tokens`, and notes them."""
    below = [number for number, last in enumerate(replicas) if last <= tokens]
    if not below:
        replicas.append(tokens)
        return len(replicas) - 1
    nearest = max(below, key=lambda number: replicas[number])
    replicas[nearest] = tokens
    return nearest


def _returns(values: Sequence[int]) -> int:
    """Returns how often a value comes again after another one."""
    seen: set[int] = set()
    count = 0
    for before, now in itertools.pairwise(values):
        seen.add(before)
        count += now != before and now in seen
    return count


def _continued(
    rows: Sequence[ServerSample], *, forget: bool, since_unix_s: float
) -> tuple[list[ServerSample], list[tuple[float, float]]]:
    """Returns the scrapes of one engine with counters that go on after restarts, and the restarts.

    forget: counters become unknown. since_unix_s: the first scrape of any engine. The counters of an engine
    that came later begin at 0, without what it had counted before its first scrape, unless it started later.
    """
    if forget:
        return [msgspec.structs.replace(row, **dict.fromkeys(CONTINUED_COUNTERS)) for row in rows], []
    changed: list[ServerSample] = []
    restarts: list[tuple[float, float]] = []
    started = rows[0].started_unix_s
    known = rows[0].unix_s > since_unix_s and (started is None or started < since_unix_s)
    base = {name: -(getattr(rows[0], name) or 0.0) if known else 0.0 for name in CONTINUED_COUNTERS}
    before: ServerSample | None = None
    for row in rows:
        if before is not None and _restarted(before, row):
            restarts.append((before.unix_s, row.unix_s))
            base = {name: base[name] + (getattr(before, name) or 0.0) for name in CONTINUED_COUNTERS}
        before = row
        values = {name: getattr(row, name) for name in CONTINUED_COUNTERS}
        values = {name: None if value is None else value + base[name] for name, value in values.items()}
        changed.append(msgspec.structs.replace(row, **values))
    return changed, restarts


def _restarted(before: ServerSample, after: ServerSample) -> bool:
    if before.started_unix_s is not None and after.started_unix_s is not None:
        return abs(after.started_unix_s - before.started_unix_s) > START_SLACK_S
    pairs = [(getattr(before, name), getattr(after, name)) for name in CONTINUED_COUNTERS]
    return any(old is not None and new is not None and new < old for old, new in pairs)


def _of_gone(scrapes: Sequence[Scrape], engines: Sequence[Sequence[ServerSample]], name: str) -> Floats:
    """Returns, for each scrape, the last values of engines that had gone by then."""
    at = np.array([unix_s for unix_s, _ in scrapes], dtype=np.float64)
    gone = np.zeros(len(at))
    for rows in engines:
        gone += np.where(at > rows[-1].unix_s, getattr(rows[-1], name) or 0.0, 0.0)
    return gone


def _added(scrapes: Sequence[Scrape], name: str) -> Floats:
    """Returns the sum of a field over the engines, one value for each scrape.

    Engines without the field are skipped. The sum is nan in a scrape in which no engine has the field.
    """
    return np.array([_sum([getattr(row, name) for row in rows]) for _, rows in scrapes], dtype=np.float64)


def _sum(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else NAN
