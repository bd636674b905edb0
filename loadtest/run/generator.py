"""One process's measuring: its session, its rows, its own health. Runs requests for users and writes a row
for each. Knows no Locust."""

import asyncio
import contextlib
import itertools
import logging
import math
import resource
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import aiohttp

from loadtest.client.body import chat_body
from loadtest.client.stream import StreamRequest, stream_chat
from loadtest.client.target import Target, make_target
from loadtest.client.transport import open_session
from loadtest.record import RUN_FILE, RequestRecord
from loadtest.run.health import HealthWatch
from loadtest.run.live import LiveRow, live_row
from loadtest.run.loop import LoopThread
from loadtest.run.plan import Plan, planned_arrivals
from loadtest.run.shipping import Batch, Receipt, Shipper
from loadtest.run.sink import FLUSH_S, RowFile
from loadtest.settings import Settings, settings_from_shared
from loadtest.workload.arrivals import WorkerAssignment, is_assigned
from loadtest.workload.conversations import ChatRequest, Conversation, Workload
from loadtest.workload.distributions import Distribution
from loadtest.workload.prompts import read_prompts

logger = logging.getLogger(__name__)


LOOKAHEAD_S = 2.0
"""Open loop: a request's body is made and handed to the loop this long before it is due."""
UVLOOP_TICK_S = 0.001
"""uvloop's timers round to milliseconds; one more keeps requests from being early."""


