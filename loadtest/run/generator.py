"""The load generator of one process: sends its users' requests, waits for the answers and builds the reports
for the leader. Knows no Locust."""

import collections
import itertools
import logging
import uuid
from collections.abc import Callable, Iterator, Mapping
from typing import TypeVar

from loadtest.client.body import encode_chat_body
from loadtest.client.stream import StreamRequest
from loadtest.client.target import Target, make_target
from loadtest.clock import unix_now
from loadtest.record import RequestRecord
from loadtest.run.live.rows import LiveRow
from loadtest.run.loop import LoopThread
from loadtest.run.messages import PromptNumbers, RunPlan, SessionBatch, WorkerReport
from loadtest.run.open_loop import DueArrivals, PunctualStarts, planned_arrivals
from loadtest.run.prompt_supply import PromptSupply
from loadtest.run.request_runner import open_request_runner
from loadtest.run.sessions.playing import OpenSessions, SessionSupply
from loadtest.run.shipping import Delivery, LeaderClock
from loadtest.run.sink import FLUSH_S, WorkerFiles, find_run_folder
from loadtest.settings import Settings, settings_from_shared
from loadtest.workload.classes import ClassPlan
from loadtest.workload.conversations import ChatRequest, Conversation, Workload
from loadtest.workload.own_prompts import OwnPrompts, PromptQueue
from loadtest.workload.pauses import ErrorPauses
from loadtest.workload.prompts import read_prompts
from loadtest.workload.sessions.replay import HandedSession, SessionReplay

logger = logging.getLogger(__name__)

_T = TypeVar("_T")


