"""What other load generators measured -> Run: which stages answer, when all users were in flight, and which
scrapes of the server belong to them. Knows no file format."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import numpy as np

from analysis.reading.columns import (
    OUTCOME_CODES,
    SCALAR_COLUMNS,
    ClientSamples,
    Requests,
    ordered_requests,
    server_samples_of,
)
from analysis.reading.result_files import SUPPORTED_FILES, read_file
from analysis.reading.result_rows import LoadStage, ResultRow
from analysis.reading.runs import Run
from analysis.reading.server_metrics import MetricsDump, read_metrics_dump
from analysis.statistics.arrays import Floats
from loadtest.errors import InputError
from loadtest.record import ArrivalsInfo, Outcome, RunInfo, ServerInfo, ServerSample

DUMP_NAMES = (
    ("server_metrics.json",),
    ("server_metrics.txt",),
    ("server_metrics_export.jsonl", "server_metrics_export.json"),
)
"""Dumps that are found without being named, the first that there are. The last are aiperf's two halves."""
SETTLE_DURATIONS = 2.0
"""Request durations that are dropped once all users are in flight: most tools start them at once."""
MAX_COUNTER_DISTANCE_S = 5.0
"""A counter that was read this near to both ends of a stage holds the tokens of no other stage."""
MAX_SHIFT_S = 15.0
"""How far times that are known to whole seconds may be off, the time to write the file included."""
ONE_WORKLOAD_DIFFERENCE = 0.25
FOUR_SIGMA = 4.0
"""Mean lengths of stages of one workload differ by less than both."""
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


def read_results(path: Path, *, server_metrics: Path | None = None) -> list[Run]:
    """The result file at this path, or all of them in this folder and its subfolders: a run for each stage.

    `server_metrics`: a dump that covers them all; without it one of NEIGHBOURS beside each file, or in the
    folder. Raises InputError when a file is cut off, is of another kind or version, or when the dump does
    not belong to it.
    """
    dump = read_metrics_dump(server_metrics) if server_metrics else None
    found = [stage for file in _files(path) for stage in read_file(file, named=path.is_file())]
    if not found:
        raise InputError(
            f"{path} holds no run (no run.json): run a load test first, or name another folder. It holds no "
            f"result of another tool either ({SUPPORTED_FILES})."
        )
    chosen = _that_answer(found)
    _refuse_two_workloads(chosen)
    notes = _left_out(found, chosen)
    root = path if path.is_dir() else path.parent
    folders = {stage.source.path.parent for stage in chosen}
    beside = {folder: dump or _neighbour(folder, root) for folder in folders}
    return [_run(stage, beside[stage.source.path.parent], root=root, notes=notes) for stage in chosen]


def _files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    found = [file for place in ("*", "*/*") for file in path.glob(f"{place}.json*")]
    dumps = {name for names in DUMP_NAMES for name in names}
    return sorted(file for file in found if file.suffix in (".json", ".jsonl") and file.name not in dumps)


def _that_answer(found: Sequence[LoadStage]) -> list[LoadStage]:
    """Stages of constant users where the model has any, else its open loops."""
    made = [stage for stage in found if stage.rows]
    if not made:
        raise InputError(f"No request was made in {', '.join(stage.label for stage in found)}.")
    closed = {stage.source.model for stage in made if stage.users}
    return [stage for stage in made if stage.users or stage.source.model not in closed]


def _left_out(found: Sequence[LoadStage], chosen: Sequence[LoadStage]) -> dict[str, str]:
    """By model, in a sentence: stages that do not help to answer."""
    labels: dict[str, list[str]] = {}
    for stage in found:
        if stage not in chosen:
            labels.setdefault(stage.source.model, []).append(stage.label)
    return {
        model: f"Left out, because they hold no constant number of users, or no request: {', '.join(names)}."
        for model, names in labels.items()
    }


