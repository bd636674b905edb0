"""Draws the lengths of prompts and answers of each class of users, and computes the KV blocks of requests.
Knows no deployment."""

import functools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TypeVar

import msgspec
import numpy as np

from analysis.memory.block_distribution import BlockDistribution
from analysis.statistics.arrays import Bools, Floats, Ints
from analysis.virtual.service import TurnTokens
from loadtest.model.kv_cache import KvLayout
from loadtest.record import ClassObjectives, Slo, UserClass
from loadtest.workload.classes import ClassPlan, text_popularity
from loadtest.workload.distributions import Distribution

LENGTH_PAIRS = 2000
"""Number of requests of each class that are drawn."""

Value = TypeVar("Value")


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlannedClass:
    """A class of users: the lengths drawn for its requests, and its pauses."""

    name: str = ""
    """Name of the class; empty if all users are alike."""
    weight: float = 1.0
    """Share of the users, relative to the other classes."""
    prompt: Ints
    """Prompt tokens of each request, with its history. Shape (n,)."""
    output: Ints
    """Answer tokens of each request. Shape (n,)."""
    conversation: Ints
    """Number of each request's conversation, rising. Shape (n,)."""
    tool_follows: Bools
    """Whether a tool works after each request, and no person thinks. Shape (n,)."""
    think: Distribution
    """Pauses of a person, seconds."""
    tool: Distribution
    """Pauses in which a tool works, seconds."""
    shared_tokens: int = 0
    """Tokens of a text with which every conversation begins."""
    shared_texts: Sequence[float] = (1.0,)
    """Popularity of the different texts of this length."""
    objectives: ClassObjectives = field(default_factory=ClassObjectives)
    clipped: int = 0
    """Number of requests that were cut to fit max_model_len."""

    @property
    def conversations(self) -> list[list[TurnTokens]]:
        """Prompt and answer tokens of the requests of each conversation."""
        return self._by_conversation(list(zip(self.prompt.tolist(), self.output.tolist(), strict=True)))

    @property
    def tools_of_conversations(self) -> list[list[bool]]:
        """`tool_follows` of the requests of each conversation."""
        return self._by_conversation(self.tool_follows.tolist())

    def _by_conversation(self, values: list[Value]) -> list[list[Value]]:
        begins = np.flatnonzero(np.diff(self.conversation, prepend=-1)).tolist()
        return [values[a:b] for a, b in zip(begins, [*begins[1:], len(values)], strict=True)]

    @property
    def mean_held_tokens(self) -> float:
        """Mean tokens that a request holds in the KV cache over its steps."""
        prompt, output = self.prompt.astype(np.float64), self.output.astype(np.float64)
        return float(np.sum(prompt * output + output * (output - 1) / 2) / np.sum(output))

    @property
    def computed_tokens(self) -> Floats:
        """Tokens of each prompt that the prefix cache cannot hold, at least 1. Shape (n,)."""
        prompt = self.prompt.astype(np.float64)
        history = np.full(len(prompt), float(self.shared_tokens))
        follows = np.flatnonzero(np.diff(self.conversation) == 0) + 1
        history[follows] = prompt[follows - 1] + self.output[follows - 1]
        return np.asarray(np.maximum(prompt - history, 1.0))

    @property
    def mean_pause_s(self) -> float:
        """Mean pause after a request, seconds."""
        tools = float(self.tool_follows.mean())
        return tools * self.tool.mean + (1 - tools) * self.think.mean

    @property
    def has_history(self) -> bool:
        """Whether some conversation has several requests, which send its history."""
        return len(self.conversation) > int(self.conversation[-1]) + 1

    def stretched(self, *, prompt: float = 1.0, output: float = 1.0, max_model_len: int) -> "PlannedClass":
        """Returns the class with lengths multiplied by the factors, then cut to fit max_model_len."""
        prompts = np.maximum(np.rint(self.prompt * prompt).astype(np.int64), 1)
        outputs = np.maximum(np.rint(self.output * output).astype(np.int64), 1)
        prompts, outputs = _cut(prompts, outputs, max_model_len)
        return replace(self, prompt=prompts, output=outputs)


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlannedWorkload:
    """The classes of users, and the objectives of those that have none of their own."""

    classes: Sequence[PlannedClass]
    """At least one; a single one without a name if all users are alike."""
    slo: Slo

    @property
    def is_mix(self) -> bool:
        """Whether the users are those of a workload file."""
        return bool(self.classes[0].name)

    @property
    def slos(self) -> list[Slo]:
        """The objectives of each class."""
        return [one.objectives.over(self.slo) for one in self.classes]

    @property
    def user_shares(self) -> Floats:
        """Share of each class in the users. Shape (classes,)."""
        weights = np.array([one.weight for one in self.classes])
        return np.asarray(weights / weights.sum())

    @property
    def mean_held_tokens(self) -> float:
        """Mean tokens that the request of a random user holds in the KV cache over its steps."""
        return float(self.user_shares @ [one.mean_held_tokens for one in self.classes])

    @property
    def caches_prefixes(self) -> bool:
        """Whether some requests can find a part of their prompt in a prefix cache."""
        return any(one.has_history or one.shared_tokens for one in self.classes)

    @property
    def one_length(self) -> bool:
        """Whether all requests have the same lengths, and nobody thinks: they then stay in step."""
        prompts = np.concatenate([one.prompt for one in self.classes])
        outputs = np.concatenate([one.output for one in self.classes])
        same = bool(np.ptp(prompts) == 0 and np.ptp(outputs) == 0)
        return same and all(one.mean_pause_s <= 0 for one in self.classes)

    def stretched(self, *, prompt: float = 1.0, output: float = 1.0, max_model_len: int) -> "PlannedWorkload":
        """Returns the workload with the lengths of all classes multiplied by the factors, then cut to fit
        max_model_len."""
        longer = [
            one.stretched(prompt=prompt, output=output, max_model_len=max_model_len) for one in self.classes
        ]
        return replace(self, classes=longer)


