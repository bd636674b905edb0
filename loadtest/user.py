"""ChatUser, the base of every scenario's users. Knows neither what is asked nor how it is measured."""

import itertools
import random
from collections.abc import Iterator
from typing import ClassVar

import gevent
from locust import User, events, task
from locust.env import Environment
from locust.exception import StopUser

from loadtest.locust_plugin.levels import LevelShape
from loadtest.locust_plugin.process import LoadTestProcess
from loadtest.locust_plugin.shape import Shape
from loadtest.locust_plugin.statistics import tell_locust
from loadtest.run.generator import Generator
from loadtest.run.open_loop import LOOKAHEAD_S
from loadtest.workload.conversations import ChatRequest, Conversation

USERS_A_WORKER = 1_000_000
"""User numbers of different workers differ: worker index * this + a count."""
MIN_STAGGER_S = 1.0
"""Users start over this time at least, however short the settling time is."""


class ChatUser(User):
    """One person: asks, reads the answer, thinks, asks again. Subclass it in a scenario."""

    abstract = True
    load_test_process: ClassVar[LoadTestProcess]
    scenario: ClassVar[str] = "chat"
    _numbers: ClassVar["itertools.count[int]"] = itertools.count()

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        index = getattr(environment.runner, "worker_index", 0)
        self.number = index * USERS_A_WORKER + next(self._numbers)
        self._conversations = itertools.count()
        self._conversation: Conversation | None = None
        self._requests: Iterator[ChatRequest] = iter(())
        self._waits: random.Random | None = None

    def wait_time(self) -> float:
        """Returns the think time; before the first request a random part of the settling time, because Locust
        starts a whole second's users at once."""
        generator = self.load_test_process.generator
        if generator is None:
            return 0.0
        if generator.settings.open_loop:
            return LOOKAHEAD_S / 4
        if self._waits is None:
            self._waits = random.Random(f"waits/{generator.settings.seed}/{self.number}")
            return self._waits.uniform(0, max(MIN_STAGGER_S, generator.settings.settle_s))
        return generator.think.draw(self._waits)

    @task
    def ask(self) -> None:
        """Sends one turn of the conversation. There is no loop over turns: a stopping user stops between
        two."""
        generator = self.load_test_process.generator
        if generator is None or generator.closing:
            raise StopUser
        if generator.settings.open_loop:
            self._send_what_is_due(generator)
            return
        if self._waits is None:
            return  # straight into the first wait
        request = self._next_request(generator)
        record, text = generator.chat(request, user=self.number)
        assert self._conversation is not None
        self._conversation.answered(
            text, prompt_tokens=record.prompt_tokens, output_tokens=record.output_tokens
        )
        tell_locust(self.environment, record)

    def _send_what_is_due(self, generator: Generator) -> None:
        """Open loop: the one user of a worker hands out all that the worker sends, and waits for no
        answer."""
        for stream in generator.due_soon():
            generator.send_when_due(stream)
            gevent.sleep(0)  # making long prompts must not hold up the others

    def _next_request(self, generator: Generator) -> ChatRequest:
        request = next(self._requests, None)
        if request is None:
            number = next(self._conversations)
            self._conversation = generator.conversation(user=self.number, number=number)
            self._requests = self._conversation.requests()
            request = next(self._requests)
        return request


@events.init.add_listener
def _join_load_test(environment: Environment, **_: object) -> None:
    process = LoadTestProcess(environment)
    ChatUser.load_test_process = process
    if environment.shape_class is None:
        environment.shape_class = LevelShape()
        environment.shape_class.runner = environment.runner
    if process.leader is not None and isinstance(environment.shape_class, Shape):
        environment.shape_class.serve(process.leader, scenario=_scenario_name(environment))


def _scenario_name(environment: Environment) -> str:
    users = [user for user in environment.user_classes if issubclass(user, ChatUser)]
    return users[0].scenario if users else ""
