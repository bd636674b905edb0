"""TODO."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.statistics.arrays import Floats
from loadtest.simulator.config import EngineConfig
from loadtest.simulator.requests import Request
from loadtest.simulator.virtual import TimedRequest
from loadtest.workload.traces import TRACE_BLOCK_TOKENS

WARM_UP_SHARE = 0.2  # of the requests: left out of the window


@dataclass(frozen=True, kw_only=True, slots=True)
class DueRequest:
    """One request of an open loop."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: Sequence[int] = ()
    """Of TRACE_BLOCK_TOKENS tokens each; requests with the same first ones have the same first text."""


CLIENT_TURNAROUND_S = 0.001  # of a client that does not think: its next request misses the step that begins
CHAT_BLOCKS = 2**20  # block hashes of one conversation: more than any context has blocks

TRACE_BLOCKS = 2**60  # names of blocks that a trace shares begin here

TurnTokens = tuple[int, int]
"""Prompt tokens, the history included, and output tokens."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Chatting:
    """How people use it."""

    conversations: Sequence[Sequence[TurnTokens]]
    """What to draw from, with repetition."""
    pauses_s: Floats
    """Between an answer's end and the same person's next request; shape (n,), to draw from."""
    shared_prefix_tokens: int = 0
    """What every prompt begins with."""
    answers_cached: bool = True
    """The next turn finds the answer before it in the prefix cache, as the same tokens."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Service:
    """What answers, and to whom. `overhead_s` lies between the engine's tokens and the client's window; it
    grows by `overhead_per_user_s` with each user of a replica."""

    engine: EngineConfig
    chatting: Chatting
    overhead_s: float = 0.0
    overhead_per_user_s: float = 0.0

    def overhead_at(self, users: float) -> float:
        """Seconds, of so many users a replica."""
        return self.overhead_s + self.overhead_per_user_s * users

    def with_engine(self, **changes: object) -> "Service":
        """The same with another engine. Raises ValueError for one that vLLM would not start."""
        return replace(self, engine=replace(self.engine, **changes))  # type: ignore[arg-type]


def replicas_of(engine: EngineConfig, replicas: int, seed: int) -> list[EngineConfig]:
    return [replace(engine, seed=seed * 1000 + place) for place in range(replicas)]