def _refuse_two_workloads(stages: Sequence[LoadStage]) -> None:
    """Lengths of all stages are pooled. Files do not say what was asked, so what came must look alike."""
    for kind in ("prompt", "output"):
        means: dict[tuple[str, str], list[_Mean]] = {}
        for stage in stages:
            lengths = [getattr(row, f"{kind}_tokens") for row in stage.rows if row.outcome is Outcome.OK]
            if len(lengths) > 1:
                error = float(np.std(lengths)) / math.sqrt(len(lengths))
                one = _Mean(tokens=float(np.mean(lengths)), error=error, of=stage.label)
                means.setdefault((stage.source.tool, stage.source.model), []).append(one)
        for found in means.values():
            low, high = (choose(found, key=lambda mean: mean.tokens) for choose in (min, max))
            noise = FOUR_SIGMA * math.hypot(low.error, high.error)
            if high.tokens - low.tokens > max(ONE_WORKLOAD_DIFFERENCE * low.tokens, noise):
                raise InputError(
                    f"{low.of} has {low.tokens:.0f} {kind} tokens a request and {high.of} {high.tokens:.0f}: "
                    "these are two workloads, put them into folders of their own."
                )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Mean:
    """Of the lengths of a stage, with its standard error."""

    tokens: float
    error: float
    of: str


def _neighbour(folder: Path, root: Path) -> MetricsDump | None:
    for place in (folder, root):
        for names in DUMP_NAMES:
            found = [read_metrics_dump(place / name) for name in names if (place / name).is_file()]
            if found:
                scrapes = sorted((one for dump in found for one in dump.scrapes), key=lambda one: one[0])
                return replace(found[0], scrapes=scrapes)
    return None


def _run(stage: LoadStage, dump: MetricsDump | None, *, root: Path, notes: dict[str, str]) -> Run:
    source = stage.source
    warnings = [notes[source.model]] if source.model in notes else []
    warnings += [*source.lacks, LATENESS_UNKNOWN.format(source.tool)]
    samples = _of_model(dump, source.model, warnings) if dump else []
    rows = _aligned(stage.rows, samples) if source.whole_seconds else stage.rows
    requests = _requests(rows)
    samples = _within(dump, samples, requests, stage, warnings) if dump and samples else []
    if not samples:
        warnings.append(NO_SERVER_METRICS)
    nothing = np.empty(0)
    return Run(
        info=_info(stage, requests, dump.info() if dump else ServerInfo(), root=root),
        requests=requests,
        server=server_samples_of(samples),
        client=ClientSamples(
            unix_s=nothing,
            worker=nothing.astype(np.int64),
            loop_lag_s=nothing,
            cpu=nothing,
            in_flight=nothing,
        ),
        warnings=warnings,
    )


def _info(stage: LoadStage, requests: Requests, server: ServerInfo, *, root: Path) -> RunInfo:
    source = stage.source
    file = source.path.relative_to(root).as_posix()
    info = RunInfo(
        run_id=f"{file}:{stage.name}",
        model=source.model,
        scenario=source.tool,
        host=source.host,
        started_unix_s=float(requests.start_unix_s.min()),
        ended_unix_s=float(requests.end_unix_s.max()),
        settings={},
        server=server,
    )
    if stage.users:
        life = (requests.end_s - requests.sent_s)[requests.ok]
        info.settings["settle_s"] = SETTLE_DURATIONS * float(life.mean()) if len(life) else 0.0
        info.schedule = [(*_plateau(requests, stage.users), stage.users)]
    else:
        last = float(requests.start_unix_s.max())
        info.arrivals = ArrivalsInfo(law=stage.name, start_unix_s=info.started_unix_s, end_unix_s=last)
    return info


def _plateau(requests: Requests, users: int) -> tuple[float, float]:
    """From when nine tenths of the users, or of the most that there were, were first in flight to when they
    last were: before that users are being started, after it they stop."""
    at = np.concatenate([requests.start_unix_s + requests.sent_s, requests.end_unix_s])
    step = np.repeat([1, -1], len(requests))
    order = np.lexsort((-step, at))
    held = np.cumsum(step[order])
    full = np.flatnonzero(held >= 0.9 * min(users, held.max()))
    return float(at[order][full[0]]), float(at[order][min(full[-1] + 1, len(at) - 1)])


