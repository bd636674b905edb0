"""Random mixes of chats, documents and agents in virtual time, with the maximum that a long search finds."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from analysis.capacity.answer import recommend
from analysis.reading.runs import Run
from analysis.twin.maximum import VirtualMaximum, find_maximum
from analysis.virtual.service import (
    CLIENT_TURNAROUND_S,
    ChatBehaviour,
    ChattingClass,
    Service,
    TurnTokens,
    mixed,
)
from loadtest.record import Slo
from testing.truth.deployments import BLOCK_TOKENS, LONGEST, log_uniform, random_engine, tokens_held
from testing.truth.virtual_load import SETTLE_S, VirtualLoad

_DRAWN_CHATS = 400
"""Number of conversations from which the users of a class draw."""
_FITTING = (9.0, 60.0)
"""Requests of the mix that the pool holds on average, from and to."""
_SEARCH_REQUESTS = 20_000
"""Requests of each simulation in the search of the true maximum."""
_ENDED_A_LEVEL = 1200
_SHORTEST_S = 30.0
"""Shortest time of a level: the server is asked once a second."""
_AROUND_TRUE = (0.35, 0.6, 0.8, 0.95, 1.1, 1.3)
"""Levels of a sweep, as multiples of the true maximum."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class VirtualMix:
    """A server, the classes of users who use it, the objectives of the run, and the true maximum."""

    number: int
    service: Service
    slo: Slo
    true: VirtualMaximum


@dataclass(frozen=True, kw_only=True, slots=True)
class MixSweep:
    """What a sweep of a mix finds, beside the truth."""

    number: int
    true_x: float
    wall: str
    user_class: str | None
    x: float
    interval: tuple[float, float]
    said_wall: str
    said_class: str | None

    @property
    def held(self) -> bool:
        """Whether the 90 % interval holds the true maximum."""
        return self.interval[0] <= self.true_x <= self.interval[1]


def virtual_mix(number: int) -> VirtualMix:
    """Draws a mix with its number as the seed: two or three classes on a random model and GPU."""
    rng = random.Random(f"mix/{number}")
    while True:
        service, slo = _drawn(rng)
        found = find_maximum(service, slo, requests=_SEARCH_REQUESTS, seed=1)
        if found is not None and 6.0 <= found.x <= 150.0:
            return VirtualMix(number=number, service=service, slo=slo, true=found)


def _drawn(rng: random.Random) -> tuple[Service, Slo]:
    speed = random_engine(rng)
    kinds = rng.choice([("chat", "rag"), ("chat", "agent"), ("chat", "rag", "agent"), ("rag", "agent")])
    parts = {name: _DRAWN[name](rng) for name in kinds}
    weights = {name: rng.choice([1.0, 1.0, 2.0, 3.0]) for name in kinds}
    pairs = {
        name: np.array([turn for chat in part.conversations for turn in chat]) for name, part in parts.items()
    }
    own = {name: tokens_held(pairs[name]) - part.shared_prefix_tokens for name, part in parts.items()}
    total = sum(weights.values())
    held = sum(weights[name] * own[name] for name in kinds) / total
    shared = sum(part.shared_prefix_tokens * min(len(part.shared_texts), 4) for part in parts.values())
    longest = max(int(each.sum(axis=1).max()) for each in pairs.values())
    fit = log_uniform(rng, *_FITTING)
    engine = replace(
        speed,
        num_gpu_blocks=1 + math.ceil(max(fit * held + shared, 1.5 * longest) / BLOCK_TOKENS),
        max_model_len=longest,
        enable_prefix_caching=True,
    )
    output = float(np.mean([each[:, 1].mean() for each in pairs.values()]))
    prompt = float(np.mean([each[:, 0].mean() for each in pairs.values()]))
    step_s = engine.step_base_s + fit * (
        engine.step_per_seq_s
        + engine.step_per_kv_token_s * held
        + engine.prefill_per_token_s * prompt / output
    )
    longest_prefill_s = engine.prefill_per_token_s * longest
    slo = Slo(
        ttft_p95_s=(longest_prefill_s + 2 * step_s) * log_uniform(rng, 1.0, 10.0),
        tpot_p95_s=step_s * log_uniform(rng, 0.7, 5.0),
    )
    strict = rng.choice(kinds)
    classes = [
        ChattingClass(
            name=name,
            weight=weights[name],
            chatting=parts[name],
            ttft_x=rng.uniform(0.5, 1.0) if name == strict else 1.0,
            tpot_x=rng.uniform(0.6, 1.0) if name == strict else 1.0,
        )
        for name in kinds
    ]
    return Service(engine=engine, chatting=mixed(classes)), slo


