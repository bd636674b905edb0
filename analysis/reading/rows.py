"""TODO."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.statistics.arrays import Bools, Floats, Ints
from loadtest.errors import InputError
from loadtest.record import (
    SCHEMA,
    ClientSample,
    Outcome,
    RequestRecord,
    ServerSample,
)

T = TypeVar("T", RequestRecord, ServerSample, ClientSample)

OUTCOMES = tuple(Outcome)
CODE = {outcome: code for code, outcome in enumerate(OUTCOMES)}
NAN = float("nan")
TOLD_BYTES = 2**20  # how often a progress bar hears of it
GAP_ROWS = 4096  # rows whose chunk times are held as doubles before they shrink to float32 gaps


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Requests:
    """One entry a request, shape (n,), in the order of their ends; missing is nan.

    Fields in `_s` without `unix` are seconds after `start_unix_s`, which is on the master's window.
    """

    start_unix_s: Floats
    sent_s: Floats
    scheduled_unix_s: Floats
    """Open loop: when it was due, on the master's window."""
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
    """Index into `OUTCOMES`."""
    user: Ints
    """Distinct over workers."""
    turn: Ints
    gap_s: NDArray[np.float32]
    """Chunk gaps of all requests, one after the other, shape (sum of gaps,)."""
    gap_start: Ints
    """Where each request's gaps begin in `gap_s`, shape (n + 1,)."""

    def __len__(self) -> int:
        return len(self.start_unix_s)

    @property
    def end_unix_s(self) -> Floats:
        """Shape (n,), master's window."""
        return self.start_unix_s + self.end_s

    @property
    def tokens(self) -> Floats:
        """Output tokens, shape (n,); the chunks where no usage came, as of unfinished requests."""
        return np.where(np.isnan(self.output_tokens), self.chunks, self.output_tokens)

    @property
    def ok(self) -> Bools:
        """Shape (n,)."""
        return np.equal(self.outcome, CODE[Outcome.OK])

    def with_outcome(self, *outcomes: Outcome) -> Bools:
        """Shape (n,): whose outcome is one of these."""
        return np.isin(self.outcome, [CODE[outcome] for outcome in outcomes])


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Server:
    """One entry a scrape, shape (m,), in time order; missing is nan. Engines are summed, usage averaged."""

    unix_s: Floats
    engines: int
    running: Floats
    waiting: Floats
    waiting_capacity: Floats
    kv_cache_usage: Floats
    preemptions_total: Floats
    generation_tokens_total: Floats
    prefix_cache_queries_total: Floats
    """Prompt tokens that were looked up."""
    prefix_cache_hits_total: Floats
    vram_used_bytes: Floats
    simulated_lateness_s: Floats
    failed_scrapes: int

    def __len__(self) -> int:
        return len(self.unix_s)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Client:
    """The load generator's health, one entry a worker and second, shape (m,)."""

    unix_s: Floats
    worker: Ints
    """Which one, counted from 0."""
    loop_lag_s: Floats
    """p99 within the second; the largest where p99 was not recorded."""
    cpu: Floats
    in_flight: Floats
    """At this instant."""

    def __len__(self) -> int:
        return len(self.unix_s)


class _Schema(msgspec.Struct):
    schema: int


schema_decoder = msgspec.json.Decoder(_Schema)


def other_schema(path: Path, schema: int) -> str:
    return (
        f"{path} is of schema {schema} and this version reads schema {SCHEMA}: "
        "analyse it with the version that wrote it."
    )


def decoded_lines(
    path: Path, kind: type[T], warnings: list[str], on_bytes: Callable[[int], None]
) -> Iterator[T]:
    """Rows of a JSON Lines file. Lines that are not JSON are left out and warned about."""
    decode = msgspec.json.Decoder(kind).decode
    bad: list[int] = []
    unseen = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            unseen += len(line)
            if unseen > TOLD_BYTES:
                on_bytes(unseen)
                unseen = 0
            try:
                row = decode(line)
            except msgspec.ValidationError as problem:
                raise InputError(_bad_row(path, number, line, problem)) from None
            except msgspec.DecodeError:
                bad.append(number)
                continue
            if isinstance(row, RequestRecord) and row.schema != SCHEMA:
                raise InputError(_bad_row(path, number, line, None))
            yield row
    on_bytes(unseen)
    if bad:
        warnings.append(_left_out(path, bad, torn=not line.endswith(b"\n")))


def _left_out(path: Path, numbers: Sequence[int], *, torn: bool) -> str:
    if torn and len(numbers) == 1:
        return f"{path.name}: its last line is torn (a kill does that) and left out."
    listing = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
    return f"{path.name}: left out what is not JSON, line{'s' * (len(numbers) > 1)} {listing}."


def _bad_row(path: Path, number: int, line: bytes, problem: Exception | None) -> str:
    try:
        schema = schema_decoder.decode(line).schema
    except msgspec.DecodeError:
        schema = SCHEMA
    if schema != SCHEMA:
        return other_schema(path, schema)
    return f"{path}, line {number}, is not a row of this tool ({problem}): remove the line or the folder."


def _or_nan(value: float | None) -> float:
    return NAN if value is None else value


