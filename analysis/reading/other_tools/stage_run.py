"""Builds a run from one stage of another tool's results and the scrapes of the server.

Finds the time in which all users were in flight, and the scrapes that belong to the stage.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime

import msgspec
import numpy as np

from analysis.reading.columns import (
    NO_CLASS,
    OUTCOME_CODES,
    SCALAR_COLUMNS,
    ClientSamples,
    Requests,
    ordered_requests,
)
from analysis.reading.error_texts import ErrorTexts
from analysis.reading.other_tools.server_metrics import MetricsDump
from analysis.reading.other_tools.stages import LoadStage, ResultRow
from analysis.reading.runs import Run
from analysis.reading.scrapes import server_samples_of
from analysis.statistics.arrays import Floats
from loadtest.errors import InputError
from loadtest.record import ArrivalsInfo, RunInfo, ServerInfo, ServerSample

SETTLE_DURATIONS = 2.0
"""Request durations left out after all users are in flight, because most tools start them all at once."""
MAX_SCRAPE_DISTANCE_S = 5.0
"""Seconds between a scrape and the begin or end of a stage. Within them, the token counter has no tokens
of other stages."""
MAX_SHIFT_S = 15.0
"""Seconds by which a clock that is known to whole seconds may be off, the time to write the file included."""
LATENESS_UNKNOWN = (
    "{} does not say how late it was itself (event-loop lag, CPU): its times are taken on trust."
)
_NOT_COMPARED = "so the server's count of tokens is not compared with that of the requests."
WHOLE_SECONDS = "The files of {} tell the time to about a second, " + _NOT_COMPARED
SPARSE_SCRAPES = "No scrape lies shortly before and after a level, " + _NOT_COMPARED
NO_SERVER_METRICS = (
    "Without server metrics there is no KV usage, no queue, no count of preemptions and no time blocked for "
    "memory (--server-metrics)."
)


def run_of_stage(
    stage: LoadStage, dump: MetricsDump | None, *, run_id: str, warnings: Sequence[str] = ()
) -> Run:
    """Builds a run from a stage: one level of constant users, or one open loop.

    Raises InputError if the dump of the server's metrics comes from another time or another model.
    """
    source = stage.source
    warnings = [*warnings, *source.lacks, LATENESS_UNKNOWN.format(source.tool)]
    samples = _samples_of_model(dump, source.model, warnings) if dump else []
    requests = _requests(_aligned(stage.rows, samples) if source.whole_seconds else stage.rows)
    samples = _samples_of_stage(dump, samples, requests, stage, warnings) if dump and samples else []
    if not samples:
        warnings.append(NO_SERVER_METRICS)
    return Run(
        info=_info(stage, requests, dump.info() if dump else ServerInfo(), run_id=run_id),
        requests=requests,
        server=server_samples_of(samples),
        client=_nothing_known(),
        warnings=warnings,
    )


def _nothing_known() -> ClientSamples:
    """Returns empty columns, because other tools do not record the health of the load generator."""
    nothing = np.empty(0)
    return ClientSamples(
        unix_s=nothing,
        worker=nothing.astype(np.int64),
        loop_lag_s=nothing,
        loop_lag_max_s=nothing,
        cpu=nothing,
        in_flight=nothing,
    )


def _info(stage: LoadStage, requests: Requests, server: ServerInfo, *, run_id: str) -> RunInfo:
    info = RunInfo(
        run_id=run_id,
        model=stage.source.model,
        scenario=stage.source.tool,
        host=stage.source.host,
        started_unix_s=float(requests.start_unix_s.min()),
        ended_unix_s=float(requests.end_unix_s.max()),
        settings={},
        server=server,
    )
    if stage.users:
        duration_s = (requests.end_s - requests.sent_s)[requests.ok]
        settle_s = SETTLE_DURATIONS * float(duration_s.mean()) if len(duration_s) else 0.0
        info.settings["settle_s"] = settle_s
        info.schedule = [(*_span_of_all_users(requests, stage.users), stage.users)]
    else:
        last = float(requests.start_unix_s.max())
        info.arrivals = ArrivalsInfo(law=stage.name, start_unix_s=info.started_unix_s, end_unix_s=last)
    return info


def _span_of_all_users(requests: Requests, users: int) -> tuple[float, float]:
    """Returns the first and the last moment at which 90 % of the users were in flight, seconds since 1970.

    If fewer than `users` were ever in flight at once, the 90 % are of the largest number in flight.
    """
    at = np.concatenate([requests.start_unix_s + requests.sent_s, requests.end_unix_s])
    step = np.repeat([1, -1], len(requests))
    order = np.lexsort((-step, at))
    in_flight = np.cumsum(step[order])
    full = np.flatnonzero(in_flight >= 0.9 * min(users, in_flight.max()))
    return float(at[order][full[0]]), float(at[order][min(full[-1] + 1, len(at) - 1)])


def _requests(rows: Sequence[ResultRow]) -> Requests:
    conversations: dict[str, int] = {}
    users = [
        conversations.setdefault(row.conversation or f"alone {number}", len(conversations))
        for number, row in enumerate(rows)
    ]
    errors = ErrorTexts()
    labels = [
        (OUTCOME_CODES[row.outcome], user, row.turn, errors.code_of(row.error), NO_CLASS, 0)
        for row, user in zip(rows, users, strict=True)
    ]
    return ordered_requests(
        {name: np.array([getattr(row, name) for row in rows], dtype=np.float64) for name in SCALAR_COLUMNS},
        labels=np.array(labels, dtype=np.int64),
        error_texts=errors.texts,
        gap_s=np.array([gap for row in rows for gap in row.gap_s], dtype=np.float32),
        gaps=np.array([len(row.gap_s) for row in rows], dtype=np.int64),
    )


# The server's scrapes.


def _samples_of_model(dump: MetricsDump, model: str, warnings: list[str]) -> list[ServerSample]:
    """Returns the scrapes of the engines that serve a model.

    If the dump has only one model, it is taken, even if its name differs; a warning is added then. Raises
    InputError if the dump has several models and none has this name.
    """
    names = dump.models()
    if names and model not in names:
        if len(names) > 1:
            raise InputError(f"{dump.path} is of the models {', '.join(names)}, the results are of {model}.")
        warnings.append(
            f"The server metrics are of {names[0]}: taken to be the model {model} of the results."
        )
    return dump.rows(model)


def _samples_of_stage(
    dump: MetricsDump,
    samples: Sequence[ServerSample],
    requests: Requests,
    stage: LoadStage,
    warnings: list[str],
) -> list[ServerSample]:
    """Returns the scrapes during a stage, the last scrape before it and the first scrape after it.

    The counter of generated tokens is removed, with a warning, if its increase might include tokens of other
    stages or miss tokens of this stage. Raises InputError if no scrape lies within the stage.
    """
    begin, end = float(requests.start_unix_s.min()), float(requests.end_unix_s.max())
    at = np.array([sample.unix_s for sample in samples])
    if not np.any((at >= begin) & (at <= end)):
        raise InputError(
            f"{dump.path} does not belong to {stage.label}: its requests went from {_utc(begin)} to "
            f"{_utc(end)}, the server metrics from {_utc(at.min())} to {_utc(at.max())}."
        )
    first, last = at[at <= begin].max(initial=-np.inf), at[at >= end].min(initial=np.inf)
    kept = [sample for sample in samples if first <= sample.unix_s <= last]
    close = dump.changes_only or max(begin - first, last - end) <= MAX_SCRAPE_DISTANCE_S
    if close and not stage.source.whole_seconds:
        return kept
    warnings.append(WHOLE_SECONDS.format(stage.source.tool) if stage.source.whole_seconds else SPARSE_SCRAPES)
    return [msgspec.structs.replace(sample, generation_tokens_total=None) for sample in kept]


def _utc(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _aligned(rows: list[ResultRow], samples: Sequence[ServerSample]) -> list[ResultRow]:
    """Returns the rows with all their times shifted by the same amount, at most MAX_SHIFT_S.

    The rows give a number of requests in flight at each moment, and the server reports one too. The shift is
    chosen so that the two numbers agree best.
    """
    server = server_samples_of(samples)
    on_server = server.running + server.waiting
    starts = np.sort([row.start_unix_s for row in rows])
    ends = np.sort([row.start_unix_s + row.end_s for row in rows])
    near = (server.unix_s >= starts[0] - 2 * MAX_SHIFT_S) & (server.unix_s <= ends[-1] + 2 * MAX_SHIFT_S)
    near &= ~np.isnan(on_server)
    if not near.any():
        return rows
    at, on_server = server.unix_s[near], on_server[near]
    shifts = np.arange(-MAX_SHIFT_S, MAX_SHIFT_S, 0.1)
    off = np.abs(np.stack([_in_flight(starts, ends, at - shift) - on_server for shift in shifts]))
    most = float(np.max(_in_flight(starts, ends, starts)))
    # A cap keeps other load, before and after the stage, from weighing much.
    misses = np.minimum(off, max(1.0, 0.1 * most)).mean(axis=1)
    shift = float(np.median(shifts[misses <= misses.min() + 1e-9]))
    return [
        replace(row, start_unix_s=row.start_unix_s + shift, scheduled_unix_s=row.scheduled_unix_s + shift)
        for row in rows
    ]


def _in_flight(starts: Floats, ends: Floats, at: Floats) -> Floats:
    counted = np.searchsorted(starts, at, side="right") - np.searchsorted(ends, at, side="right")
    return counted.astype(np.float64)
