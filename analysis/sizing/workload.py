"""Draws lengths of prompts and answers, and computes the KV blocks of requests. Knows no deployment."""

import functools
import random
from dataclasses import dataclass, replace

import numpy as np

from analysis.memory.block_distribution import BlockDistribution
from analysis.statistics.arrays import Floats, Ints
from analysis.virtual.service import TurnTokens
from loadtest.model.kv_cache import KvLayout
from loadtest.record import Slo
from loadtest.workload.distributions import Distribution

LENGTH_PAIRS = 2000
"""Number of pairs of prompt and answer lengths that are drawn."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class PlannedWorkload:
    """Lengths of prompts and answers, think time, and objectives."""

    prompt: Ints
    """Prompt tokens of each pair of lengths. Shape (n,)."""
    output: Ints
    """Answer tokens of each pair of lengths. Shape (n,)."""
    conversation: Ints
    """Number of the conversation of each pair, rising. Shape (n,)."""
    think: Distribution
    slo: Slo
    clipped: int = 0
    """Number of pairs that were cut to fit max_model_len."""
    turns: int = 1
    """Most turns of a conversation."""
    shared_prefix_tokens: int = 0
    """Tokens with which every prompt begins, and which all requests share in the prefix cache."""

    @property
    def conversations(self) -> list[list[TurnTokens]]:
        """The pairs of each conversation."""
        pairs = list(zip(self.prompt.tolist(), self.output.tolist(), strict=True))
        begins = np.flatnonzero(np.diff(self.conversation, prepend=-1)).tolist()
        return [pairs[a:b] for a, b in zip(begins, [*begins[1:], len(pairs)], strict=True)]

    @property
    def mean_held_tokens(self) -> float:
        """Mean tokens that a request holds in the KV cache over its steps."""
        prompt, output = self.prompt.astype(np.float64), self.output.astype(np.float64)
        return float(np.sum(prompt * output + output * (output - 1) / 2) / np.sum(output))

    def mean_blocks(self, layout: KvLayout) -> float:
        """Returns the mean number of blocks of its own that a request holds over its steps."""
        return planned_block_distribution(self, layout).mean

    @property
    def one_length(self) -> bool:
        """Whether all requests have the same lengths, and nobody thinks: they then stay in step."""
        same = bool(np.ptp(self.prompt) == 0 and np.ptp(self.output) == 0)
        return same and self.think.mean <= 0

    def stretched(self, *, prompt: float = 1.0, output: float = 1.0, max_model_len: int) -> "PlannedWorkload":
        """Returns the workload with lengths multiplied by the factors, then cut to fit max_model_len."""
        prompts = np.maximum(np.rint(self.prompt * prompt).astype(np.int64), 1)
        outputs = np.maximum(np.rint(self.output * output).astype(np.int64), 1)
        prompts, outputs = _cut(prompts, outputs, max_model_len)
        return replace(self, prompt=prompts, output=outputs)


def _cut(prompt: Ints, output: Ints, max_model_len: int) -> tuple[Ints, Ints]:
    """Cuts lengths so that prompt plus answer fit max_model_len.

    A prompt is cut only where it leaves no room for one answer token; the answer is cut to what remains.
    """
    prompt = np.minimum(prompt, max_model_len - 1)
    return prompt, np.minimum(output, max_model_len - prompt)


def draw_workload(
    prompt: Distribution,
    output: Distribution,
    think: Distribution,
    *,
    slo: Slo,
    max_model_len: int,
    seed: int = 0,
    turns: int = 1,
    shared_prefix_tokens: int = 0,
) -> PlannedWorkload:
    """Draws LENGTH_PAIRS pairs of lengths from the distributions, cut to fit max_model_len.

    With several turns, `prompt` is what a turn adds to the history, as in the load test; a conversation ends
    earlier if its history leaves no room for another answer. shared_prefix_tokens: tokens that are put before
    every conversation.
    """
    lengths = _drawn_lengths(
        prompt,
        output,
        max_model_len=max_model_len,
        seed=seed,
        turns=turns,
        shared_prefix_tokens=shared_prefix_tokens,
    )
    clipped = int(np.sum(lengths[:, :2].sum(axis=1) > max_model_len))
    prompts, outputs = _cut(lengths[:, 0], lengths[:, 1], max_model_len)
    return PlannedWorkload(
        prompt=prompts,
        output=outputs,
        conversation=lengths[:, 2],
        think=think,
        slo=slo,
        clipped=clipped,
        turns=turns,
        shared_prefix_tokens=shared_prefix_tokens,
    )


@functools.lru_cache(maxsize=16)  # most candidates of a purchase have the same lengths
def _drawn_lengths(
    prompt: Distribution,
    output: Distribution,
    *,
    max_model_len: int,
    seed: int,
    turns: int,
    shared_prefix_tokens: int,
) -> Ints:
    """Returns prompt tokens, answer tokens and the number of the conversation of each pair. Shape (n, 3)."""
    rng = random.Random(seed)
    drawn: list[tuple[int, int, int]] = []
    conversations = 0
    while len(drawn) < LENGTH_PAIRS:
        history = shared_prefix_tokens
        for _ in range(turns):
            asked = history + prompt.draw_count(rng)
            if asked >= max_model_len and history > shared_prefix_tokens:
                break
            answered = output.draw_count(rng)
            drawn.append((asked, answered, conversations))
            history = asked + answered
        conversations += 1
    lengths = np.array(drawn, dtype=np.int64)
    lengths.flags.writeable = False
    return lengths


def planned_block_distribution(workload: PlannedWorkload, layout: KvLayout) -> BlockDistribution:
    """Computes the distribution of the KV blocks that a request holds over its steps.

    A request with o answer tokens has o steps. With full attention the result equals
    `analysis.memory.block_distribution.block_distribution`. With other layouts of the cache, the blocks of
    all groups of layers are added. A request may then take several blocks in one step; each of these blocks
    counts as one growth. Whole blocks of a shared prefix are left out: all requests hold them together.
    """
    shared = layout.block_size * (workload.shared_prefix_tokens // layout.block_size)
    prompts = np.maximum(workload.prompt - shared, 1)
    longest = int((prompts + workload.output).max())
    blocks = np.array([layout.blocks(tokens) if tokens else 0 for tokens in range(longest + 1)])
    size = int(blocks.max()) + 2
    steps = np.bincount(prompts, minlength=longest + 1).astype(np.float64)
    at_length = np.cumsum(steps - np.bincount(prompts + workload.output, minlength=longest + 1))
    held = np.bincount(blocks, weights=at_length, minlength=size)
    requests = len(prompts)
    # Every request that holds x tokens and has not ended makes the step from x to x + 1 tokens.
    rises = np.diff(blocks)
    passes = (np.cumsum(steps) - np.cumsum(_counts(prompts + workload.output - 1, longest + 1)))[:-1]
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
