"""The run folders that tests are given."""

import pytest

from testing.runs.virtual import chat_lengths


def test_lengths_are_what_the_fixture_says():
    import numpy as np

    lengths = np.array([chat_lengths(np.random.default_rng(k)) for k in range(2000)])
    assert lengths.mean(axis=0) == pytest.approx([124, 96], rel=0.05)