class Generator:
    """Measures on behalf of one process. Methods are for greenlets of the main thread."""

    def __init__(self, plan: Plan, *, worker: str, loop: LoopThread, host: str) -> None:
        """`host` is the plan's, with this process's own credentials. Raises InputError."""
        self.plan = plan
        self.worker = worker
        self.settings: Settings = settings_from_shared(plan.settings)
        self.workload = _workload(plan, self.settings)
        self.think = Distribution.parse(self.settings.think_s)
        self.level_users: int | None = None
        self.closing = False
        self.clipped = 0
        self._arrivals = planned_arrivals(self.settings)
        self._next_arrival = next(self._arrivals, None)
        self._arrivals_start_unix_s = 0.0
        self._shares: list[WorkerAssignment] = []
        self._not_due = 0
        self._target: Target = make_target(host, self.settings)
        self._loop = loop
        self.folder, self.shares_disk = _folder(plan, self.settings)
        self.clock_offset_s: float | None = 0.0 if self.shares_disk else None
        self._rows = RowFile(self.folder / f"requests-{worker}.jsonl")
        self._health = HealthWatch(RowFile(self.folder / f"client-{worker}.jsonl"))
        self._tasks: set[asyncio.Task[object]] = set()
        self._live: list[LiveRow] = []
        self._ended: list[RequestRecord] = []
        self._requests = itertools.count()
        self._shippers = (
            [] if self.shares_disk else [Shipper(self._rows.path), Shipper(self._health.rows.path)]
        )
        self._round_trip_s = math.inf
        self._session: aiohttp.ClientSession = loop.run(self._open())
        self._flusher = loop.every(FLUSH_S, self._flush)

    def conversation(self, *, user: int, number: int) -> Conversation:
        return self.workload.conversation(user=user, number=number)

    def chat(self, request: ChatRequest, *, user: int) -> tuple[RequestRecord, str]:
        """Sends one request and waits for its end; the row is safe even if the caller is killed."""
        stream = self._stream(request, user=user, keep_text=self.settings.turns > 1)
        return self._loop.run(self._measure(stream))

    # ---- on another machine than the leader ----

    def next_batches(self) -> Iterator[Batch]:
        """Rows that the leader does not have yet and that may be sent now."""
        for shipper in self._shippers:
            if batch := shipper.next_batch():
                yield batch

    def take_receipt(self, receipt: Receipt) -> None:
        for shipper in self._shippers:
            if shipper.file == receipt["file"]:
                shipper.take(receipt)

    @property
    def undelivered_bytes(self) -> int:
        """Written here and not known to be with the leader."""
        return sum(shipper.undelivered_bytes for shipper in self._shippers)

    def take_leader_clock(self, *, asked_unix_s: float, leader_unix_s: float) -> None:
        """The leader's answer to a question about its clock. The quickest round trip tells best: the offset
        is off by at most half of it."""
        now = time.time()
        if not self.shares_disk and now - asked_unix_s < self._round_trip_s:
            self._round_trip_s = now - asked_unix_s
            self.clock_offset_s = (asked_unix_s + now) / 2 - leader_unix_s

    # ---- open loop ----

    def share_arrivals(self, *, start_unix_s: float, shares: list[WorkerAssignment]) -> None:
        """Who sends which arrivals, and when the first one's clock starts (the leader's clock)."""
        self._arrivals_start_unix_s = start_unix_s
        self._shares = shares

    @property
    def arriving(self) -> bool:
        """Whether arrivals of the plan are still to come."""
        return self._next_arrival is not None or self._not_due > 0

    def due_soon(self) -> Iterator[StreamRequest]:
        """This worker's requests that are due within the lookahead and were not yet handed out."""
        while self._shares and (arrival := self._next_arrival) is not None:
            if self.clock_offset_s is None:
                return
            due_unix_s = self._arrivals_start_unix_s + arrival.due_s + self.clock_offset_s
            if due_unix_s > time.time() + LOOKAHEAD_S:
                return
            self._next_arrival = next(self._arrivals, None)
            if is_assigned(arrival, self.worker, self._shares):
                request = self.workload.request_at(arrival)
                yield self._stream(request, user=arrival.number, scheduled_unix_s=due_unix_s)

    def send_when_due(self, stream: StreamRequest) -> None:
        """Begins the request at its time, on the loop, whatever the others are doing."""
        self._not_due += 1
        self._loop.call_soon(lambda: self._await_due(stream))

    def _await_due(self, stream: StreamRequest) -> None:
        assert stream.scheduled_unix_s is not None
        loop = asyncio.get_running_loop()
        wait_s = stream.scheduled_unix_s - time.time()
        loop.call_later(max(0.0, wait_s) + UVLOOP_TICK_S, self._begin, stream)

    def _begin(self, stream: StreamRequest) -> None:
        self._not_due -= 1
        if not self.closing:
            task = asyncio.get_running_loop().create_task(self._measure_alone(stream))
            self._tasks.add(task)

    async def _measure_alone(self, stream: StreamRequest) -> None:
        record, _ = await self._measure(stream)
        self._ended.append(record)

    def take_ended(self) -> list[RequestRecord]:
        """Open loop: what ended since the last call."""
        taken, self._ended = self._ended, []
        return taken

    def _stream(
        self,
        request: ChatRequest,
        *,
        user: int,
        scheduled_unix_s: float | None = None,
        keep_text: bool = False,
    ) -> StreamRequest:
        self.clipped += request.clipped
        body = chat_body(
            self.settings, model=self.plan.model, messages=request.messages, max_tokens=request.max_tokens
        )
        return StreamRequest(
            url=f"{self._target.api_url}/chat/completions",
            body=body,
            request_id=f"{self.plan.nonce}-{self.worker}-{next(self._requests)}-{uuid.uuid4().hex[:8]}",
            model=self.plan.model,
            scenario=self.plan.scenario,
            worker=self.worker,
            user=user,
            turn=request.turn,
            level_users=self.level_users,
            max_tokens=request.max_tokens,
            timeout_s=self.settings.request_timeout_s,
            scheduled_unix_s=scheduled_unix_s,
            keep_text=keep_text,
        )

    @property
    def in_flight(self) -> int:
        return self._health.in_flight

    @property
    def ended(self) -> int:
        return self._health.ended

    @property
    def undelivered(self) -> int:
        """Requests without a row on the disk yet."""
        return self._health.in_flight + self._rows.unwritten_rows

    def take_live(self) -> list[LiveRow]:
        """What ended since the last call, by the leader's clock."""
        taken, self._live = self._live, []
        offset_s = self.clock_offset_s or 0.0
        return [row._replace(end_unix_s=row.end_unix_s - offset_s) for row in taken]

    def cancel_all(self) -> None:
        """Ends what is in flight, as `cancelled`, and lets no new request begin."""
        self.closing = True
        self._loop.call_soon(self._cancel_tasks)

    def stop(self) -> None:
        """Cancels what is in flight, writes every row and closes the session."""
        self.closing = True
        self._loop.run(self._close())
        self._flusher.stop()
        if lost := self._rows.close() + self._health.rows.close():
            logger.error("%d rows of worker %s could not be written and are lost.", lost, self.worker)

    async def _open(self) -> aiohttp.ClientSession:
        _allow_many_connections()
        self._health.begin()
        return open_session(headers=self._target.headers, tls=self._target.tls())

    async def _measure(self, stream: StreamRequest) -> tuple[RequestRecord, str]:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self._health.started += 1
        try:
            record, text, cancelled = await stream_chat(self._session, stream)
            self._rows.append(record)
            self._live.append(live_row(record))
            self._health.note_delay(record)
        finally:
            self._health.ended += 1
            self._tasks.discard(task)
        if cancelled is not None and not self.closing:
            raise cancelled
        return record, text

    def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def _close(self) -> None:
        self._cancel_tasks()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        self._health.end()
        await self._session.close()

    def _flush(self) -> None:
        self._rows.flush()
        self._health.rows.flush()


def _workload(plan: Plan, settings: Settings) -> Workload:
    return Workload(
        prompt_tokens=Distribution.parse(settings.prompt_tokens),
        output_tokens=Distribution.parse(settings.output_tokens),
        turns=settings.turns,
        max_model_len=plan.max_model_len,
        scale=plan.scale,
        seed=settings.seed,
        nonce=plan.nonce,
        prompts=read_prompts(settings.prompts) if settings.prompts else None,
    )


def _folder(plan: Plan, settings: Settings) -> tuple[Path, bool]:
    """The leader's folder where this machine sees it, else one of the same name here; and which."""
    shared = Path(plan.folder)
    try:
        if plan.run_id in (shared / RUN_FILE).read_text("utf-8"):
            return shared, True
    except OSError:
        pass
    own = settings.reports_dir / plan.run_id
    own.mkdir(parents=True, exist_ok=True)
    return own, False


def _allow_many_connections() -> None:
    """One open file a stream: as many as the system allows this process (Locust asks for 10,000)."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS refuses an unlimited number
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
