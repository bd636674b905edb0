"""The arithmetic of `python -m benchmarks real_truth`; its measuring needs a real vLLM and an hour."""

import numpy as np
import pytest

from testing.truth.counts import Counts, lower, wall_between

BATCHES, REQUESTS, SCRAPES = 24, 250, 20
LEVELS = {14: (0.006, 0.02), 15: (0.025, 0.06)}
"""Preempted and blocked with so many users: 1 % preempted lies at 14 + ln(1 / 0.6) / ln(25 / 6)."""
X = 14.358


def _measured(rng: np.random.Generator, preempted: float, blocked: float) -> Counts:
    """Preemptions come in pairs."""
    return Counts(
        preempted=2.0 * rng.poisson(preempted * REQUESTS / 2, BATCHES),
        finished=np.full(BATCHES, float(REQUESTS)),
        blocked=rng.binomial(SCRAPES, blocked, BATCHES).astype(np.float64),
        scrapes=np.full(BATCHES, float(SCRAPES)),
        held=np.full(BATCHES, float(SCRAPES * 14)),
    )


def test_the_standard_error_is_the_spread_of_repeated_measurements() -> None:
    rng = np.random.default_rng(1)
    found = [
        wall_between(14, {users: _measured(rng, *shares) for users, shares in LEVELS.items()})
        for _ in range(200)
    ]
    x, error, binding = zip(*found, strict=True)
    assert np.mean(x) == pytest.approx(X, abs=0.05)
    assert np.mean(error) == pytest.approx(np.std(x), rel=0.2)
    assert set(binding) == {"preemptions"}


def test_blocked_time_binds_where_hardly_anybody_is_preempted() -> None:
    rng = np.random.default_rng(2)
    seen = {12: _measured(rng, 0.0, 0.05), 13: _measured(rng, 0.001, 0.25)}
    x, _, binding = wall_between(12, seen)
    assert binding == "blocked time"
    assert x == pytest.approx(12.4, abs=0.15)


def test_the_wall_lies_before_the_first_level_that_breaks_it() -> None:
    rng = np.random.default_rng(3)
    holds, breaks = _measured(rng, 0.002, 0.0), _measured(rng, 0.05, 0.0)
    assert lower({14: holds, 15: breaks, 16: holds, 17: breaks}) == 14
    assert lower({14: holds, 16: breaks}) is None
    assert lower({14: holds, 15: holds}) is None
