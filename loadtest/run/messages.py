"""The messages between the processes of one run, as typed structs. Knows neither Locust nor how messages are
sent."""

import msgspec

from loadtest.record import UserClass
from loadtest.run.live.rows import LiveRow
from loadtest.workload.arrivals import WorkerAssignment
from loadtest.workload.prompts import PromptScale


class RunPlan(msgspec.Struct, kw_only=True, frozen=True):
    """Tells every process that runs users, before the first request, what to send and how to measure. Holds
    no secrets."""

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
    cache_salt: str | None = None
    """Text that keeps own prompts apart from those of earlier runs in the server's prefix cache; None if the
    prompts are synthetic, or if the server does not take such a text."""
    classes: list[UserClass]
    """What users ask; one class without a name if there is no workload file."""
    settings: dict[str, object]

    @classmethod
    def read(cls, text: str) -> "RunPlan":
        return msgspec.json.decode(text, type=cls)

    def write(self) -> str:
        return msgspec.json.encode(self).decode()


class CurrentLevel(msgspec.Struct, kw_only=True, frozen=True):
    """Tells the workers the level of all requests that begin from now on."""

    users: int | None
    """Users of the level; None: the requests belong to no level."""


class ArrivalAssignments(msgspec.Struct, kw_only=True, frozen=True):
    """Tells the workers of an open loop which worker sends which arrivals (the requests of the open loop)."""

    start_unix_s: float
    """Unix seconds at which the arrivals begin, by the leader's clock."""
    assignments: list[WorkerAssignment]
    """Assignments in the order of the times from which they hold."""


class StopAsking(msgspec.Struct, frozen=True):
    """Tells the workers to begin no new requests; requests in flight continue."""


class StopMeasuring(msgspec.Struct, frozen=True):
    """Tells the workers to cancel the requests in flight and to deliver every row."""


class WorkerReport(msgspec.Struct, kw_only=True, frozen=True):
    """Tells the leader the state of a worker, once a second and when it changes."""

    run_id: str
    worker: str
    in_flight: int
    arriving: bool
    """Open loop: whether some of the worker's arrivals have not begun."""
    clipped: int
    """Number of drawn lengths so far that were clipped, because they did not fit into the model's context."""
    stopped: bool
    """Whether the leader has all of the worker's rows, and nothing follows."""
    shares_disk: bool
    """Whether the worker writes into the leader's folder itself."""
    sessions_cut: int = 0
    """Number of replayed sessions that ended early, because their history as the server counts it filled the
    model's context."""
    prompts_used: int = 0
    """Number of the person's own prompts that the worker has sent so far."""
    undelivered_bytes: int
    clock_offset_s: float | None
    """Seconds by which the worker's clock is ahead of the leader's; None: not known yet."""
    unix_s: float
    """Unix seconds at which the report was sent, by the worker's clock."""
    lost_rows: int
    """Rows that could not be written and are lost."""
    answering: tuple[float, float] | None
    """Since when and until when the server has surely worked on requests in flight, by the leader's clock."""
    health: tuple[float, float] | None
    """Lag of the event loop in seconds, and share of a CPU core, in the last second; null before that."""
    live: list[LiveRow]
    """Requests that have ended since the last report."""


class PromptNumbersWanted(msgspec.Struct, frozen=True):
    """Asks the leader which of the own prompts this worker sends next."""


class PromptNumbers(msgspec.Struct, kw_only=True, frozen=True):
    """Tells a worker the numbers of the own prompts that it sends next. No other worker gets them."""

    first: int
    count: int


class SessionsWanted(msgspec.Struct, frozen=True):
    """Asks the leader for the next recorded sessions that this worker's users replay."""


class SessionBatch(msgspec.Struct, kw_only=True, frozen=True):
    """Gives a worker sessions to replay. No other worker gets them."""

    sessions: list[bytes]
    """Each a `HandedSession` as MessagePack: Locust's channel would take long for a deep structure."""
    start_unix_s: float | None = None
    """Open loop: Unix seconds from which the sessions are due, by the leader's clock; None in a closed
    loop."""


class WorkerRefused(msgspec.Struct, kw_only=True, frozen=True):
    """Tells the leader that a worker cannot take part."""

    reason: str


class LeaderTime(msgspec.Struct, kw_only=True, frozen=True):
    """Answers a report with the leader's time. Sent only to workers on other machines, after each report."""

    asked_unix_s: float
    """Time at which the worker sent its report: the report's `unix_s`."""
    leader_unix_s: float
    """Unix seconds at which the report came, by the leader's clock."""


class RowBatch(msgspec.Struct, kw_only=True, frozen=True):
    """Brings the leader a piece of a worker's file. The same piece may be sent twice."""

    run_id: str
    file: str
    offset: int
    """Position of the first of these bytes in the file."""
    data: bytes


class RowReceipt(msgspec.Struct, kw_only=True, frozen=True):
    """Answers each RowBatch: says how much of the file the leader has."""

    run_id: str
    file: str
    size: int
    """Bytes that the leader has, from the beginning of the file."""
