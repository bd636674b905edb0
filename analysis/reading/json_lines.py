"""Decodes the JSON Lines files of a run folder, row by row, into columns."""

from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from analysis.reading.columns import (
    NAN,
    NO_CLASS,
    OUTCOME_CODES,
    SCALAR_COLUMNS,
    ClientSamples,
    Requests,
    ServerSamples,
    ordered_requests,
)
from analysis.reading.error_texts import ErrorTexts
from analysis.reading.scrapes import failed_scrapes, server_samples_of
from loadtest.errors import InputError
from loadtest.record import NO_METRICS, RUN_SCHEMA, ClientSample, RequestRecord, ServerSample

_Record = TypeVar("_Record", RequestRecord, ServerSample, ClientSample)

PROGRESS_BYTES = 2**20
"""Bytes between two reports to a progress bar."""
_NOT_REPLAYED = (NAN,) * 4
GAP_ROWS = 4096
"""Rows whose chunk times are held as float64 before they are reduced to float32 gaps."""


class _Schema(msgspec.Struct):
    schema: int


_schema_decoder = msgspec.json.Decoder(_Schema)


def schema_of(data: bytes) -> int:
    """Returns the schema number in a JSON object. Raises msgspec.DecodeError if there is none."""
    return _schema_decoder.decode(data).schema


def other_schema(path: Path, schema: int) -> str:
    """Returns the error message for a file of a schema that this version does not read."""
    return (
        f"{path} is of schema {schema} and this version reads schema {RUN_SCHEMA}: "
        "analyse it with the version that wrote it."
    )


def _decoded_lines(
    path: Path, kind: type[_Record], warnings: list[str], on_bytes: Callable[[int], None]
) -> Iterator[_Record]:
    """Yields the rows of a JSON Lines file. Lines that are not JSON are left out, with a warning.

    Raises InputError for a row that is not of this schema.
    """
    decode = msgspec.json.Decoder(kind).decode
    bad: list[int] = []
    unreported = 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            unreported += len(line)
            if unreported > PROGRESS_BYTES:
                on_bytes(unreported)
                unreported = 0
            try:
                row = decode(line)
            except msgspec.ValidationError as problem:
                raise InputError(_bad_row(path, number, line, problem)) from None
            except msgspec.DecodeError:
                bad.append(number)
                continue
            if isinstance(row, RequestRecord) and row.schema != RUN_SCHEMA:
                raise InputError(_bad_row(path, number, line, None))
            yield row
    on_bytes(unreported)
    if bad:
        warnings.append(_left_out(path, bad, torn=not line.endswith(b"\n")))


def _left_out(path: Path, numbers: Sequence[int], *, torn: bool) -> str:
    if torn and len(numbers) == 1:
        return f"{path.name}: its last line is torn, as after a kill, and is left out."
    listing = ", ".join(map(str, numbers[:5])) + ", ..." * (len(numbers) > 5)
    return f"{path.name}: left out what is not JSON: line{'s' * (len(numbers) > 1)} {listing}."


def _bad_row(path: Path, number: int, line: bytes, problem: Exception | None) -> str:
    try:
        schema = schema_of(line)
    except msgspec.DecodeError:
        schema = RUN_SCHEMA
    if schema != RUN_SCHEMA:
        return other_schema(path, schema)
    return f"{path}, line {number}, is not a row of this tool ({problem}): remove the line or the folder."


def _or_nan(value: float | None) -> float:
    return NAN if value is None else value


def _scalars(row: RequestRecord, clock_offset_s: float) -> tuple[float, ...]:
    """Returns a row's values in the order of SCALAR_COLUMNS, with times by the master's clock."""
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
        row.max_tokens,
        _or_nan(row.pause_s),
    )


