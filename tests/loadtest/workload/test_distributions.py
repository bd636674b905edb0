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


@pytest.mark.parametrize("text", ["300", "100-500", "lognormal:300,0.6", "exp:300"])
def test_people_who_were_there_for_long_ask_as_often_from_the_start_on(text: str) -> None:
    """As many of 20,000 people ask in the first fifth of a mean pause as in each later one."""
    law, rng = Distribution.parse(text), random.Random(1)
    asked = [0] * 15
    for _ in range(20_000):
        at = law.draw_remaining(rng)
        while at < 900:
            asked[int(at // 60)] += 1
            at += law.draw(rng)
    assert asked == pytest.approx([4000] * 15, abs=5 * 4000**0.5)


def test_a_range_is_inclusive() -> None:
    law, rng = Distribution.parse("2-4"), random.Random(0)
    assert {law.draw_count(rng) for _ in range(200)} == {2, 3, 4}


@pytest.mark.parametrize(
    "text", ["", "abc", "-3", "9-2", "lognormal:0,1", "lognormal:5", "exp:0", "1e3", "3,4"]
)
def test_nonsense_is_refused_with_the_accepted_forms(text: str) -> None:
    with pytest.raises(ValueError, match="lognormal:MEAN,CV"):
        Distribution.parse(text)