def _length(rng: random.Random, mean: float, cv: float) -> int:
    sigma2 = math.log1p(cv**2)
    return round(
        min(max(rng.lognormvariate(math.log(mean) - sigma2 / 2, math.sqrt(sigma2)), 1), LONGEST * mean)
    )


def _pauses_s(rng: random.Random, mean_s: float) -> "np.ndarray[tuple[int], np.dtype[np.float64]]":
    drawn = [rng.expovariate(1 / mean_s) if mean_s else 0.0 for _ in range(2000 if mean_s else 1)]
    return CLIENT_TURNAROUND_S + np.array(drawn)


def _chat(rng: random.Random) -> ChatBehaviour:
    """Chats of one to four turns, after a system prompt that may be short."""
    prompt, output, shared = log_uniform(rng, 40, 200), log_uniform(rng, 30, 150), rng.choice([0, 0, 64, 256])
    most = rng.choice([1, 1, 2, 4])
    chats = []
    for _ in range(_DRAWN_CHATS):
        turns: list[TurnTokens] = []
        history = shared
        for _ in range(rng.randint(1, most)):
            asked, answered = history + _length(rng, prompt, 0.5), _length(rng, output, 0.6)
            turns.append((asked, answered))
            history = asked + answered
        chats.append(turns)
    return ChatBehaviour(
        conversations=chats,
        pauses_s=_pauses_s(rng, rng.choice([0.0, 0.0, 2.0])),
        shared_prefix_tokens=shared,
    )


def _documents(rng: random.Random) -> ChatBehaviour:
    """Questions about passages, after one of several system prompts of different popularity."""
    prompt, output, shared = log_uniform(rng, 300, 1500), log_uniform(rng, 20, 100), rng.choice([0, 256, 512])
    texts, zipf = rng.choice([1, 2, 6]), rng.choice([0.0, 1.0])
    return ChatBehaviour(
        conversations=[
            [(shared + _length(rng, prompt, 0.35), _length(rng, output, 0.6))] for _ in range(_DRAWN_CHATS)
        ],
        pauses_s=_pauses_s(rng, 0.0),
        shared_prefix_tokens=shared,
        shared_texts=[rank**-zipf for rank in range(1, texts + 1)] if shared else [1.0],
    )


def _agent(rng: random.Random) -> ChatBehaviour:
    """Agents whose prefix grows by the answers of their tools."""
    prompt, tool, output = log_uniform(rng, 100, 400), log_uniform(rng, 50, 300), log_uniform(rng, 20, 80)
    shared, most = rng.choice([256, 512, 1024]), rng.choice([3, 6])
    chats, follows = [], []
    for _ in range(_DRAWN_CHATS):
        steps = rng.randint(1, most)
        turns: list[TurnTokens] = []
        history = shared
        for step in range(steps):
            asked = history + _length(rng, tool if step else prompt, 0.6)
            turns.append((asked, _length(rng, output, 0.6)))
            history = sum(turns[-1])
        chats.append(turns)
        follows.append([True] * (steps - 1) + [False])
    return ChatBehaviour(
        conversations=chats,
        pauses_s=_pauses_s(rng, rng.choice([0.0, 3.0])),
        shared_prefix_tokens=shared,
        tool_follows=follows,
        tool_pauses_s=_pauses_s(rng, rng.choice([0.05, 0.3])),
    )


_DRAWN = {"chat": _chat, "rag": _documents, "agent": _agent}


def swept_mix(one: VirtualMix, *, seed: int) -> MixSweep:
    """Sweeps across the true maximum with about _ENDED_A_LEVEL a level, and asks the analysis."""
    answer = recommend([run_of_mix(one.service, one.slo, _levels(one.true.x), seed=seed)], slo=one.slo)
    headline = answer.headline
    first = next((bound for bound in answer.bounds if bound.name == headline.binding), None)
    low, high = headline.interval_x or (None, None)
    return MixSweep(
        number=one.number,
        true_x=one.true.x,
        wall=one.true.wall,
        user_class=one.true.user_class,
        x=math.nan if headline.estimate_x is None else headline.estimate_x,
        interval=(math.nan if low is None else low, math.inf if high is None else high),
        said_wall=headline.binding or "",
        said_class=None if first is None else first.user_class,
    )


def _levels(x: float) -> Sequence[int]:
    return sorted({max(round(x * times), 2) for times in _AROUND_TRUE})


def run_of_mix(service: Service, slo: Slo, users: Sequence[int], *, seed: int) -> Run:
    """Measures levels of a mix, so long that about _ENDED_A_LEVEL end in each."""
    load = VirtualLoad(service, slo, seed=seed)
    for count in users:
        before = load.ended
        load.hold(count, SETTLE_S + _SHORTEST_S)
        while load.ended - before < _ENDED_A_LEVEL:
            load.hold(count, _SHORTEST_S)
    load.finish()
    return load.run()
