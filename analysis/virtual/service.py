"""A service to simulate: its engine, the delay between engine and client, and how people chat with it.

Reads no files. The twin (a simulated copy of a measured server) builds a service from a run or a preset;
benchmarks build one from stated numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import msgspec
import numpy as np

from analysis.statistics.arrays import Floats, Ints
from loadtest.record import Slo
from loadtest.simulator.engine.config import EngineConfig
from loadtest.simulator.gateway import GatewayLimits

CLIENT_TURNAROUND_S = 0.001  # seconds from an answer to the next request of a client that does not think

TurnTokens = tuple[int, int]
"""Tokens of one turn: the prompt with its history, and the output."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChatBehaviour:
    """How people use a service: what they send, and how long they pause between requests."""

    conversations: Sequence[Sequence[TurnTokens]]
    """Conversations that users draw from, with repetition."""
    pauses_s: Floats
    """Pauses that users draw from: seconds from an answer's end to the next request. Shape (n,)."""
    shared_prefix_tokens: int = 0
    """Length of the text that every prompt begins with, tokens."""
    shared_texts: Sequence[float] = (1.0,)
    """Popularity of the different texts of this length; each conversation begins with one of them."""
    tool_follows: Sequence[Sequence[bool]] | None = None
    """For each request of each conversation, whether a tool works after it and nobody thinks; None: never."""
    tool_pauses_s: Floats | None = None
    """Seconds that a tool takes, to draw from. Shape (k,)."""
    answers_cached: bool = True
    """Whether the next turn repeats the tokens of the answer, so that the prefix cache can hold them."""
    error_pause_s: float = 1.0
    """First pause after a failed request, as the load test's setting of this name."""
    classes: "Sequence[ChattingClass]" = ()
    """The classes of users of a mix; empty if all users chat alike. What else is said here then describes the
    requests of all classes together."""

    @property
    def kinds(self) -> "Sequence[ChatBehaviour]":
        """How each class chats; only this behaviour if there are no classes."""
        return [one.chatting for one in self.classes] or [self]

    def objectives(self, slo: Slo) -> Sequence[Slo]:
        """Returns the objectives of each of `kinds`, from those of the run."""
        return [one.objectives(slo) for one in self.classes] or [slo]

    def resampled(self, rng: np.random.Generator) -> "ChatBehaviour":
        """Returns the behaviour with as many of its conversations, drawn with repetition (a bootstrap)."""
        if self.classes:
            return mixed([replace(one, chatting=one.chatting.resampled(rng)) for one in self.classes])
        chosen = rng.integers(0, len(self.conversations), len(self.conversations)).tolist()
        follows = self.tool_follows
        return replace(
            self,
            conversations=[self.conversations[position] for position in chosen],
            tool_follows=None if follows is None else [follows[position] for position in chosen],
        )


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChattingClass:
    """A class of users of a mix: how many there are, how they chat, and what is good enough for them."""

    name: str
    weight: float
    """Share of the users, relative to the other classes."""
    chatting: ChatBehaviour
    ttft_x: float = 1.0
    """The class's objective for TTFT, divided by that of the run."""
    tpot_x: float = 1.0
    stall_x: float = 1.0
    """The same for stalls; infinite if the class has no objective for them."""

    def objectives(self, slo: Slo) -> Slo:
        """Returns the objectives of the class, from those of the run."""
        stall_s = None if slo.stall_p95_s is None else self.stall_x * slo.stall_p95_s
        return msgspec.structs.replace(
            slo,
            ttft_p95_s=self.ttft_x * slo.ttft_p95_s,
            tpot_p95_s=self.tpot_x * slo.tpot_p95_s,
            stall_p95_s=stall_s,
        )


def worst_p95_s(values_s: Floats, kind: Ints, *, own_s: Sequence[float], run_s: float) -> float:
    """Returns the 95th percentile of a time, in proportion to the objective of the run: in a mix that of the
    class that is nearest to its own objective, or farthest beyond it. nan without values.

    kind: position of the class of each value, shape (n,). own_s, run_s: objectives of each class and of the
    run, seconds.
    """
    if not len(values_s):
        return math.nan
    found = [
        float(np.quantile(mine, 0.95)) * run_s / limit_s
        for position, limit_s in enumerate(own_s)
        if len(mine := values_s[kind == position])
    ]
    return max(found)