def _cut(prompt: Ints, output: Ints, max_model_len: int) -> tuple[Ints, Ints]:
    """Cuts lengths so that prompt plus answer fit max_model_len.

    A prompt is cut only where it leaves no room for one answer token; the answer is cut to what remains.
    """
    prompt = np.minimum(prompt, max_model_len - 1)
    return prompt, np.minimum(output, max_model_len - prompt)


def draw_workload(
    classes: Sequence[UserClass], *, slo: Slo, max_model_len: int, seed: int = 0
) -> PlannedWorkload:
    """Draws LENGTH_PAIRS requests of each class, cut to fit max_model_len.

    A conversation has turns and steps as in the load test; it ends earlier if its history leaves no room for
    another answer. Objectives for stalls are left out: they are not predicted. Raises ValueError for a
    distribution that cannot be read.
    """
    slo = msgspec.structs.replace(slo, stall_p95_s=None)
    return PlannedWorkload(
        classes=[_drawn_class(one, max_model_len=max_model_len, seed=seed) for one in classes], slo=slo
    )


def _drawn_class(user_class: UserClass, *, max_model_len: int, seed: int) -> PlannedClass:
    plan = ClassPlan.of(user_class)
    # The values of extra_body cannot be hashed, so the class is the key of the cache as text.
    drawn = _drawn_requests(msgspec.json.encode(user_class), max_model_len=max_model_len, seed=seed)
    prompt, output = _cut(drawn[:, 0], drawn[:, 1], max_model_len)
    return PlannedClass(
        name=user_class.name,
        weight=user_class.weight,
        prompt=prompt,
        output=output,
        conversation=drawn[:, 2],
        tool_follows=drawn[:, 3] > 0,
        think=plan.think_s,
        tool=plan.tool_s,
        shared_tokens=user_class.shared_tokens,
        shared_texts=text_popularity(user_class),
        objectives=msgspec.structs.replace(user_class.objectives, stall_p95_s=None),
        clipped=int(np.sum(drawn[:, :2].sum(axis=1) > max_model_len)),
    )


@functools.lru_cache(maxsize=64)  # most candidates of a purchase have the same lengths
def _drawn_requests(user_class: bytes, *, max_model_len: int, seed: int) -> Ints:
    """Returns prompt tokens, answer tokens, the number of the conversation, and whether a tool follows (1 or
    0) of each request. Shape (n, 4)."""
    plan, rng = ClassPlan.of(msgspec.json.decode(user_class, type=UserClass)), random.Random(seed)
    drawn: list[tuple[int, int, int, int]] = []
    conversations = 0
    while len(drawn) < LENGTH_PAIRS:
        drawn += [
            (prompt, output, conversations, tool_follows)
            for prompt, output, tool_follows in _drawn_conversation(plan, max_model_len, rng)
        ]
        conversations += 1
    found = np.array(drawn, dtype=np.int64)
    found.flags.writeable = False
    return found


def _drawn_conversation(
    plan: ClassPlan, max_model_len: int, rng: random.Random
) -> Iterator[tuple[int, int, int]]:
    """Yields prompt tokens, answer tokens, and whether a tool follows, of each request of a conversation."""
    history, first = plan.user_class.shared_tokens + plan.draw_context(rng), True
    for _ in range(plan.turns.draw_count(rng)):
        steps = plan.steps.draw_count(rng)
        for step in range(steps):
            asked = history + (plan.tool_tokens if step else plan.prompt_tokens).draw_count(rng)
            if asked >= max_model_len and not first:
                return
            answered = plan.output_tokens.draw_count(rng)
            yield asked, answered, int(step + 1 < steps)
            history, first = asked + answered, False


def planned_block_distribution(users: PlannedClass, layout: KvLayout) -> BlockDistribution:
    """Computes the distribution of the KV blocks that a request of a class holds over its steps.

    A request with o answer tokens has o steps. With full attention the result equals
    `analysis.memory.block_distribution.block_distribution`. With other layouts of the cache, the blocks of
    all groups of layers are added. A request may then take several blocks in one step; each of these blocks
    counts as one growth. Whole blocks of a shared text are left out: its requests hold them together.
    """
    shared = layout.block_size * (users.shared_tokens // layout.block_size)
    prompts, output = np.maximum(users.prompt - shared, 1), users.output
    longest = int((prompts + output).max())
    blocks = np.array([layout.blocks(tokens) if tokens else 0 for tokens in range(longest + 1)])
    size = int(blocks.max()) + 2
    steps = np.bincount(prompts, minlength=longest + 1).astype(np.float64)
    at_length = np.cumsum(steps - np.bincount(prompts + output, minlength=longest + 1))
    held = np.bincount(blocks, weights=at_length, minlength=size)
    requests = len(prompts)
    # Every request that holds x tokens and has not ended makes the step from x to x + 1 tokens.
    rises = np.diff(blocks)
    passes = (np.cumsum(steps) - np.cumsum(_counts(prompts + output - 1, longest + 1)))[:-1]
    growth = np.zeros(size)
    for tokens in np.flatnonzero((rises > 0) & (passes > 0)):
        growth[blocks[tokens] : blocks[tokens + 1]] += passes[tokens]
    return BlockDistribution(
        held=held / held.sum(),
        growth=growth / requests,
        entry=np.bincount(blocks[prompts], minlength=size) / requests,
        steps=float(held.sum()) / requests,
    )


def _counts(values: Ints, size: int) -> Floats:
    return np.bincount(values, minlength=size).astype(np.float64)