COLUMNS = (
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


def _scalars(row: RequestRecord, clock_offset_s: float) -> tuple[float, ...]:
    """In the order of `COLUMNS`."""
    chunks = row.chunk_s
    return (
        row.start_unix_s - clock_offset_s,
        _or_nan(row.sent_s),
        _or_nan(row.scheduled_unix_s) - clock_offset_s,
        chunks[0] if chunks else NAN,
        _or_nan(row.first_answer_s),
        chunks[-1] if chunks else NAN,
        row.end_s,
        len(chunks),
        row.chunk_tokens[0] if row.chunk_tokens else 1,
        _or_nan(row.prompt_tokens),
        _or_nan(row.output_tokens),
        _or_nan(row.cached_tokens),
        _or_nan(row.http_status),
    )


class _Gaps:
    """Chunk times in, float32 gaps out; holds at most `GAP_ROWS` requests' times as doubles."""

    def __init__(self) -> None:
        self._times = array("d")
        self._counts: list[int] = []
        self._done: list[NDArray[np.float32]] = []

    def add(self, chunk_s: list[float]) -> None:
        self._times.extend(chunk_s)
        self._counts.append(len(chunk_s))
        if len(self._counts) == GAP_ROWS:
            self._reduce()

    def _reduce(self) -> None:
        counts = np.array(self._counts, dtype=np.int64)
        last = np.cumsum(counts[counts > 0]) - 1
        keep = np.ones(len(self._times), dtype=np.bool_)
        keep[last] = False
        gaps = np.diff(np.frombuffer(self._times, dtype=np.float64), append=0.0)
        self._done.append(gaps[keep].astype(np.float32))
        self._times, self._counts = array("d"), []

    def all(self) -> NDArray[np.float32]:
        self._reduce()
        return np.concatenate(self._done)


def read_requests(
    paths: Sequence[Path], offsets: dict[str, float], warnings: list[str], on_bytes: Callable[[int], None]
) -> Requests:
    scalars: list[tuple[float, ...]] = []
    labels: list[tuple[int, int, int]] = []
    users: dict[tuple[str, int], int] = {}
    gaps = _Gaps()
    for path in paths:
        for row in decoded_lines(path, RequestRecord, warnings, on_bytes):
            scalars.append(_scalars(row, offsets.get(row.worker, 0.0)))
            user = users.setdefault((row.worker, row.user), len(users))
            labels.append((CODE[row.outcome], user, row.turn))
            gaps.add(row.chunk_s)
    return _requests(scalars, labels, gaps.all())


def _requests(
    scalars: list[tuple[float, ...]], labels: list[tuple[int, int, int]], gap_s: NDArray[np.float32]
) -> Requests:
    table = np.array(scalars, dtype=np.float64).reshape(-1, len(COLUMNS))
    codes = np.array(labels, dtype=np.int64).reshape(-1, 3)
    columns = dict(zip(COLUMNS, table.T, strict=True))
    gaps = np.maximum(columns["chunks"].astype(np.int64) - 1, 0)
    return requests_of(columns, labels=codes, gap_s=gap_s, gaps=gaps)


def requests_of(
    columns: dict[str, Floats], *, labels: Ints, gap_s: NDArray[np.float32], gaps: Ints
) -> Requests:
    """Rows in any order, put into the order of their ends.

    columns: shape (n,) each, by the names of COLUMNS. labels: shape (n, 3), outcome, user and turn. gap_s:
    the chunk gaps of all, one request after the other; gaps: shape (n,), how many of them are whose.
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
    """The ragged rows of `gap_s` in another order."""
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


def read_server(path: Path, warnings: list[str]) -> Server:
    samples = list(decoded_lines(path, ServerSample, warnings, lambda _: None)) if path.is_file() else []
    good = [sample for sample in samples if sample.error is None]
    if not good:
        why = "every scrape failed" if samples else "there is none"
        warnings.append(f"The server's /metrics was not read ({why}): what only it can tell is missing.")
    elif len(good) < len(samples):
        warnings.append(f"{len(samples) - len(good)} of {len(samples)} scrapes of /metrics failed.")
    return server_of(samples)


def server_of(samples: Sequence[ServerSample]) -> Server:
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
    return Server(unix_s=unix, engines=engines, kv_cache_usage=usage, failed_scrapes=failed, **columns)


def _added(scrapes: list[tuple[float, list[ServerSample]]], name: str) -> Floats:
    """A field summed over the engines that have it; nan where none has."""
    return np.array([_sum([getattr(row, name) for row in rows]) for _, rows in scrapes], dtype=np.float64)


def _sum(values: list[float | None]) -> float:
    known = [value for value in values if value is not None]
    return float(sum(known)) if known else NAN


def read_client(paths: Sequence[Path], warnings: list[str]) -> Client:
    found = [
        (worker, row)
        for worker, path in enumerate(paths)
        for row in decoded_lines(path, ClientSample, warnings, lambda _: None)
    ]
    rows = [row for _, row in found]
    lag = [row.loop_lag_max_s if row.loop_lag_p99_s is None else row.loop_lag_p99_s for row in rows]
    return Client(
        unix_s=np.array([row.unix_s for row in rows], dtype=np.float64),
        worker=np.array([worker for worker, _ in found], dtype=np.int64),
        loop_lag_s=np.array(lag, dtype=np.float64),
        cpu=np.array([row.cpu for row in rows], dtype=np.float64),
        in_flight=np.array([row.in_flight for row in rows], dtype=np.float64),
    )
