"""A service in virtual time: an engine, what lies between it and its clients, and how people chat with it.

Knows no files: `calibrate` makes one from a run, presets make one from a data sheet.
"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.reading.rows import Floats
from loadtest.record import Slo
from loadtest.simulator.figures import EngineConfig, Lack
from loadtest.simulator.requests import Request
from loadtest.simulator.virtual import Arrival, Route, Trace, only, simulate_replicas
from loadtest.workload.arrivals import TRACE_BLOCK_TOKENS

WARM_UP = 0.2  # of the requests: left out of the window
LIVES = 60  # requests of each user, where nothing else says how long to play
ITL_REQUESTS = 2000  # whose every token is looked at
TURN_ROUND_S = 0.001  # of a client that does not think: its next request misses the step that begins
CHAT_BLOCKS = 2**20  # block hashes of one conversation: more than any context has blocks

TRACE_BLOCKS = 2**60  # names of blocks that a trace shares begin here

Turn = tuple[int, int]
"""Prompt tokens, the history included, and output tokens."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Chatting:
    """How people use it."""

    conversations: Sequence[Sequence[Turn]]
    """What to draw from, with repetition."""
    pauses_s: Floats
    """Between an answer's end and the same person's next request; shape (n,), to draw from."""
    shared_prefix_tokens: int = 0
    """What every prompt begins with."""
    answers_cached: bool = True
    """The next turn finds the answer before it in the prefix cache, as the same tokens."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Service:
    """What answers, and to whom. `overhead_s` lies between the engine's tokens and the client's clock; it
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


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What a plateau of users, or an open loop, sees and what the server says meanwhile; nan where nothing
    was. Server figures are means over time and replicas, as scrapes see them."""

    users: int
    requests: int
    in_flight: float
    ttft_p50_s: float
    ttft_p95_s: float
    tpot_p50_s: float
    tpot_p95_s: float
    itl_p50_s: float
    itl_p95_s: float
    output_tok_s: float
    kv_usage: float
    running: float
    waiting: float
    preempted_fraction: float
    """Preemptions for each finished request."""
    blocked_fraction: float
    """Share of time in which a request waits because the pool has no blocks for it."""
    queue_fraction: float
    """Share of time in which a request waits for a seat."""
    prefix_hit_rate: float
    ttft_miss: float
    tpot_miss: float
    """Shares of requests over the objective."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Played:
    """Virtual traffic and the window in which it is steady."""

    service: Service
    users: int
    traces: Sequence[Trace]
    window: tuple[float, float]
    """Seconds."""

    def seen(self, slo: Slo) -> Seen:
        """What the window shows."""
        return _seen(self, slo)


def play(
    service: Service,
    users: int,
    *,
    requests: int | None = None,
    seed: int = 0,
    replicas: int = 1,
    route: Route | None = None,
) -> Played:
    """A plateau of `users` people, who start at random within one pause and one answer.

    Each person has random numbers of their own, so that two plays of one seed have the same people.
    Deterministic by seed.
    """
    crowd = _Crowd(service, users=users, wanted=requests or LIVES * users, seed=seed, replicas=replicas)
    traces = simulate_replicas(
        _replicas(service.engine, replicas, seed), crowd.first(), route=route or only, on_end=crowd.again
    )
    return Played(service=service, users=users, traces=traces, window=crowd.window)


@dataclass(frozen=True, kw_only=True, slots=True)
class Due:
    """One request of an open loop."""

    at_s: float
    prompt_tokens: int
    output_tokens: int
    prefix_blocks: Sequence[int] = ()
    """Of TRACE_BLOCK_TOKENS tokens each; requests with the same first ones have the same first text."""


