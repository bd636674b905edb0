"""A worker on another machine than the leader: its rows reach the leader's folder, and it learns the leader's
clock. Knows no Locust and not how messages are sent."""

import logging
import math
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from loadtest.run.messages import LeaderTime, RowBatch, RowReceipt

logger = logging.getLogger(__name__)

BATCH_BYTES = 256 * 1024
RESEND_S = 5.0
"""A batch that was not answered for so long is sent again."""
_NAME = re.compile(r"(requests|client)-\d+\.jsonl")


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

    def next_batch(self) -> RowBatch | None:
        """What to send now; None while a batch is on its way, or when the leader has everything."""
        now = time.monotonic()
        if self._sent_at is not None and now - self._sent_at < RESEND_S:
            return None
        data = self._read()
        if not data:
            return None
        self._sent_at = now
        return RowBatch(file=self._path.name, offset=self._delivered, data=data)

    def take(self, receipt: RowReceipt) -> None:
        """Continues behind what the leader has."""
        self._delivered = receipt.size
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


class Delivery:
    """All files of one worker on their way to the leader; none where the two share a disk."""

    def __init__(self, paths: Iterable[Path]) -> None:
        self._shippers = [Shipper(path) for path in paths]

    def next_batches(self) -> Iterator[RowBatch]:
        """Rows that the leader does not have yet and that may be sent now."""
        for shipper in self._shippers:
            if batch := shipper.next_batch():
                yield batch

    def take(self, receipt: RowReceipt) -> None:
        for shipper in self._shippers:
            if shipper.file == receipt.file:
                shipper.take(receipt)

    @property
    def undelivered_bytes(self) -> int:
        """Bytes that are written here and not known to be with the leader."""
        return sum(shipper.undelivered_bytes for shipper in self._shippers)


class Receiver:
    """The leader's side: appends what continues a file, and says how much of it there is."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._failing = False

    def take(self, batch: RowBatch) -> RowReceipt:
        """Appends what is new. Raises ValueError for a name that no worker writes."""
        if not _NAME.fullmatch(batch.file):
            raise ValueError(f"'{batch.file}' is no file of a worker")
        path = self._folder / batch.file
        size = path.stat().st_size if path.is_file() else 0
        new = batch.data[max(0, size - batch.offset) :] if batch.offset <= size else b""
        return RowReceipt(file=batch.file, size=size + self._append(path, new))

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
    """This machine's clock beside the leader's, as the quickest round trip so far tells it."""

    def __init__(self, *, shared: bool) -> None:
        self.offset_s: float | None = 0.0 if shared else None
        """This clock minus the leader's; None: not known yet. Wrong by half of the round trip at most."""
        self._shared = shared
        self._round_trip_s = math.inf

    def take(self, answer: LeaderTime) -> None:
        now = time.time()
        if not self._shared and now - answer.asked_unix_s < self._round_trip_s:
            self._round_trip_s = now - answer.asked_unix_s
            self.offset_s = (answer.asked_unix_s + now) / 2 - answer.leader_unix_s
