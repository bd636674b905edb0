"""The users of a simulated service: what they send, and when.

Knows no clock of its own: the simulation says when a request has ended.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from analysis.statistics.arrays import Floats
from analysis.virtual.service import Service, TurnTokens, typical_duration_s
from loadtest.simulator.engine.requests import Request, RequestState
from loadtest.simulator.virtual import TimedRequest
from loadtest.workload.pauses import ErrorPauses
from loadtest.workload.traces import TRACE_BLOCK_TOKENS

WARM_UP_SHARE = 0.2  # share of the requests that end before the window begins
CONVERSATION_HASHES = 2**20  # block hashes reserved for a conversation: more than a context has blocks
TRACE_HASHES = 2**60  # lowest hash of the blocks that a trace names


@dataclass(frozen=True, kw_only=True, slots=True)
class DueRequest:
    """One request of an open loop: when it is sent, and its lengths."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: Sequence[int] = ()
    """Names of the prompt's first blocks of TRACE_BLOCK_TOKENS tokens; equal names mean equal text."""


class RequestMaker:
    """Builds requests for the simulated engine. Blocks of equal text get equal hashes."""

    def __init__(self, service: Service) -> None:
        engine, chatting = service.engine, service.chatting
        self._block = engine.block_size
        self._shared = chatting.shared_prefix_tokens // self._block
        self._cached = engine.enable_prefix_caching
        self._answers = chatting.answers_cached
        self._context = engine.max_model_len

    def request(self, turns: Sequence[TurnTokens], turn: int, conversation: int) -> Request:
        """Builds the request of one turn of a conversation, shortened to fit the context."""
        prompt, output = turns[turn]
        prompt = min(prompt, self._context - 1)
        output = min(output, self._context - prompt)
        return Request(
            prompt_tokens=prompt,
            output_tokens=output,
            block_hashes=self._hashes(prompt, output, conversation, turn) if self._cached else None,
        )

    def due_request(self, due: DueRequest, conversation: int) -> Request:
        """Builds a request of an open loop.

        The hashes of its first blocks follow from the names in the trace, so that requests with equal names
        share these blocks in the prefix cache.
        """
        request = self.request(((due.prompt_tokens, due.output_tokens),), 0, conversation)
        if due.prefix_blocks and self._cached:
            shared = min(due.prompt_tokens, len(due.prefix_blocks) * TRACE_BLOCK_TOKENS) // self._block
            named = [
                TRACE_HASHES + due.prefix_blocks[block * self._block // TRACE_BLOCK_TOKENS] * 2**14 + block
                for block in range(shared)
            ]
            request.block_hashes = [*named, *request.block_hashes[shared:]]
        return request

    def _hashes(self, prompt: int, output: int, conversation: int, turn: int) -> Sequence[int]:
        own = (conversation + 1) * CONVERSATION_HASHES
        blocks = (prompt + output) // self._block
        text = range(own, own + (blocks if self._answers else prompt // self._block))
        named = text if not self._shared else [*range(min(self._shared, blocks)), *text[self._shared :]]
        if len(named) == blocks:
            return named
        once = own + CONVERSATION_HASHES // 2 + turn * 2**12  # the answer, when no later turn repeats it
        return [*named, *range(once, once + blocks - len(named))]


class VirtualUser:
    """A user who sends a request, waits for the answer, pauses and sends the next request.

    A failed turn ends the conversation, and the user pauses longer. Users with equal `seed` and `number`
    behave equally.
    """

    def __init__(self, service: Service, requests: RequestMaker, *, seed: int, number: int) -> None:
        self.random = random.Random(f"{seed}/{number}")
        self.turn = -1
        """Position of the last request in its conversation."""
        self._chatting, self._requests, self._number = service.chatting, requests, number
        self._gateway = service.gateway
        self._errors = ErrorPauses(service.chatting.error_pause_s)
        self._conversations = 0  # number of conversations begun so far
        self._turns: Sequence[TurnTokens] = ()

    def pause_s(self, ended: Request) -> float:
        """Returns a random pause: the seconds from the end of this request to the next one.

        A pause because the request failed is added, and noted in the request.
        """
        pause_s = float(self.random.choice(self._chatting.pauses_s))
        if ended.state is RequestState.FINISHED:
            self._errors.succeeded()
            return pause_s
        told_s = self._gateway.retry_after_s if self._gateway and ended.refused_with == 429 else None
        ended.pause_s = self._errors.failed(told_s)
        self._turns = ()
        return pause_s + ended.pause_s

    def request(self) -> Request:
        """Returns the request of the next turn, or of the first turn of a new conversation."""
        self.turn += 1
        if self.turn >= len(self._turns):
            self._turns, self.turn = self.random.choice(self._chatting.conversations), 0
            self._conversations += 1
        conversation = self._number * 2**24 + self._conversations
        request = self._requests.request(self._turns, self.turn, conversation)
        request.user = self._number
        return request


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
        requests = RequestMaker(service)
        self._users = [VirtualUser(service, requests, seed=seed, number=user) for user in range(users)]
        self._overhead_s = service.overhead_at(users / replicas)
        self._sent = 0
        self._ended = 0
        self._wanted = wanted
        self.window = (0.0, 0.0)
        """Begin and end of the steady window, virtual seconds: after the warm-up, until requests run out."""
        cycles_s = service.chatting.pauses_s + typical_duration_s(service, users / replicas)
        self._starts = [0.0] * users if together else sorted(_first_starts_s(self._users, cycles_s))

    def first_requests(self) -> Iterator[TimedRequest]:
        """Yields the first request of each user with its start time, in the order of these times."""
        for user, at_s in zip(self._users, self._starts, strict=True):
            yield at_s, self._next(user)

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
