"""What the processes of one run tell each other, as typed structs. Knows neither Locust nor how they are
sent."""

import msgspec

from loadtest.run.live import LiveRow
from loadtest.workload.arrivals import WorkerAssignment
from loadtest.workload.prompts import PromptScale


class RunPlan(msgspec.Struct, kw_only=True, frozen=True):
    """What the leader tells every process that measures, before the first request. Holds no secrets."""

    run_id: str
    folder: str
    """The run folder on the leader's disk."""
    host: str
    """The server's address, without credentials."""
    model: str
    scenario: str
    max_model_len: int | None
    scale: PromptScale
    nonce: str
    settings: dict[str, object]

    @classmethod
    def read(cls, text: str) -> "RunPlan":
        return msgspec.json.decode(text, type=cls)

    def write(self) -> str:
        return msgspec.json.encode(self).decode()


class CurrentLevel(msgspec.Struct, kw_only=True, frozen=True):
    """Leader to workers: requests that begin from now on belong to this level."""

    users: int | None
    """None: they belong to no level."""


class ArrivalAssignments(msgspec.Struct, kw_only=True, frozen=True):
    """Leader to workers, open loop: who sends which arrivals."""

    start_unix_s: float
    """When the arrivals begin, by the leader's clock."""
    assignments: list[WorkerAssignment]
    """In the order of their times."""


class StopAsking(msgspec.Struct, frozen=True):
    """Leader to workers: begin no more requests; those in flight go on."""


class StopMeasuring(msgspec.Struct, frozen=True):
    """Leader to workers: cancel what is in flight and deliver every row."""


class WorkerReport(msgspec.Struct, kw_only=True, frozen=True):
    """Worker to leader, once a second and when its state changes."""

    worker: str
    in_flight: int
    arriving: bool
    """Open loop: some of its arrivals have not begun."""
    clipped: int
    """Drawn lengths that did not fit into the model's context, so far."""
    stopped: bool
    """The leader has all of its rows, and nothing follows."""
    shares_disk: bool
    """It writes into the leader's folder itself."""
    undelivered_bytes: int
    clock_offset_s: float | None
    """Worker clock minus leader clock; None: not known yet."""
    unix_s: float
    """When it was sent, by the worker's clock."""
    live: list[LiveRow]
    """Requests that ended since the last report."""


class WorkerRefused(msgspec.Struct, kw_only=True, frozen=True):
    """Worker to leader: it cannot take part."""

    reason: str


class LeaderTime(msgspec.Struct, kw_only=True, frozen=True):
    """Leader to a worker on another machine, in answer to each report."""

    asked_unix_s: float
    """The report's `unix_s`."""
    leader_unix_s: float
    """When the report came, by the leader's clock."""


class RowBatch(msgspec.Struct, kw_only=True, frozen=True):
    """Worker to leader: a piece of a file. Sending one again changes nothing."""

    file: str
    offset: int
    """Where in the file these bytes begin."""
    data: bytes


class RowReceipt(msgspec.Struct, kw_only=True, frozen=True):
    """Leader to worker, in answer to each batch."""

    file: str
    size: int
    """Bytes that the leader has, from the front."""
