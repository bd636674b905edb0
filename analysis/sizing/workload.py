"""Draws lengths of prompts and answers, and computes the KV blocks of requests. Knows no deployment."""

import random
from dataclasses import dataclass, replace

import numpy as np

from analysis.memory.block_distribution import BlockDistribution
from analysis.statistics.arrays import Floats, Ints
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
    think: Distribution
    slo: Slo
    clipped: int = 0
    """Number of pairs that were cut to fit max_model_len."""

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
) -> PlannedWorkload:
    """Draws LENGTH_PAIRS pairs of lengths from the distributions, cut to fit max_model_len."""
    rng = random.Random(seed)
    drawn = [(prompt.draw_count(rng), output.draw_count(rng)) for _ in range(LENGTH_PAIRS)]
    lengths = np.array(drawn, dtype=np.int64)
    clipped = int(np.sum(lengths.sum(axis=1) > max_model_len))
    prompts, outputs = _cut(lengths[:, 0], lengths[:, 1], max_model_len)
    return PlannedWorkload(prompt=prompts, output=outputs, think=think, slo=slo, clipped=clipped)


def planned_block_distribution(workload: PlannedWorkload, layout: KvLayout) -> BlockDistribution:
    """Computes the distribution of the KV blocks that a request holds over its steps.

    A request with o answer tokens has o steps. With full attention the result equals
    `analysis.memory.block_distribution.block_distribution`. With other layouts of the cache, the blocks of
    all groups of layers are added. A request may then take several blocks in one step; each of these blocks
    counts as one growth.
    """
    longest = int((workload.prompt + workload.output).max())
    blocks = np.array([layout.blocks(tokens) if tokens else 0 for tokens in range(longest + 1)])
    size = int(blocks.max()) + 2
    steps = np.bincount(workload.prompt, minlength=longest + 1).astype(np.float64)
    at_length = np.cumsum(steps - np.bincount(workload.prompt + workload.output, minlength=longest + 1))
    held = np.bincount(blocks, weights=at_length, minlength=size)
    requests = len(workload.prompt)
    # Every request that holds x tokens and has not ended makes the step from x to x + 1 tokens.
    rises = np.diff(blocks)
    passes = (np.cumsum(steps) - np.cumsum(_counts(workload.prompt + workload.output - 1, longest + 1)))[:-1]
    growth = np.zeros(size)
    for tokens in np.flatnonzero((rises > 0) & (passes > 0)):
        growth[blocks[tokens] : blocks[tokens + 1]] += passes[tokens]
    return BlockDistribution(
        held=held / held.sum(),
        growth=growth / requests,
        entry=np.bincount(blocks[workload.prompt], minlength=size) / requests,
        steps=float(held.sum()) / requests,
    )


def _counts(values: Ints, size: int) -> Floats:
    return np.bincount(values, minlength=size).astype(np.float64)