class _Gaps:
    """Computes chunk gaps (float32) from chunk times.

    To save memory, it holds the times (float64) of at most GAP_ROWS requests and then only their gaps.
    """

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
    """Reads the request files of a run into columns.

    offsets: for each worker, the seconds by which its clock is ahead of the clock of Locust's master.
    on_bytes: called with the number of bytes that were read since its last call. Raises InputError when a
    row does not fit the schema.
    """
    scalars: list[tuple[float, ...]] = []
    labels: list[tuple[int, ...]] = []
    replayed: list[tuple[float, ...]] = []
    errors = ErrorTexts()
    users: dict[tuple[str, int], int] = {}
    classes: dict[str, int] = {}
    gaps = _Gaps()
    for path in paths:
        for row in _decoded_lines(path, RequestRecord, warnings, on_bytes):
            scalars.append(_scalars(row, offsets.get(row.worker, 0.0)))
            user = users.setdefault((row.worker, row.user), len(users))
            name, error = row.user_class, errors.code_of(row.error)
            user_class = NO_CLASS if name is None else classes.setdefault(name, len(classes))
            labels.append((OUTCOME_CODES[row.outcome], user, row.turn, error, user_class, row.step))
            replayed.append(_replayed(row))
            gaps.add(row.chunk_s)
    return _requests(scalars, labels, replayed, errors.texts, list(classes), gaps.all())


def _replayed(row: RequestRecord) -> tuple[float, ...]:
    """Returns what a row says of a recorded session: lateness, recorded tokens of prompt and answer, and
    reusable tokens."""
    found = row.recorded
    if found is None:
        return _NOT_REPLAYED
    lengths = (_or_nan(found.prompt_tokens), _or_nan(found.output_tokens))
    return (_or_nan(row.late_s), *lengths, float(found.reusable_tokens))


def _requests(
    scalars: list[tuple[float, ...]],
    labels: list[tuple[int, ...]],
    replayed: list[tuple[float, ...]],
    error_texts: Sequence[str],
    class_names: Sequence[str],
    gap_s: NDArray[np.float32],
) -> Requests:
    table = np.array(scalars, dtype=np.float64).reshape(-1, len(SCALAR_COLUMNS))
    codes = np.array(labels, dtype=np.int64).reshape(-1, 6)
    columns = dict(zip(SCALAR_COLUMNS, table.T, strict=True))
    gaps = np.maximum(columns["chunks"].astype(np.int64) - 1, 0)
    return ordered_requests(
        columns,
        labels=codes,
        error_texts=error_texts,
        gap_s=gap_s,
        gaps=gaps,
        class_names=class_names,
        recorded=np.array(replayed, dtype=np.float64).reshape(-1, len(_NOT_REPLAYED)),
    )


def read_server(path: Path, asked: object, warnings: list[str]) -> ServerSamples:
    """Reads the scrapes of a run's server into columns.

    asked: the setting `metrics_url`. Adds a warning if there are no scrapes or some failed, unless the load
    test has said already that it found no metrics. Raises InputError for a row of another schema.
    """
    samples = list(_decoded_lines(path, ServerSample, warnings, lambda _: None)) if path.is_file() else []
    good = [sample for sample in samples if sample.error is None]
    if not good:
        if not any(warning.startswith(NO_METRICS) for warning in warnings):
            why = _why_no_metrics(samples, asked)
            warnings.append(f"The server's metrics {why}: what only the server can tell is missing.")
        return server_samples_of(samples)
    failed, exporter = failed_scrapes(samples)
    if failed:
        warnings.append(f"{failed} of {failed + len(good)} scrapes of /metrics failed.")
    if exporter:
        warnings.append(f"The GPU exporter was not read {exporter} times; /metrics was.")
    return server_samples_of(samples)


def _why_no_metrics(samples: Sequence[ServerSample], asked: object) -> str:
    if asked == "off":
        return "were not asked for (--metrics-url off)"
    if samples:
        return f"could not be read at any time ({samples[-1].error})"
    return "are not in the run folder"


def read_client(paths: Sequence[Path], warnings: list[str]) -> ClientSamples:
    """Reads the health of the load generators into columns. Each worker has a file of its own.

    Raises InputError for a row of another schema.
    """
    numbered = [
        (worker, row)
        for worker, path in enumerate(paths)
        for row in _decoded_lines(path, ClientSample, warnings, lambda _: None)
    ]
    rows = [row for _, row in numbered]
    lag = [row.loop_lag_max_s if row.loop_lag_p99_s is None else row.loop_lag_p99_s for row in rows]
    return ClientSamples(
        unix_s=np.array([row.unix_s for row in rows], dtype=np.float64),
        worker=np.array([worker for worker, _ in numbered], dtype=np.int64),
        loop_lag_s=np.array(lag, dtype=np.float64),
        loop_lag_max_s=np.array([row.loop_lag_max_s for row in rows], dtype=np.float64),
        cpu=np.array([row.cpu for row in rows], dtype=np.float64),
        in_flight=np.array([row.in_flight for row in rows], dtype=np.float64),
    )
