"""Brings the rows of workers on other machines into the leader's folder, and estimates the difference between
their clocks and the leader's. Knows neither Locust nor how messages are sent."""

import logging
import math
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from loadtest.clock import unix_now
from loadtest.run.messages import LeaderTime, RowBatch, RowReceipt

logger = logging.getLogger(__name__)

BATCH_BYTES = 256 * 1024
"""Most bytes of a file in one message."""
RESEND_S = 5.0
"""Seconds without an answer after which a batch is sent again."""
_NAME = re.compile(r"(requests|client)-\d+\.jsonl")


class Shipper:
    """Cuts one growing file of a worker into batches. At most one batch is on its way at a time."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._run_id = path.parent.name
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

    def next_batch(self) -> RowBatch | None:
        """Returns the batch to send now. None while an earlier batch has no receipt, or if the leader has all
        bytes."""
        now = time.monotonic()
        if self._sent_at is not None and now - self._sent_at < RESEND_S:
            return None
        data = self._read()
        if not data:
            return None
        self._sent_at = now
        return RowBatch(run_id=self._run_id, file=self._path.name, offset=self._delivered, data=data)

    def take(self, receipt: RowReceipt) -> None:
        """Notes how many bytes the leader has; the next batch begins there."""
        self._delivered = receipt.size
        self._sent_at = None

    def _read(self) -> bytes:
        """Reads the next bytes to send. Stops at the end of a line if possible, so that readers of the
        leader's folder rarely see half a line."""
        try:
            with self._path.open("rb") as file:
                file.seek(self._delivered)
                data = file.read(BATCH_BYTES)
        except OSError:
            return b""
        return data[: data.rfind(b"\n") + 1] or data


class Delivery:
    """Sends all files of one worker to the leader. There are no files to send if the worker writes into the
    leader's folder itself."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._shippers = [Shipper(path) for path in paths]

    def next_batches(self) -> Iterator[RowBatch]:
        """Yields the batches to send now, at most one for each file."""
        for shipper in self._shippers:
            if batch := shipper.next_batch():
                yield batch

    def take(self, receipt: RowReceipt) -> None:
        for shipper in self._shippers:
            if shipper.file == receipt.file:
                shipper.take(receipt)

    @property
    def undelivered_bytes(self) -> int:
        """Number of bytes written on this machine that the leader has not confirmed."""
        return sum(shipper.undelivered_bytes for shipper in self._shippers)


class Receiver:
    """Appends the batches of the workers to the files of the same names in the leader's folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failing = False

    def take(self, batch: RowBatch) -> RowReceipt:
        """Appends those bytes of a batch that the file does not have yet, and returns a receipt with the
        file's size. Raises ValueError if no worker writes a file of this name."""
        if not _NAME.fullmatch(batch.file):
            raise ValueError(f"'{batch.file}' is no file of a worker")
        path = self._folder / batch.file
        size = path.stat().st_size if path.is_file() else 0
        new = batch.data[max(0, size - batch.offset) :] if batch.offset <= size else b""
        return RowReceipt(run_id=batch.run_id, file=batch.file, size=size + self._append(path, new))

    def _append(self, path: Path, data: bytes) -> int:
        if not data:
            return 0
        try:
            with path.open("ab", buffering=0) as file:
                written = file.write(data) or 0
        except OSError as error:
            if not self._failing:
                logger.error(  # noqa: TRY400 (the sentence says it all)
                    "%s cannot be written (%s); the worker keeps its rows and sends them again.",
                    path,
                    error.strerror,
                )
            self._failing = True
            return 0
        self._failing = False
        return written


class LeaderClock:
    """Estimates the difference between this machine's clock and the leader's. Uses the quickest round trip so
    far. shared: whether both processes use the same clock."""

    def __init__(self, *, shared: bool) -> None:
        self.offset_s: float | None = 0.0 if shared else None
        """Seconds by which this clock is ahead of the leader's; None: not known yet. Off by half of the round
        trip at most."""
        self._shared = shared
        self._round_trip_s = math.inf

    def take(self, answer: LeaderTime) -> None:
        now = unix_now()
        if not self._shared and now - answer.asked_unix_s < self._round_trip_s:
            self._round_trip_s = now - answer.asked_unix_s
            self.offset_s = (answer.asked_unix_s + now) / 2 - answer.leader_unix_s