class RequestMaker:
    """Requests whose blocks are named so that equal text has equal names."""

    def __init__(self, service: Service) -> None:
        engine, chatting = service.engine, service.chatting
        self._block = engine.block_size
        self._shared = chatting.shared_prefix_tokens // self._block
        self._cached = engine.enable_prefix_caching
        self._answers = chatting.answers_cached
        self._room = engine.max_model_len

    def request(self, turns: Sequence[TurnTokens], turn: int, chat: int) -> Request:
        prompt, output = turns[turn]
        prompt = min(prompt, self._room - 1)
        output = min(output, self._room - prompt)
        return Request(
            prompt_tokens=prompt,
            output_tokens=output,
            block_hashes=self._hashes(prompt, output, chat, turn) if self._cached else None,
        )

    def due(self, one: DueRequest, chat: int) -> Request:
        """A request of its own but for the blocks that its trace names."""
        request = self.request(((one.prompt_tokens, one.output_tokens),), 0, chat)
        if one.prefix_blocks and self._cached:
            shared = min(one.prompt_tokens, len(one.prefix_blocks) * TRACE_BLOCK_TOKENS) // self._block
            named = [
                TRACE_BLOCKS + one.prefix_blocks[place * self._block // TRACE_BLOCK_TOKENS] * 2**14 + place
                for place in range(shared)
            ]
            request.block_hashes = [*named, *request.block_hashes[shared:]]
        return request

    def _hashes(self, prompt: int, output: int, chat: int, turn: int) -> Sequence[int]:
        own = (chat + 1) * CHAT_BLOCKS
        blocks = (prompt + output) // self._block
        text = range(own, own + (blocks if self._answers else prompt // self._block))
        named = text if not self._shared else [*range(min(self._shared, blocks)), *text[self._shared :]]
        if len(named) == blocks:
            return named
        once = own + CHAT_BLOCKS // 2 + turn * 2**12  # an answer whose tokens nobody sees again
        return [*named, *range(once, once + blocks - len(named))]


class VirtualUser:
    """Asks, reads, thinks, asks again; the same for the same seed and number."""

    def __init__(self, chatting: Chatting, texts: RequestMaker, *, seed: int, number: int) -> None:
        self.random = random.Random(f"{seed}/{number}")
        self.turn = -1
        """Of the last request, within its conversation."""
        self._chatting, self._texts, self._number = chatting, texts, number
        self._chats = 0  # conversations begun
        self._turns: Sequence[TurnTokens] = ()

    def pause_s(self) -> float:
        """From an answer's end to the next request."""
        return float(self.random.choice(self._chatting.pauses_s))

    def request(self) -> Request:
        """The next turn, of a new conversation where the last one is over."""
        self.turn += 1
        if self.turn >= len(self._turns):
            self._turns, self.turn = self.random.choice(self._chatting.conversations), 0
            self._chats += 1
        request = self._texts.request(self._turns, self.turn, self._number * 2**24 + self._chats)
        request.user = self._number
        return request


class Crowd:
    """People who chat until so many requests were sent in all."""

    def __init__(self, service: Service, *, users: int, wanted: int, seed: int, replicas: int = 1) -> None:
        texts = RequestMaker(service)
        self._people = [VirtualUser(service.chatting, texts, seed=seed, number=user) for user in range(users)]
        self._overhead_s = service.overhead_at(users / replicas)
        self._sent = 0
        self._ended = 0
        self._wanted = wanted
        self.window = (0.0, 0.0)
        spread_s = float(np.mean(service.chatting.pauses_s)) + typical_duration_s(service, users / replicas)
        self._starts = sorted(person.random.uniform(0.0, spread_s) for person in self._people)

    def first(self) -> Iterator[TimedRequest]:
        for person, at_s in zip(self._people, self._starts, strict=True):
            yield at_s, self._next(person)

    def again(self, ended: Request, now_s: float) -> TimedRequest | None:
        self._ended += 1
        if self._ended == int(WARM_UP_SHARE * self._wanted):
            self.window = (now_s, now_s)
        if self._sent >= self._wanted:
            return None
        person = self._people[ended.user]
        pause_s = self._overhead_s + person.pause_s()
        self.window = (self.window[0], now_s)
        return now_s + pause_s, self._next(person)

    def _next(self, person: VirtualUser) -> Request:
        self._sent += 1
        return person.request()


def typical_duration_s(service: Service, users: float) -> float:
    """About how long an answer takes with so many users: only to spread their starts."""
    turns = [turn for turns in service.chatting.conversations[:200] for turn in turns]
    prompt, output = np.mean(np.array(turns, dtype=np.float64), axis=0)
    engine = service.engine
    sequences = min(users, engine.max_num_seqs)
    step_s = engine.step_base_s + sequences * (
        engine.step_per_seq_s
        + engine.step_per_kv_token_s * (prompt + output / 2)
        + engine.prefill_per_token_s * prompt / output
    )
    return float(output * step_s)


def users_at_half_load(service: Service) -> int:
    """About how many users' requests fill half of the pool, or of the slots: where a search may begin."""
    turns = [turn for turns in service.chatting.conversations[:200] for turn in turns]
    prompt, output = np.mean(np.array(turns, dtype=np.float64), axis=0)
    engine, shared = service.engine, service.chatting.shared_prefix_tokens
    held = max(prompt - shared + output / 2 + engine.block_size / 2, 1.0)
    fit = min((engine.pool_tokens - shared) / held, engine.max_num_seqs) / 2
    life_s = typical_duration_s(service, fit)
    active = life_s / (life_s + float(np.mean(service.chatting.pauses_s)))
    return max(int(fit / active), 1)