def play_arrivals(
    service: Service,
    arrivals: Sequence[Due],
    *,
    seed: int = 0,
    replicas: int = 1,
    route: Route | None = None,
) -> Played:
    """An open loop: requests of known lengths at known times. The window is from the first to the last."""
    texts = Texts(service)
    timed = [(one.at_s, texts.due(one, chat)) for chat, one in enumerate(arrivals)]
    traces = simulate_replicas(_replicas(service.engine, replicas, seed), timed, route=route or only)
    ends = (timed[0][0], timed[-1][0]) if timed else (0.0, 0.0)
    return Played(service=service, users=0, traces=traces, window=ends)


def _replicas(engine: EngineConfig, replicas: int, seed: int) -> list[EngineConfig]:
    return [replace(engine, seed=seed * 1000 + place) for place in range(replicas)]


class Texts:
    """Requests whose blocks are named so that equal text has equal names."""

    def __init__(self, service: Service) -> None:
        engine, chatting = service.engine, service.chatting
        self._block = engine.block_size
        self._shared = chatting.shared_prefix_tokens // self._block
        self._cached = engine.enable_prefix_caching
        self._answers = chatting.answers_cached
        self._room = engine.max_model_len

    def request(self, turns: Sequence[Turn], turn: int, chat: int) -> Request:
        prompt, output = turns[turn]
        prompt = min(prompt, self._room - 1)
        output = min(output, self._room - prompt)
        return Request(
            prompt_tokens=prompt,
            output_tokens=output,
            block_hashes=self._hashes(prompt, output, chat, turn) if self._cached else None,
        )

    def due(self, one: Due, chat: int) -> Request:
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


class Person:
    """Asks, reads, thinks, asks again; the same for the same seed and number."""

    def __init__(self, chatting: Chatting, texts: Texts, *, seed: int, number: int) -> None:
        self.random = random.Random(f"{seed}/{number}")
        self.turn = -1
        """Of the last request, within its conversation."""
        self._chatting, self._texts, self._number = chatting, texts, number
        self._chats = 0  # conversations begun
        self._turns: Sequence[Turn] = ()

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


class _Crowd:
    """People who chat until so many requests were sent in all."""

    def __init__(self, service: Service, *, users: int, wanted: int, seed: int, replicas: int = 1) -> None:
        texts = Texts(service)
        self._people = [Person(service.chatting, texts, seed=seed, number=user) for user in range(users)]
        self._overhead_s = service.overhead_at(users / replicas)
        self._sent = 0
        self._ended = 0
        self._wanted = wanted
        self.window = (0.0, 0.0)
        spread_s = float(np.mean(service.chatting.pauses_s)) + _life_s(service, users / replicas)
        self._starts = sorted(person.random.uniform(0.0, spread_s) for person in self._people)

    def first(self) -> Iterator[Arrival]:
        for person, at_s in zip(self._people, self._starts, strict=True):
            yield at_s, self._next(person)

    def again(self, ended: Request, now_s: float) -> Arrival | None:
        self._ended += 1
        if self._ended == int(WARM_UP * self._wanted):
            self.window = (now_s, now_s)
        if self._sent >= self._wanted:
            return None
        person = self._people[ended.user]
        pause_s = self._overhead_s + person.pause_s()
        self.window = (self.window[0], now_s)
        return now_s + pause_s, self._next(person)

    def _next(self, person: Person) -> Request:
        self._sent += 1
        return person.request()


def _life_s(service: Service, users: float) -> float:
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


def half_full(service: Service) -> int:
    """About how many users' requests fill half of the pool, or of the seats: where a search may begin."""
    turns = [turn for turns in service.chatting.conversations[:200] for turn in turns]
    prompt, output = np.mean(np.array(turns, dtype=np.float64), axis=0)
    engine, shared = service.engine, service.chatting.shared_prefix_tokens
    held = max(prompt - shared + output / 2 + engine.block_size / 2, 1.0)
    fit = min((engine.pool_tokens - shared) / held, engine.max_num_seqs) / 2
    life_s = _life_s(service, fit)
    active = life_s / (life_s + float(np.mean(service.chatting.pauses_s)))
    return max(int(fit / active), 1)


