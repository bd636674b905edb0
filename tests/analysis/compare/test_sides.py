"""What one side of a comparison knows of its deployment."""

import numpy as np
import pytest

from analysis.compare.sides import held_tokens
from analysis.evidence.lengths import LengthPairs
from analysis.memory.block_distribution import block_distribution


def test_tokens_held_are_those_of_the_block_law():
    rng = np.random.default_rng(7)
    pairs = LengthPairs(
        prompt=rng.integers(1, 300, 200),
        output=rng.integers(1, 200, 200),
        conversation=np.arange(200),
        shared_prefix=40,
    )
    held, steps = held_tokens(pairs, block_tokens=16)
    assert held.sum() / steps.sum() == pytest.approx(16 * block_distribution(pairs, block_tokens=16).mean)
