"""A service to simulate: its engine, the delay between engine and client, and how people chat with it.

Reads no files. The twin (a simulated copy of a measured server) builds a service from a run or a preset;
benchmarks build one from stated numbers.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.statistics.arrays import Floats
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
    answers_cached: bool = True
    """Whether the next turn repeats the tokens of the answer, so that the prefix cache can hold them."""
    error_pause_s: float = 1.0
    """First pause after a failed request, as the load test's setting of this name."""


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