class Generator:
    """Sends and measures the requests of one process. Three threads take part:

    - the main thread: greenlets on it call the methods of this class;
    - the event loop's thread: requests run on it (`RequestRunner`);
    - a third thread: it writes the rows.
    """

    def __init__(
        self,
        plan: RunPlan,
        *,
        worker: str,
        loop: LoopThread,
        host: str,
        private: Mapping[str, object],
        ask_for_prompts: Callable[[], None],
        ask_for_sessions: Callable[[], None],
    ) -> None:
        """Opens the files and the session with the server. Raises InputError.

        host: the server's address from the plan, with this process's own credentials.
        private: this process's own options that hold secrets.
        ask_for_prompts: asks the leader for numbers of own prompts, which then come to `take_prompts`.
        ask_for_sessions: asks it for recorded sessions, which then come to `take_sessions`.
        """
        self.plan = plan
        self.worker = worker
        self.settings: Settings = settings_from_shared(plan.settings, private)
        self.level_users: int | None = None
        """Users of the level that new requests belong to; None if they belong to no level."""
        self._workload = _workload(plan, self.settings)
        own = self._workload.prompts
        self._prompts = None if own is None else PromptSupply(PromptQueue(own), ask=ask_for_prompts)
        self._sessions = SessionSupply(replay=self._replay, ask=ask_for_sessions)
        self._open_sessions = OpenSessions(
            replay=self._replay,
            send=self._send_turn,
            speed=self.settings.trace_speed,
            recorded_times=self.settings.session_times == "recorded",
        )
        self._sessions_cut = 0
        arrivals = planned_arrivals(self.settings)
        self._target: Target = make_target(host, self.settings)
        self.folder, self._shares_disk = find_run_folder(
            plan.folder, plan.run_id, reports_dir=self.settings.reports_dir
        )
        self._files = WorkerFiles(self.folder, worker)
        self.clock = LeaderClock(shared=self._shares_disk)
        self.delivery = Delivery([] if self._shares_disk else self._files.paths)
        self.arrivals = DueArrivals(arrivals, worker=worker, clock=self.clock)
        self._loop = loop
        self._request_runner = loop.run(open_request_runner(self._target, self._files))
        self._starts = PunctualStarts(self._request_runner)
        self._handed_over = 0
        self._numbers = itertools.count()
        self._clipped = 0
        self._lost_rows = 0
        self._flusher = loop.every(FLUSH_S, self._files.flush)

    @property
    def closing(self) -> bool:
        """True if no new request may begin."""
        return self._request_runner.closing

    def class_plan(self, name: str | None) -> ClassPlan:
        """Returns the class of users with this name; None: the only one."""
        return self._workload.plan(name)

    def conversation(self, plan: ClassPlan, *, user: int, number: int) -> Conversation:
        queue = None if self._prompts is None else self._prompts.queue
        return self._workload.conversation(user=user, number=number, plan=plan, prompts=queue)

    def next_session(self) -> SessionReplay:
        """Returns the recorded session that a user replays next. `has_prompt` must have returned True."""
        return self._sessions.next()

    @property
    def replays_sessions(self) -> bool:
        return self.settings.sessions is not None

    def has_prompt(self) -> bool:
        """Waits until the next request can be built, which is at once unless the leader must first say which
        of the own prompts, or of the recorded sessions, is next. Returns False if the run ends meanwhile."""
        if self.replays_sessions:
            return self._sessions.wait(lambda: self.closing)
        return self._prompts is None or self._prompts.wait(lambda: self.closing)

    def take_prompts(self, numbers: PromptNumbers) -> None:
        if self._prompts is not None:
            self._prompts.take(numbers)

    def take_sessions(self, batch: SessionBatch) -> None:
        if batch.start_unix_s is None:
            self._sessions.take(batch.sessions)
        else:
            self._open_sessions.take(batch.sessions, start_unix_s=batch.start_unix_s)

    def count_cut_session(self) -> None:
        """Counts a recorded session of a user that the model's context has cut."""
        self._sessions_cut += 1

    def chat(
        self, request: ChatRequest, *, user: int, pauses: ErrorPauses, late_s: float | None = None
    ) -> tuple[RequestRecord, str]:
        """Sends one request and waits for its end. Returns its row and the text of its answer; the text is
        empty if no later request needs it. The row is kept even if the calling greenlet is killed, and says
        how long the user pauses if the request failed (`pauses`). late_s: seconds by which a turn of a
        recorded session is late."""
        stream = self._stream(request, user=user, late_s=late_s)
        return self._loop.run(self._request_runner.measure(stream, pauses))

    def due_soon(self) -> Iterator[StreamRequest]:
        """Open loop: yields this worker's requests that are due soon, each one once."""
        for arrival, due_unix_s in self.arrivals.due_soon():
            request = self._workload.request_at(arrival)
            yield self._stream(request, user=arrival.number, scheduled_unix_s=due_unix_s)

    def begin_due_sessions(self) -> None:
        """Open loop: begins to play the recorded sessions that are due soon."""
        if self.clock.offset_s is not None:
            self._open_sessions.begin_due(clock_offset_s=self.clock.offset_s)

    def _send_turn(
        self, request: ChatRequest, replay: SessionReplay, due_unix_s: float, late_s: float | None
    ) -> tuple[RequestRecord, str] | None:
        """Open loop: sends a turn of a recorded session when it is due, and waits for its end."""
        if self.closing:
            return None
        user = replay.handed.number
        stream = self._stream(request, user=user, scheduled_unix_s=due_unix_s, late_s=late_s)
        found = self._loop.run(self._starts.measure_when_due(stream))
        if found is not None:
            self._request_runner.unattended.append(found[0])
        return found

    def _replay(self, handed: HandedSession) -> SessionReplay:
        server_history = self.settings.session_history == "server"
        return SessionReplay(handed, workload=self._workload, server_history=server_history)

    def send_when_due(self, stream: StreamRequest) -> None:
        """Open loop: hands a request to the event loop, which begins it when it is due."""
        self._handed_over += 1
        self._loop.call_soon(lambda: self._starts.begin_when_due(stream))

    def report(self, *, stopped: bool = False) -> WorkerReport:
        """Builds this worker's report to the leader, which is sent once a second."""
        return WorkerReport(
            run_id=self.plan.run_id,
            worker=self.worker,
            in_flight=self._request_runner.in_flight,
            arriving=self.arrivals.left
            or self._open_sessions.active
            or self._handed_over > self._starts.begun,
            clipped=self._clipped,
            sessions_cut=self._sessions_cut + self._open_sessions.cut,
            prompts_used=0 if self._prompts is None else self._prompts.queue.used + self._handed_over,
            stopped=stopped,
            shares_disk=self._shares_disk,
            undelivered_bytes=self.delivery.undelivered_bytes,
            clock_offset_s=self.clock.offset_s,
            unix_s=unix_now(),
            lost_rows=self._lost_rows,
            answering=self._answering(),
            health=self._last_second(),
            live=self._take_live(),
        )

    def _answering(self) -> tuple[float, float] | None:
        offset_s, span = self.clock.offset_s or 0.0, self._request_runner.answering()
        return None if span is None else (span[0] - offset_s, span[1] - offset_s)

    def _last_second(self) -> tuple[float, float] | None:
        sample = self._request_runner.last_second
        return None if sample is None else (sample.loop_lag_p99_s or sample.loop_lag_max_s, sample.cpu)

    def take_unattended(self) -> list[RequestRecord]:
        """Open loop: returns the rows of requests that have ended since the last call."""
        return _taken(self._request_runner.unattended)

    def stop_asking(self) -> None:
        """Lets no new request begin; requests in flight continue."""
        self._request_runner.closing = True

    def stop(self) -> None:
        """Cancels the requests in flight, writes every row and closes the session."""
        self._request_runner.closing = True
        self._open_sessions.stop()
        self._loop.run(self._request_runner.close())
        self._flusher.stop()
        self._lost_rows = self._files.close()
        if self._lost_rows:
            logger.error(
                "%d rows of worker %s could not be written and are lost.", self._lost_rows, self.worker
            )

    def _take_live(self) -> list[LiveRow]:
        offset_s = self.clock.offset_s or 0.0
        return [row.moved(-offset_s) for row in _taken(self._request_runner.live)]

    def _stream(
        self,
        request: ChatRequest,
        *,
        user: int,
        scheduled_unix_s: float | None = None,
        late_s: float | None = None,
    ) -> StreamRequest:
        self._clipped += request.clipped
        body = encode_chat_body(
            self.settings,
            model=self.plan.model,
            messages=request.messages,
            max_tokens=request.max_tokens,
            cache_salt=_salt(self.plan.cache_salt, request.round),
            user_class=request.plan.user_class,
        )
        return StreamRequest(
            url=f"{self._target.api_url}/chat/completions",
            body=body,
            request_id=f"{self.plan.nonce}-{self.worker}-{next(self._numbers)}-{uuid.uuid4().hex[:8]}",
            model=self.plan.model,
            scenario=self.plan.scenario,
            worker=self.worker,
            user=user,
            user_class=request.plan.name,
            turn=request.turn,
            step=request.step,
            level_users=self.level_users,
            max_tokens=request.max_tokens,
            timeout_s=self.settings.request_timeout_s,
            scheduled_unix_s=scheduled_unix_s,
            session=request.session,
            late_s=late_s,
            recorded=request.recorded,
            keep_text=request.keep_text,
        )


def _taken(queue: "collections.deque[_T]") -> list[_T]:
    """Empties a deque to which another thread appends, and returns the removed items."""
    return [queue.popleft() for _ in range(len(queue))]


def _salt(salt: str | None, round_: int) -> str | None:
    """Returns the text that keeps prompts apart in the prefix cache: another one each time that the same
    sessions are sent again."""
    return f"{salt}-{round_}" if salt is not None and round_ else salt


def _workload(plan: RunPlan, settings: Settings) -> Workload:
    return Workload(
        plans=[ClassPlan.of(each) for each in plan.classes],
        max_model_len=plan.max_model_len,
        scale=plan.scale,
        seed=settings.seed,
        nonce=plan.nonce,
        prompts=OwnPrompts(read_prompts(settings.prompts), seed=settings.seed) if settings.prompts else None,
    )
