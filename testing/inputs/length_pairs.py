"""Builds the lengths of prompts and answers as the analysis stores them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from analysis.evidence.lengths import LengthPairs
from testing.runs.virtual import chat_lengths


def length_pairs(
    prompt: ArrayLike,
    output: ArrayLike,
    *,
    conversation: Sequence[int] | None = None,
    shared_prefix: int = 0,
) -> LengthPairs:
    prompts = np.array(prompt, dtype=np.int64)
    return LengthPairs(
        prompt=prompts,
        output=np.array(output, dtype=np.int64),
        conversation=np.arange(len(prompts)) if conversation is None else np.array(conversation),
        shared_prefix=shared_prefix,
    )


def drawn_pairs(n: int = 3000, seed: int = 0) -> LengthPairs:
    rng = np.random.default_rng(seed)
    lengths = np.array([chat_lengths(rng) for _ in range(n)])
    return length_pairs(lengths[:, 0], lengths[:, 1])
