"""ChatUser, the base class of the users in every scenario. Knows neither what is asked nor how it is
measured."""

import itertools
import random
from collections.abc import Iterator
from pathlib import Path
from typing import ClassVar

import gevent
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser

from loadtest.clock import unix_now
from loadtest.locust_plugin.levels import LevelShape
from loadtest.locust_plugin.process import LoadTestProcess
from loadtest.locust_plugin.shape import Shape
from loadtest.locust_plugin.statistics import tell_locust
from loadtest.record import Outcome, RequestRecord
from loadtest.run.generator import Generator
from loadtest.run.open_loop import LOOKAHEAD_S
from loadtest.run.sessions.playing import lateness_s
from loadtest.workload.classes import ClassPlan
from loadtest.workload.conversations import ChatRequest, Conversation
from loadtest.workload.pauses import ErrorPauses
from loadtest.workload.sessions.replay import SessionReplay

USERS_A_WORKER = 1_000_000
"""User numbers reserved for each worker: those of worker i begin at i times this."""
MIN_STAGGER_S = 1.0
"""Shortest time, in seconds, over which the first requests of users are spread who hardly think."""


class ChatUser(User):
    """Acts as one person, who asks, waits for the answer, thinks and asks again. Scenarios define
    subclasses."""

    abstract = True
    load_test_process: ClassVar[LoadTestProcess]
    scenario: ClassVar[str] = "chat"
    workload: ClassVar[Path | None] = None
    """The workload file of this locustfile; `--workload` names another."""
    class_name: ClassVar[str | None] = None
    """Name of the user's class in the workload file. The load test sets it; None without a file."""
    _numbers: ClassVar["itertools.count[int]"] = itertools.count()

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        index = getattr(environment.runner, "worker_index", 0)
        self.number = index * USERS_A_WORKER + next(self._numbers)
        self._plan: ClassPlan | None = None
        self._conversations = itertools.count()
        self._conversation: Conversation | SessionReplay | None = None
        self._due_unix_s: float | None = None
        self._requests: Iterator[ChatRequest] = iter(())
        self._waits: random.Random | None = None
        self._has_waited = False
        self._pauses: ErrorPauses | None = None
        self._pause_s = 0.0

    def wait_time(self) -> float:
        """Returns the seconds until Locust calls `ask` again.

        - open loop: a short fixed interval,
        - closed loop, before the first request: what remains of a think time at a random instant, as if the
          user had been there for long; or a random time up to the settling time or 1 s where that is longer
          than people think, because Locust starts all users of one second at once, and users who begin
          together and think equally long would ask together again and again,
        - closed loop, later: the think time, or the time that a tool works if the turn has further steps;
          and before it the pause if the last request has failed;
        - recorded sessions, later: the recorded pause before the next turn, and none before a new session.
        """
        generator = self.load_test_process.generator
        if generator is None:
            return 0.0
        if generator.settings.open_loop:
            return LOOKAHEAD_S / 4
        plan = self._class_plan(generator)
        if self._waits is None:
            self._waits = random.Random(f"waits/{generator.settings.seed}/{self.number}")
            stagger_s = max(MIN_STAGGER_S, generator.settings.settle_s)
            if plan.think_s.mean > stagger_s:
                return plan.think_s.draw_remaining(self._waits)
            return self._waits.uniform(0, stagger_s)
        pause_s, self._pause_s = self._pause_s, 0.0
        if generator.replays_sessions:
            pause_s += self._conversation.pause_s if isinstance(self._conversation, SessionReplay) else 0.0
            self._due_unix_s = unix_now() + pause_s
            return pause_s
        in_turn = isinstance(self._conversation, Conversation) and self._conversation.in_turn
        return pause_s + (plan.tool_s if in_turn else plan.think_s).draw(self._waits)

    @task
    def ask(self) -> None:
        """Sends one turn of the conversation and waits for the answer. Locust calls this for each turn, so a
        user can stop between two turns. In an open loop, sends the requests that are due instead."""
        generator = self.load_test_process.generator
        if generator is None or generator.closing:
            raise StopUser
        if generator.settings.open_loop:
            self._send_what_is_due(generator)
            return
        if not self._has_waited:
            self._has_waited = True
            return  # the first wait comes before the first request
        if self._pauses is None:
            self._pauses = ErrorPauses(generator.settings.error_pause_s)
        if not self._is_in_session() and not generator.has_prompt():
            return
        request = self._next_request(generator)
        if request is None:
            return
        due_unix_s, self._due_unix_s = self._due_unix_s, None
        late_s = None if due_unix_s is None or request.turn == 0 else lateness_s(due_unix_s)
        record, text = generator.chat(request, user=self.number, pauses=self._pauses, late_s=late_s)
        self._pause_s = record.pause_s or 0.0
        self._go_on(record, text)
        tell_locust(self.environment, record)

    def _go_on(self, record: RequestRecord, text: str) -> None:
        """Gives the answer to the conversation. Ends the conversation if the request has failed, because
        there is no answer that a next question could follow."""
        assert self._conversation is not None
        if record.outcome is Outcome.OK:
            self._conversation.answered(
                text,
                prompt_tokens=record.prompt_tokens,
                output_tokens=record.output_tokens,
                chunks=len(record.chunk_s),
            )
        elif isinstance(self._conversation, SessionReplay) and record.outcome is not Outcome.CANCELLED:
            self._conversation.failed()
        else:
            self._requests, self._conversation = iter(()), None

    def _is_in_session(self) -> bool:
        """Whether the user replays a recorded session that has a further turn."""
        return isinstance(self._conversation, SessionReplay) and self._conversation.following is not None

    def _send_what_is_due(self, generator: Generator) -> None:
        """Hands over the requests that this worker has to send soon, and does not wait for their answers.
        Used only in an open loop. There each worker has a single user, which hands over all requests of the
        worker."""
        generator.begin_due_sessions()
        for stream in generator.due_soon():
            generator.send_when_due(stream)
            gevent.sleep(0)  # lets others run between two prompts, which may be long to make

    def _class_plan(self, generator: Generator) -> ClassPlan:
        if self._plan is None:
            self._plan = generator.class_plan(self.class_name)
        return self._plan

    def _next_request(self, generator: Generator) -> ChatRequest | None:
        """Returns the user's next request; None if the context has just cut a recorded session, and the next
        one is to be awaited."""
        was_in_session = self._is_in_session()
        request = next(self._requests, None)
        if request is None and was_in_session:
            generator.count_cut_session()
        elif request is None:
            self._conversation = self._next_conversation(generator)
            self._requests = self._conversation.requests()
            request = next(self._requests)
        return request

    def _next_conversation(self, generator: Generator) -> Conversation | SessionReplay:
        if generator.replays_sessions:
            return generator.next_session()
        number = next(self._conversations)
        return generator.conversation(self._class_plan(generator), user=self.number, number=number)


@events.init.add_listener
def _join_load_test(environment: Environment, **_: object) -> None:
    users = [user for user in environment.user_classes if issubclass(user, ChatUser)]
    process = LoadTestProcess(environment, workload=users[0].workload if users else None)
    ChatUser.load_test_process = process
    if environment.shape_class is None:
        environment.shape_class = LevelShape()
        environment.shape_class.runner = environment.runner
    if process.leader is not None and isinstance(environment.shape_class, Shape):
        environment.shape_class.serve(process.leader, scenario=users[0].scenario if users else "")
