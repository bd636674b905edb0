"""Distributions of lengths and pauses."""

import random
import statistics

import pytest

from loadtest.workload.distributions import Distribution


@pytest.mark.parametrize(
    ("text", "mean", "cv"),
    [("300", 300, 0), ("100-500", 300, 0.386), ("lognormal:300,0.6", 300, 0.6), ("exp:300", 300, 1.0)],
)
def test_a_distribution_has_the_mean_and_spread_it_names(text: str, mean: float, cv: float) -> None:
    law = Distribution.parse(text)
    rng = random.Random(1)
    drawn = [law.draw_count(rng) for _ in range(40_000)]
    assert statistics.fmean(drawn) == pytest.approx(mean, rel=0.02)
    assert statistics.pstdev(drawn) / statistics.fmean(drawn) == pytest.approx(cv, abs=0.02)
    assert law.mean == mean


def test_a_range_is_inclusive() -> None:
    law, rng = Distribution.parse("2-4"), random.Random(0)
    assert {law.draw_count(rng) for _ in range(200)} == {2, 3, 4}


@pytest.mark.parametrize(
    "text", ["", "abc", "-3", "9-2", "lognormal:0,1", "lognormal:5", "exp:0", "1e3", "3,4"]
)
def test_nonsense_is_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(ValueError, match="lognormal:MEAN,CV"):
        Distribution.parse(text)