MIXED_CONVERSATIONS, MIXED_PAUSES = 600, 2000
"""Number of conversations and of pauses that describe a mix as a whole."""


def mixed(classes: Sequence[ChattingClass]) -> ChatBehaviour:
    """Returns the behaviour of a mix of classes.

    Its own conversations and pauses are those of the classes, in proportion to their weights, evenly chosen.
    They serve for estimates without a simulation: users of a simulation chat as their class does.
    """
    total = sum(one.weight for one in classes)
    conversations: list[Sequence[TurnTokens]] = []
    pauses_s = []
    for one in classes:
        share, chatting = one.weight / total, one.chatting
        chosen = _evenly(len(chatting.conversations), max(round(share * MIXED_CONVERSATIONS), 1))
        conversations += [chatting.conversations[position] for position in chosen.tolist()]
        chosen = _evenly(len(chatting.pauses_s), max(round(share * MIXED_PAUSES), 1))
        pauses_s.append(np.sort(chatting.pauses_s)[chosen])
    shared = sum(one.weight * one.chatting.shared_prefix_tokens for one in classes) / total
    return ChatBehaviour(
        conversations=conversations,
        pauses_s=np.concatenate(pauses_s),
        shared_prefix_tokens=round(shared),
        answers_cached=all(one.chatting.answers_cached for one in classes),
        error_pause_s=classes[0].chatting.error_pause_s,
        classes=classes,
    )


def _evenly(length: int, count: int) -> Ints:
    """Returns `count` positions below `length`, evenly spread. Shape (count,)."""
    return np.asarray(((np.arange(count) + 0.5) * length / count).astype(np.int64))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Service:
    """An engine, the overhead (delay) between engine and client, and the people who use the engine.

    The overhead of a request is `overhead_s` plus `overhead_per_user_s` times the users of its replica.
    """

    engine: EngineConfig
    chatting: ChatBehaviour
    overhead_s: float = 0.0
    overhead_per_user_s: float = 0.0
    gateway: GatewayLimits | None = None
    """A gateway before the engine that turns requests away; None: there is none."""
    timeout_s: float = math.inf
    """Time limit of a request on the client's side, seconds: what has not ended by then is aborted."""

    def overhead_at(self, users: float) -> float:
        """Returns the overhead between engine and client, seconds, when a replica has `users` users."""
        return self.overhead_s + self.overhead_per_user_s * users

    def with_engine(self, **changes: object) -> "Service":
        """Returns this service with some fields of its engine changed.

        Raises ValueError for an engine that vLLM would not start.
        """
        return replace(self, engine=replace(self.engine, **changes))  # type: ignore[arg-type]


def typical_duration_s(service: Service, users: float) -> float:
    """Returns an estimate of the request duration with `users` users, in seconds, without a simulation."""
    prompt, output = _mean_lengths(service)
    engine = service.engine
    sequences = min(users, engine.max_num_seqs)
    if (steps := engine.step_time) is not None:
        decode_s = steps.decode_s(sequences, prompt + output / 2)
        return float(output * decode_s + sequences * steps.prompt_s(prompt))
    step_s = engine.step_base_s + sequences * (
        engine.step_per_seq_s
        + engine.step_per_kv_token_s * (prompt + output / 2)
        + engine.prefill_per_token_s * prompt / output
    )
    return float(output * step_s)


def users_at_half_load(service: Service) -> int:
    """Returns an estimate of the users that fill half of the KV-cache pool or half of max_num_seqs.

    The smaller of the two numbers counts. A search for the limit starts from it.
    """
    prompt, output = _mean_lengths(service)
    engine, shared = service.engine, service.chatting.shared_prefix_tokens
    held = max(prompt - shared + output / 2 + engine.block_size / 2, 1.0)
    fit = min((engine.pool_tokens - shared) / held, engine.max_num_seqs) / 2
    duration_s = typical_duration_s(service, fit)
    active = duration_s / (duration_s + float(np.mean(service.chatting.pauses_s)))
    return max(int(fit / active), 1)


def _mean_lengths(service: Service) -> Floats:
    """Returns the mean prompt and output tokens of a turn, over the first 200 conversations. Shape (2,)."""
    turns = [turn for turns in service.chatting.conversations[:200] for turn in turns]
    return np.asarray(np.mean(np.array(turns, dtype=np.float64), axis=0))
