"""A service to simulate: its engine, the way from engine to client, and how people chat with it.

Knows no files: the twin makes one from a run or a preset, sizing and benchmarks from numbers of their own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.statistics.arrays import Floats
from loadtest.simulator.engine.config import EngineConfig

CLIENT_TURNAROUND_S = 0.001  # of a client that does not think: its next request misses the step that begins

TurnTokens = tuple[int, int]
"""Prompt tokens, the history included, and output tokens of one turn."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class ChatBehaviour:
    """How people use a service: what they send and how long they wait in between."""

    conversations: Sequence[Sequence[TurnTokens]]
    """Conversations to draw from, with repetition."""
    pauses_s: Floats
    """Seconds between an answer's end and the same person's next request, to draw from. Shape (n,)."""
    shared_prefix_tokens: int = 0
    """Tokens that every prompt begins with."""
    answers_cached: bool = True
    """Whether the next turn finds the answer before it in the prefix cache, as the same tokens."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Service:
    """An engine, the time between its tokens and the client, and the people who use it.

    The time on the way is `overhead_s`, and `overhead_per_user_s` more for each user of a replica.
    """

    engine: EngineConfig
    chatting: ChatBehaviour
    overhead_s: float = 0.0
    overhead_per_user_s: float = 0.0

    def overhead_at(self, users: float) -> float:
        """Seconds between engine and client when a replica has `users` users."""
        return self.overhead_s + self.overhead_per_user_s * users

    def with_engine(self, **changes: object) -> "Service":
        """This service with some fields of its engine changed.

        Raises ValueError for an engine that vLLM would not start.
        """
        return replace(self, engine=replace(self.engine, **changes))  # type: ignore[arg-type]


def typical_duration_s(service: Service, users: float) -> float:
    """A rough request duration with so many users, without a simulation."""
    prompt, output = _mean_lengths(service)
    engine = service.engine
    sequences = min(users, engine.max_num_seqs)
    step_s = engine.step_base_s + sequences * (
        engine.step_per_seq_s
        + engine.step_per_kv_token_s * (prompt + output / 2)
        + engine.prefill_per_token_s * prompt / output
    )
    return float(output * step_s)


def users_at_half_load(service: Service) -> int:
    """A rough number of users who fill half of the pool or of the slots: where a search may begin."""
    prompt, output = _mean_lengths(service)
    engine, shared = service.engine, service.chatting.shared_prefix_tokens
    held = max(prompt - shared + output / 2 + engine.block_size / 2, 1.0)
    fit = min((engine.pool_tokens - shared) / held, engine.max_num_seqs) / 2
    duration_s = typical_duration_s(service, fit)
    active = duration_s / (duration_s + float(np.mean(service.chatting.pauses_s)))
    return max(int(fit / active), 1)


def _mean_lengths(service: Service) -> Floats:
    """Mean prompt and output tokens of the first conversations. Shape (2,)."""
    turns = [turn for turns in service.chatting.conversations[:200] for turn in turns]
    return np.asarray(np.mean(np.array(turns, dtype=np.float64), axis=0))
