"""A run as columns: its requests, the scrapes of its server, and the health of its load generators."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from analysis.statistics.arrays import Bools, Floats, Ints
from loadtest.record import (
    Outcome,
    ServerSample,
)

OUTCOMES = tuple(Outcome)
OUTCOME_CODES = {outcome: code for code, outcome in enumerate(OUTCOMES)}
NAN = float("nan")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Requests:
    """Requests in the order of their ends, shape (n,); missing values are nan.

    Fields in `_s` without `unix` are seconds after `start_unix_s`, which is by the master's clock.
    """

    start_unix_s: Floats
    sent_s: Floats
    scheduled_unix_s: Floats
    """When the request was due, in an open loop, by the master's clock."""
    first_chunk_s: Floats
    first_answer_s: Floats
    last_chunk_s: Floats
    end_s: Floats
    chunks: Floats
    first_chunk_tokens: Floats
    """Tokens of the first chunk; 1 when the server did not say."""
    prompt_tokens: Floats
    output_tokens: Floats
    cached_tokens: Floats
    http_status: Floats
    outcome: Ints
    """Indices into OUTCOMES."""
    user: Ints
    """Numbers of the users, distinct over all workers."""
    turn: Ints
    gap_s: NDArray[np.float32]
    """Chunk gaps of all requests, one after the other, shape (sum of gaps,)."""
    gap_start: Ints
    """Where each request's gaps begin in `gap_s`, shape (n + 1,)."""

    def __len__(self) -> int:
        return len(self.start_unix_s)

    @property
    def end_unix_s(self) -> Floats:
        """Ends by the master's clock, shape (n,)."""
        return self.start_unix_s + self.end_s

    @property
    def tokens(self) -> Floats:
        """Output tokens, shape (n,); chunks where the server sent no count, as for unfinished requests."""
        return np.where(np.isnan(self.output_tokens), self.chunks, self.output_tokens)

    @property
    def ok(self) -> Bools:
        """Whether each request succeeded, shape (n,)."""
        return np.equal(self.outcome, OUTCOME_CODES[Outcome.OK])

    def with_outcome(self, *outcomes: Outcome) -> Bools:
        """Whether each request's outcome is one of these, shape (n,)."""
        return np.isin(self.outcome, [OUTCOME_CODES[outcome] for outcome in outcomes])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ServerSamples:
    """Scrapes in time order, shape (m,); missing values are nan. Engines are added up, usage is averaged."""

    unix_s: Floats
    engines: int
    running: Floats
    waiting: Floats
    waiting_capacity: Floats
    kv_cache_usage: Floats
    preemptions_total: Floats
    generation_tokens_total: Floats
    prefix_cache_queries_total: Floats
    """Prompt tokens that were looked up in the prefix cache."""
    prefix_cache_hits_total: Floats
    vram_used_bytes: Floats
    simulated_lateness_s: Floats
    failed_scrapes: int

    def __len__(self) -> int:
        return len(self.unix_s)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ClientSamples:
    """The health of the load generators, an entry for each worker and second, shape (m,)."""

    unix_s: Floats
    worker: Ints
    """Numbers of the workers, from 0."""
    loop_lag_s: Floats
    """99th percentile within the second; the largest value where that was not recorded."""
    cpu: Floats
    in_flight: Floats
    """Requests in flight at this instant."""

    def __len__(self) -> int:
        return len(self.unix_s)


SCALAR_COLUMNS = (
    "start_unix_s",
    "sent_s",
    "scheduled_unix_s",
    "first_chunk_s",
    "first_answer_s",
    "last_chunk_s",
    "end_s",
    "chunks",
    "first_chunk_tokens",
    "prompt_tokens",
    "output_tokens",
    "cached_tokens",
    "http_status",
)


def ordered_requests(
    columns: dict[str, Floats], *, labels: Ints, gap_s: NDArray[np.float32], gaps: Ints
) -> Requests:
    """Requests in the order of their ends, made of rows in any order.

    columns: by the names of SCALAR_COLUMNS, shape (n,) each. labels: outcome, user and turn, shape (n, 3).
    gap_s: the chunk gaps, one request after the other. gaps: how many of them each request has, shape (n,).
    """
    start = np.concatenate([[0], np.cumsum(gaps)]).astype(np.int64)
    order = np.argsort(columns["start_unix_s"] + columns["end_s"], kind="stable")
    return Requests(
        **{name: column[order] for name, column in columns.items()},
        outcome=labels[order, 0],
        user=labels[order, 1],
        turn=labels[order, 2],
        gap_s=_permuted(gap_s, start, order),
        gap_start=np.concatenate([[0], np.cumsum(gaps[order])]).astype(np.int64),
    )


def _permuted(gap_s: NDArray[np.float32], start: Ints, order: Ints) -> NDArray[np.float32]:
    """The gaps with their requests in another order."""
    if np.array_equal(order, np.arange(len(order))):
        return gap_s
    moved = np.empty_like(gap_s)
    at = 0
    for row in order:
        part = gap_s[start[row] : start[row + 1]]
        moved[at : at + len(part)] = part
        at += len(part)
    return moved


_SERVER_SUMS = (
    "running",
    "waiting",
    "waiting_capacity",
    "preemptions_total",
    "generation_tokens_total",
    "prefix_cache_queries_total",
    "prefix_cache_hits_total",
    "vram_used_bytes",
    "simulated_lateness_s",
)


def server_samples_of(samples: Sequence[ServerSample]) -> ServerSamples:
    """Scrapes as columns; those that failed, or that lack an engine, are left out."""
    good = [sample for sample in samples if sample.error is None]
    scrapes: dict[float, list[ServerSample]] = {}
    for sample in good:
        scrapes.setdefault(sample.unix_s, []).append(sample)
    engines = max((len(rows) for rows in scrapes.values()), default=1)
    whole = [(unix_s, rows) for unix_s, rows in sorted(scrapes.items()) if len(rows) == engines]
    columns = {name: _added(whole, name) for name in _SERVER_SUMS}
    usage = _added(whole, "kv_cache_usage") / engines
    unix = np.array([unix_s for unix_s, _ in whole], dtype=np.float64)
    failed = len(samples) - len(good)
    return ServerSamples(unix_s=unix, engines=engines, kv_cache_usage=usage, failed_scrapes=failed, **columns)


def _added(scrapes: list[tuple[float, list[ServerSample]]], name: str) -> Floats:
    """A field summed over the engines that have it; nan where none has."""
    return np.array([_sum([getattr(row, name) for row in rows]) for _, rows in scrapes], dtype=np.float64)


def _sum(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else NAN
