"""A worker's rows -> the leader's folder, when the two share no disk. A batch is a piece of a file and where
it begins, so that sending one again changes nothing. Knows no Locust and no channel."""

import logging
import re
import time
from pathlib import Path
from typing import TypedDict

logger = logging.getLogger(__name__)

BATCH_BYTES = 256 * 1024
RESEND_S = 5.0
"""Without an answer for so long, a batch is sent again."""
_NAME = re.compile(r"(requests|client)-\d+\.jsonl")


class Batch(TypedDict):
    file: str
    offset: int
    """Where in the file these bytes begin."""
    data: bytes


class Receipt(TypedDict):
    file: str
    size: int
    """Bytes that the leader has, from the front."""


class Shipper:
    """The worker's side of one file that grows. One batch is on its way at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._delivered = 0
        self._sent_at: float | None = None

    @property
    def file(self) -> str:
        return self._path.name

    @property
    def undelivered_bytes(self) -> int:
        try:
            return self._path.stat().st_size - self._delivered
        except OSError:
            return 0

    def next_batch(self) -> Batch | None:
        """What to send now: nothing while a batch is on its way or the leader has everything."""
        now = time.monotonic()
        if self._sent_at is not None and now - self._sent_at < RESEND_S:
            return None
        data = self._read()
        if not data:
            return None
        self._sent_at = now
        return Batch(file=self._path.name, offset=self._delivered, data=data)

    def take(self, receipt: Receipt) -> None:
        """The leader has so much of the file; what comes next begins there."""
        self._delivered = receipt["size"]
        self._sent_at = None

    def _read(self) -> bytes:
        """Whole lines where one fits, so that a reader of the leader's folder rarely sees half of one."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._delivered)
                data = file.read(BATCH_BYTES)
        except OSError:
            return b""
        return data[: data.rfind(b"\n") + 1] or data


class Receiver:
    """The leader's side: appends what continues a file, and says how much of it there is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failing = False

    def take(self, batch: Batch) -> Receipt:
        """Raises ValueError for a name that no worker writes."""
        if not _NAME.fullmatch(batch["file"]):
            raise ValueError(f"'{batch['file']}' is no file of a worker")
        path = self._folder / batch["file"]
        size = path.stat().st_size if path.is_file() else 0
        new = batch["data"][max(0, size - batch["offset"]) :] if batch["offset"] <= size else b""
        return Receipt(file=batch["file"], size=size + self._append(path, new))

    def _append(self, path: Path, data: bytes) -> int:
        if not data:
            return 0
        try:
            with path.open("ab", buffering=0) as file:
                written = file.write(data) or 0
        except OSError as error:
            if not self._failing:
                logger.error("%s cannot be written (%s); the worker keeps its rows.", path, error.strerror)  # noqa: TRY400
            self._failing = True
            return 0
        self._failing = False
        return written