def _requests(rows: Sequence[ResultRow]) -> Requests:
    conversations: dict[str, int] = {}
    users = [
        conversations.setdefault(row.conversation or f"alone {number}", len(conversations))
        for number, row in enumerate(rows)
    ]
    labels = [(OUTCOME_CODES[row.outcome], user, row.turn) for row, user in zip(rows, users, strict=True)]
    return ordered_requests(
        {name: np.array([getattr(row, name) for row in rows], dtype=np.float64) for name in SCALAR_COLUMNS},
        labels=np.array(labels, dtype=np.int64),
        gap_s=np.array([gap for row in rows for gap in row.gap_s], dtype=np.float32),
        gaps=np.array([len(row.gap_s) for row in rows], dtype=np.int64),
    )


def _of_model(dump: MetricsDump, model: str, warnings: list[str]) -> list[ServerSample]:
    """A server may name its model otherwise than the tool was told, where it has only one."""
    names = dump.models()
    if names and model not in names:
        if len(names) > 1:
            raise InputError(f"{dump.path} is of the models {', '.join(names)}, the results are of {model}.")
        warnings.append(
            f"The server metrics are of {names[0]}: taken to be the model {model} of the results."
        )
    return dump.rows(model)


def _within(
    dump: MetricsDump,
    samples: Sequence[ServerSample],
    requests: Requests,
    stage: LoadStage,
    warnings: list[str],
) -> list[ServerSample]:
    """The scrapes of a stage, and one before and after it; without a count of tokens where that would hold
    the tokens of others, or not all of these."""
    begin, end = float(requests.start_unix_s.min()), float(requests.end_unix_s.max())
    at = np.array([sample.unix_s for sample in samples])
    if not np.any((at >= begin) & (at <= end)):
        raise InputError(
            f"{dump.path} does not belong to {stage.label}: its requests went from {_utc(begin)} to "
            f"{_utc(end)}, the server metrics from {_utc(at.min())} to {_utc(at.max())}."
        )
    first, last = at[at <= begin].max(initial=-np.inf), at[at >= end].min(initial=np.inf)
    kept = [sample for sample in samples if first <= sample.unix_s <= last]
    close = dump.changes_only or max(begin - first, last - end) <= MAX_COUNTER_DISTANCE_S
    if close and not stage.source.whole_seconds:
        return kept
    warnings.append(WHOLE_SECONDS.format(stage.source.tool) if stage.source.whole_seconds else SPARSE_SCRAPES)
    return [msgspec.structs.replace(sample, generation_tokens_total=None) for sample in kept]


def _utc(unix_s: float) -> str:
    return f"{datetime.fromtimestamp(unix_s, UTC):%Y-%m-%d %H:%M:%S} UTC"


def _aligned(rows: list[ResultRow], samples: Sequence[ServerSample]) -> list[ResultRow]:
    """Moved in time, within SEEK_S, to where the requests in flight match those on the server best."""
    server = server_samples_of(samples)
    held = server.running + server.waiting
    starts = np.sort([row.start_unix_s for row in rows])
    ends = np.sort([row.start_unix_s + row.end_s for row in rows])
    near = (server.unix_s >= starts[0] - 2 * MAX_SHIFT_S) & (server.unix_s <= ends[-1] + 2 * MAX_SHIFT_S)
    near &= ~np.isnan(held)
    if not near.any():
        return rows
    at, held = server.unix_s[near], held[near]
    shifts = np.arange(-MAX_SHIFT_S, MAX_SHIFT_S, 0.1)
    off = np.stack([_in_flight(starts, ends, at - shift) - held for shift in shifts])
    most = float(np.max(_in_flight(starts, ends, starts)))
    misses = np.minimum(np.abs(off), max(1.0, 0.1 * most)).mean(
        axis=1
    )  # what ran before or after weighs little
    shift = float(np.median(shifts[misses <= misses.min() + 1e-9]))
    return [
        replace(row, start_unix_s=row.start_unix_s + shift, scheduled_unix_s=row.scheduled_unix_s + shift)
        for row in rows
    ]


def _in_flight(starts: Floats, ends: Floats, at: Floats) -> Floats:
    counted = np.searchsorted(starts, at, side="right") - np.searchsorted(ends, at, side="right")
    return counted.astype(np.float64)
