"""The users of a simulated service: what they send, and when.

Knows no clock of its own: the simulation says when a request has ended.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice

import numpy as np

from analysis.statistics.arrays import Floats
from analysis.virtual.service import Service, TurnTokens, typical_duration_s
from loadtest.simulator.engine.requests import Request, RequestState
from loadtest.simulator.virtual import TimedRequest
from loadtest.workload.classes import mix_order
from loadtest.workload.pauses import ErrorPauses
from loadtest.workload.traces import TRACE_BLOCK_TOKENS

WARM_UP_SHARE = 0.2  # share of the requests that end before the window begins
CONVERSATION_HASHES = 2**20  # block hashes reserved for a conversation: more than a context has blocks
MOST_SHARED_TEXTS = 2**20  # texts that the conversations of one class may begin with, at most
TRACE_HASHES = 2**60  # lowest hash of the blocks that a trace names


@dataclass(frozen=True, kw_only=True, slots=True)
class DueRequest:
    """One request of an open loop: when it is sent, and its lengths."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: Sequence[int] = ()
    """Names of the prompt's first blocks of TRACE_BLOCK_TOKENS tokens; equal names mean equal text."""
    kind: int = 0
    """Position of the class of users that the request is of."""
    text: int = 0
    """Number of the shared text that it begins with."""

    @classmethod
    def drawn(cls, service: Service, at_s: float, rng: random.Random) -> "DueRequest":
        """Draws the first request of a conversation. In a mix, weights are shares of the requests."""
        classes, kind, text = service.chatting.classes, 0, 0
        if classes:
            (kind,) = rng.choices(range(len(classes)), [one.weight for one in classes])
        chatting = service.chatting.kinds[kind]
        prompt, output = rng.choice(chatting.conversations)[0]
        if len(chatting.shared_texts) > 1:
            (text,) = rng.choices(range(len(chatting.shared_texts)), chatting.shared_texts)
        return cls(at_s=at_s, prompt_tokens=prompt, output_tokens=output, kind=kind, text=text)


