"""Finds run folders, and reads a run into memory, even a run that was killed."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from analysis.reading.columns import ClientSamples, Requests, ServerSamples
from analysis.reading.json_lines import (
    other_schema,
    read_client,
    read_requests,
    read_server,
    schema_of,
)
from loadtest.errors import InputError
from loadtest.record import (
    CLIENT_GLOB,
    REQUESTS_GLOB,
    RUN_FILE,
    RUN_SCHEMA,
    SERVER_FILE,
    RunInfo,
)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunFolder:
    """A run folder whose rows are not read yet."""

    path: Path
    info: RunInfo


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Run:
    """One run in memory."""

    info: RunInfo
    requests: Requests
    server: ServerSamples
    client: ClientSamples
    warnings: list[str] = field(default_factory=list)


FoundRun = RunFolder | Run
"""A run folder that is still to be read, or a run that was read from another tool's file."""


def has_runs(folder: Path) -> bool:
    """Whether this is a run folder or has run folders in it."""
    return (folder / RUN_FILE).is_file() or any(folder.glob(f"*/{RUN_FILE}"))


def find_runs(folder: Path) -> list[RunFolder]:
    """Returns the run in this folder, or the runs in its subfolders, oldest first.

    Raises InputError when there is no run, or when a run is of another schema.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: name a run folder, or the folder that holds the runs.")
    if (folder / RUN_FILE).is_file():
        return [RunFolder(path=folder, info=_read_info(folder / RUN_FILE))]
    folders = [
        RunFolder(path=path.parent, info=_read_info(path)) for path in sorted(folder.glob(f"*/{RUN_FILE}"))
    ]
    if not folders:
        raise InputError(
            f"{folder} holds no run (no {RUN_FILE}): run a load test first, or name another folder."
        )
    return sorted(folders, key=lambda run: run.info.started_unix_s)


def read_run(folder: RunFolder, *, on_bytes: Callable[[int], None] = lambda _: None) -> Run:
    """Reads the run in this folder.

    on_bytes: called with the number of bytes that were read since its last call, for a progress bar. Raises
    InputError when a row does not fit the schema.
    """
    warnings = list(folder.info.warnings)
    offsets = {worker.name: worker.clock_offset_s or 0.0 for worker in folder.info.workers}
    requests = read_requests(sorted(folder.path.glob(REQUESTS_GLOB)), offsets, warnings, on_bytes)
    if folder.info.ended_unix_s is None:
        warnings.append(f"{folder.info.run_id} has no end: it is still running, or it was killed.")
    server = read_server(folder.path / SERVER_FILE, folder.info.settings.get("metrics_url"), warnings)
    return Run(
        info=folder.info,
        requests=requests,
        server=server,
        client=read_client(sorted(folder.path.glob(CLIENT_GLOB)), warnings),
        warnings=warnings,
    )


def run_bytes(folder: RunFolder) -> int:
    """Returns the size of a run's request files in bytes, for a progress bar."""
    return sum(path.stat().st_size for path in folder.path.glob(REQUESTS_GLOB))


def _read_info(path: Path) -> RunInfo:
    data = path.read_bytes()
    try:
        schema = schema_of(data)
        info = msgspec.json.decode(data, type=RunInfo) if schema == RUN_SCHEMA else None
    except msgspec.DecodeError as problem:
        raise InputError(
            f"{path} cannot be read ({problem}): remove that folder or restore the file."
        ) from None
    if info is None:
        raise InputError(other_schema(path, schema))
    return info
