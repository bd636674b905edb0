"""The files of a run folder. Rows are appended often, so that a killed process loses few of them; `run.json`
is replaced as a whole. Knows nothing of what the rows mean."""

import collections
import contextlib
import datetime
import logging
import os
import re
from pathlib import Path

import msgspec

from loadtest.record import RUN_FILE, ClientSample, RequestRecord, RunInfo, ServerSample, encode_line

logger = logging.getLogger(__name__)

FLUSH_S = 0.25
"""Seconds that rows wait in memory, so that a kill loses at most those of the last second."""


def new_run_id(*, model: str, unix_s: float) -> str:
    """Builds the run folder's name, safe on any file system: `20261124T084500Z-Qwen3-1.7B`."""
    when = datetime.datetime.fromtimestamp(unix_s, tz=datetime.UTC).strftime("%Y%m%dT%H%M%SZ")
    return f"{when}-{re.sub(r'[^A-Za-z0-9._-]+', '-', model).strip('-.') or 'model'}"


def create_run_folder(reports_dir: Path, run_id: str) -> Path:
    """Makes the run folder and returns its path. If a folder of this name exists, a number is added to the
    name. Raises OSError."""
    for attempt in range(1, 100):
        folder = reports_dir / (run_id if attempt == 1 else f"{run_id}-{attempt}")
        try:
            folder.mkdir(parents=True)
        except FileExistsError:
            continue
        return folder
    raise FileExistsError(f"{reports_dir / run_id} exists a hundred times")


def find_run_folder(leaders_folder: str, run_id: str, *, reports_dir: Path) -> tuple[Path, bool]:
    """Returns the folder into which this process writes, and whether it is the leader's folder. If this
    machine sees the leader's folder, that folder is returned. If not, a folder of the same name is made in
    `reports_dir`."""
    shared = Path(leaders_folder)
    try:
        if run_id in (shared / RUN_FILE).read_text("utf-8"):
            return shared, True
    except OSError:
        pass
    own = reports_dir / run_id
    own.mkdir(parents=True, exist_ok=True)
    return own, False


def write_run_info(folder: Path, info: RunInfo) -> None:
    """Replaces `run.json` in one step, so that a reader never sees half of it. Raises OSError."""
    temporary = folder / f".{RUN_FILE}.{os.getpid()}"
    temporary.write_bytes(msgspec.json.format(msgspec.json.encode(info), indent=1) + b"\n")
    temporary.replace(folder / RUN_FILE)


class RowFile:
    """Collects rows and appends them to one file. `append` never blocks and may run on any thread. `flush`
    and `close` may block, and only one thread at a time may call them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._pending: collections.deque[bytes] = collections.deque()
        self._unwritten = b""
        self._failing = False

    def append(self, row: RequestRecord | ServerSample | ClientSample) -> None:
        self._pending.append(encode_line(row))

    @property
    def unwritten_rows(self) -> int:
        return len(self._pending) + self._unwritten.count(b"\n")

    def flush(self) -> None:
        """Appends all waiting rows to the file. Rows that cannot be written (full disk, missing folder) are
        kept for the next call."""
        taken = [self._pending.popleft() for _ in range(len(self._pending))]
        data = self._unwritten + b"".join(taken)
        self._unwritten = data[self._write(data) :] if data else b""

    def close(self) -> int:
        """Writes the waiting rows a last time; makes the folder again if it is missing. Returns the number of
        lost rows."""
        with contextlib.suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        self.flush()
        return self.unwritten_rows

    def _write(self, data: bytes) -> int:
        try:
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                written = os.write(descriptor, data)
            finally:
                os.close(descriptor)
        except OSError as error:
            if not self._failing:
                logger.error(  # noqa: TRY400 (the sentence says it all)
                    "Rows cannot be written to %s (%s); they are kept in memory and tried again.",
                    self.path,
                    error.strerror,
                )
            self._failing = True
            return 0
        self._failing = False
        return written


class WorkerFiles:
    """The two files that one worker writes: its requests and its health. `flush` and `close` may block, and
    only one thread at a time may call them."""

    def __init__(self, folder: Path, worker: str) -> None:
        self.requests = RowFile(folder / f"requests-{worker}.jsonl")
        self.health = RowFile(folder / f"client-{worker}.jsonl")

    @property
    def paths(self) -> list[Path]:
        return [self.requests.path, self.health.path]

    def flush(self) -> None:
        self.requests.flush()
        self.health.flush()

    def close(self) -> int:
        """Writes the waiting rows of both files a last time. Returns the number of lost rows."""
        return self.requests.close() + self.health.close()