class RequestMaker:
    """Builds the requests of a class of users for the simulated engine. Blocks of equal text get equal
    hashes."""

    def __init__(self, service: Service, kind: int = 0) -> None:
        """kind: position of the class in `ChatBehaviour.kinds`."""
        engine, chatting = service.engine, service.chatting.kinds[kind]
        self._kind = kind
        self._block = engine.block_size
        self._shared = chatting.shared_prefix_tokens // self._block
        self._cached = engine.enable_prefix_caching
        self._answers = chatting.answers_cached
        self._context = engine.max_model_len

    def request(self, turns: Sequence[TurnTokens], turn: int, conversation: int, *, text: int = 0) -> Request:
        """Builds the request of one turn of a conversation, shortened to fit the context.

        text: number of the shared text that the conversation begins with.
        """
        prompt, output = turns[turn]
        prompt = min(prompt, self._context - 1)
        output = min(output, self._context - prompt)
        return Request(
            prompt_tokens=prompt,
            output_tokens=output,
            block_hashes=self._hashes(prompt, output, conversation, turn, text) if self._cached else None,
        )

    def due_request(self, due: DueRequest, conversation: int) -> Request:
        """Builds a request of an open loop.

        The hashes of its first blocks follow from the names in the trace, so that requests with equal names
        share these blocks in the prefix cache.
        """
        lengths = ((due.prompt_tokens, due.output_tokens),)
        request = self.request(lengths, 0, conversation, text=due.text)
        request.user = conversation
        if due.prefix_blocks and self._cached:
            shared = min(due.prompt_tokens, len(due.prefix_blocks) * TRACE_BLOCK_TOKENS) // self._block
            named = [
                TRACE_HASHES + due.prefix_blocks[block * self._block // TRACE_BLOCK_TOKENS] * 2**14 + block
                for block in range(shared)
            ]
            request.block_hashes = [*named, *request.block_hashes[shared:]]
        return request

    def _hashes(
        self, prompt: int, output: int, conversation: int, turn: int, shared_text: int
    ) -> Sequence[int]:
        own = (conversation + 1) * CONVERSATION_HASHES
        blocks = (prompt + output) // self._block
        text = range(own, own + (blocks if self._answers else prompt // self._block))
        common = -(self._kind * MOST_SHARED_TEXTS + shared_text) * CONVERSATION_HASHES
        shared = range(common, common + min(self._shared, blocks))
        named = text if not self._shared else [*shared, *text[self._shared :]]
        if len(named) == blocks:
            return named
        once = own + CONVERSATION_HASHES // 2 + turn * 2**12  # the answer, when no later turn repeats it
        return [*named, *range(once, once + blocks - len(named))]


class VirtualUser:
    """A user who sends a request, waits for the answer, pauses and sends the next request.

    A failed turn ends the conversation, and the user pauses longer. Users with equal `seed` and `number`
    behave equally.
    """

    def __init__(
        self, service: Service, requests: RequestMaker, *, seed: int, number: int, kind: int
    ) -> None:
        """requests: builds the requests of the user's class. kind: position of this class."""
        self.kind = kind
        self.random = random.Random(f"{seed}/{number}")
        self.turn = -1
        """Position of the last request in its conversation."""
        self._chatting, self._requests, self._number = service.chatting.kinds[kind], requests, number
        self._gateway = service.gateway
        self._errors = ErrorPauses(service.chatting.error_pause_s)
        self._conversations = 0  # number of conversations begun so far
        self._turns: Sequence[TurnTokens] = ()
        self._tool_follows: Sequence[bool] = ()
        self._text = 0

    @property
    def step(self) -> int:
        """Number of the last request in its turn: 0 for what the person asked."""
        step = 0
        while step < self.turn and self._tool_follows and self._tool_follows[self.turn - 1 - step]:
            step += 1
        return step

    def pause_s(self, ended: Request) -> float:
        """Returns a random pause: the seconds from the end of this request to the next one.

        A pause because the request failed is added, and noted in the request.
        """
        pauses_s, tool_pauses_s = self._chatting.pauses_s, self._chatting.tool_pauses_s
        if tool_pauses_s is not None and self._tool_follows and self._tool_follows[self.turn]:
            pauses_s = tool_pauses_s
        pause_s = float(self.random.choice(pauses_s))
        if ended.state is RequestState.FINISHED:
            self._errors.succeeded()
            return pause_s
        told_s = self._gateway.retry_after_s if self._gateway and ended.refused_with == 429 else None
        ended.pause_s = self._errors.failed(told_s)
        self._turns = self._tool_follows = ()
        return pause_s + ended.pause_s

    def request(self) -> Request:
        """Returns the request of the next turn, or of the first turn of a new conversation."""
        self.turn += 1
        if self.turn >= len(self._turns):
            self._begin_conversation()
        conversation = self._number * 2**24 + self._conversations
        request = self._requests.request(self._turns, self.turn, conversation, text=self._text)
        request.user = self._number
        return request

    def _begin_conversation(self) -> None:
        chatting, self.turn = self._chatting, 0
        chosen = self.random.randrange(len(chatting.conversations))
        self._turns = chatting.conversations[chosen]
        self._tool_follows = chatting.tool_follows[chosen] if chatting.tool_follows is not None else ()
        self._conversations += 1
        if (texts := len(chatting.shared_texts)) > 1:
            (self._text,) = self.random.choices(range(texts), chatting.shared_texts)


def virtual_users(service: Service, *, seed: int) -> Iterator[VirtualUser]:
    """Yields the users of a service, without end, each of the class that it has in the load test."""
    makers = [RequestMaker(service, kind) for kind in range(len(service.chatting.kinds))]
    for number, kind in enumerate(mix_order([one.weight for one in service.chatting.classes] or [1.0])):
        yield VirtualUser(service, makers[kind], seed=seed, number=number, kind=kind)


def _first_starts_s(users: Sequence[VirtualUser], cycles_s: Floats) -> Iterator[float]:
    """Draws when each user sends the first request, seconds, as if all had been there for long.

    At a random instant a user is more often in a long cycle of pause and request than in a short one, and
    anywhere in it. If all began within the mean cycle instead, those with short pauses would come again while
    others come for the first time: far too many at once. cycles_s: cycles that users draw from, shape (n,).
    """
    if np.ptp(cycles_s) == 0:
        yield from (user.random.uniform(0.0, float(cycles_s[0])) for user in users)
        return
    upto_s = np.cumsum(cycles_s)
    for user in users:
        at_s = user.random.uniform(0.0, float(upto_s[-1]))
        yield float(upto_s[np.searchsorted(upto_s, at_s)]) - at_s


class Crowd:
    """Users who chat until they have sent `wanted` requests in total."""

    def __init__(
        self,
        service: Service,
        *,
        users: int,
        wanted: int,
        seed: int,
        replicas: int = 1,
        together: bool = False,
    ) -> None:
        """together: whether all users send their first requests at once."""
        self._users = list(islice(virtual_users(service, seed=seed), users))
        self._overhead_s = service.overhead_at(users / replicas)
        self._sent = 0
        self._ended = 0
        self._wanted = wanted
        self.window = (0.0, 0.0)
        """Begin and end of the steady window, virtual seconds: after the warm-up, until requests run out."""
        self._starts = (
            [(0.0, user) for user in self._users]
            if together
            else sorted(self._drawn_starts(service, users / replicas), key=lambda start: start[0])
        )

    @property
    def kinds(self) -> list[int]:
        """Position of each user's class."""
        return [user.kind for user in self._users]

    def first_requests(self) -> Iterator[TimedRequest]:
        """Yields the first request of each user with its start time, in the order of these times."""
        for at_s, user in self._starts:
            yield at_s, self._next(user)

    def _drawn_starts(self, service: Service, users_of_replica: float) -> Iterator[tuple[float, VirtualUser]]:
        for kind, chatting in enumerate(service.chatting.kinds):
            users = [user for user in self._users if user.kind == kind]
            alone = replace(service, chatting=chatting)
            cycles_s = chatting.pauses_s + typical_duration_s(alone, users_of_replica)
            yield from zip(sorted(_first_starts_s(users, cycles_s)), users, strict=True)

    def next_request(self, ended: Request, now_s: float) -> TimedRequest | None:
        """Returns the next request of the user whose request has ended, with the time to send it.

        None if all users together have sent `wanted` requests.
        """
        self._ended += 1
        if self._ended == int(WARM_UP_SHARE * self._wanted):
            self.window = (now_s, now_s)
        if self._sent >= self._wanted:
            return None
        user = self._users[ended.user]
        pause_s = self._overhead_s + user.pause_s(ended)
        self.window = (self.window[0], now_s)
        return now_s + pause_s, self._next(user)

    def _next(self, user: VirtualUser) -> Request:
        self._sent += 1
        return user.request()