def _seen(played: Played, slo: Slo) -> Seen:
    begin_s, end_s = played.window
    overhead_s = played.service.overhead_at(played.users / len(played.traces))
    inside = [
        [one for one in trace.requests if one.end_s is not None and begin_s <= one.end_s <= end_s]
        for trace in played.traces
    ]
    rows = [one for requests in inside for one in requests]
    first = np.array([one.first_token_s for one in rows], dtype=np.float64)
    last = np.array([one.end_s for one in rows], dtype=np.float64)
    arrival = np.array([one.arrival_s for one in rows], dtype=np.float64)
    output = np.array([one.output_tokens for one in rows], dtype=np.float64)
    ttft = first - arrival + overhead_s
    many = output > 1
    tpot = (last - first)[many] / (output[many] - 1)
    gauges = [_gauges(trace, begin_s, end_s) for trace in played.traces]
    usage, running, waiting, blocked, queue = np.mean(np.array(gauges), axis=0)
    itl = _gaps(played.traces, inside)
    window_s = max(end_s - begin_s, 1e-9)
    return Seen(
        users=played.users,
        requests=len(rows),
        in_flight=float(np.sum(last - arrival + overhead_s)) / window_s,
        ttft_p50_s=_quantile(ttft, 0.5),
        ttft_p95_s=_quantile(ttft, 0.95),
        tpot_p50_s=_quantile(tpot, 0.5),
        tpot_p95_s=_quantile(tpot, 0.95),
        itl_p50_s=_quantile(itl, 0.5),
        itl_p95_s=_quantile(itl, 0.95),
        output_tok_s=float(output.sum()) / window_s,
        kv_usage=float(usage),
        running=float(running),
        waiting=float(waiting),
        preempted_fraction=sum(one.preemptions for one in rows) / max(len(rows), 1),
        blocked_fraction=float(blocked),
        queue_fraction=float(queue),
        prefix_hit_rate=_hit_rate(played.service, rows),
        ttft_miss=_share(ttft > slo.ttft_p95_s),
        tpot_miss=_share(tpot > slo.tpot_p95_s),
    )


def _quantile(values: Floats, at: float) -> float:
    return float(np.quantile(values, at)) if len(values) else math.nan


def _share(events: "np.ndarray[tuple[int], np.dtype[np.bool_]]") -> float:
    return float(events.mean()) if len(events) else math.nan


def _gauges(trace: Trace, begin_s: float, end_s: float) -> tuple[float, ...]:
    """Usage, running, waiting, blocked and queue: each step's gauges stand until the next one's."""
    at = np.asarray(trace.step_end_s)
    stands_s = np.diff(np.clip(at, begin_s, end_s), append=end_s)
    weight = np.maximum(stands_s, 0.0)
    if not weight.sum() > 0:
        return (0.0,) * 5
    lacks = np.asarray(trace.lacks)
    columns = (
        np.asarray(trace.used_blocks) / trace.pool_blocks,
        np.asarray(trace.running),
        np.asarray(trace.waiting),
        lacks == Lack.BLOCKS,
        lacks == Lack.SEATS,
    )
    return tuple(float(np.average(column, weights=weight)) for column in columns)


def _gaps(traces: Sequence[Trace], inside: Sequence[Sequence[Request]]) -> Floats:
    """Inter-token latencies of requests spread over the window, seconds, one after the other."""
    found = [
        np.diff(np.asarray(trace.token_times_s(request)))
        for trace, requests in zip(traces, inside, strict=True)
        for request in requests[:: max(len(requests) // ITL_REQUESTS, 1)]
    ]
    return np.concatenate(found) if found else np.empty(0)


def _hit_rate(service: Service, rows: Sequence[Request]) -> float:
    if not rows or not service.engine.enable_prefix_caching:
        return math.nan
    return sum(one.cached_tokens for one in rows) / sum(one.prompt_tokens for one in rows)
