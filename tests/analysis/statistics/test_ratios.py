"""Ratios of two quantities and of two percentiles, with bounds."""

import math

import numpy as np
import pytest

from analysis.statistics.ratios import (
    Quantity,
    Sample,
    Series,
    batch_mean,
    exact_quantity,
    quantile_ratio_bounds,
    ratio_bounds,
)
from analysis.statistics.samples import Window


def test_the_ratio_of_facts_is_exact_and_of_estimates_as_wide_as_both():
    assert ratio_bounds(exact_quantity(2.0), exact_quantity(3.0))(0.05) == pytest.approx((1.5, 1.5))
    one = batch_mean(100.0, se=1.0, freedom=1e6)
    low, high = ratio_bounds(one, one)(0.05)
    assert math.log(high) == pytest.approx(1.645 * math.sqrt(2) / 100, rel=0.02)
    assert low == pytest.approx(1 / high, rel=0.001)


def test_open_ends_stay_open():
    at_least = Quantity(value=20.0, bounds=lambda _: (20.0, math.inf))
    known = batch_mean(10.0, se=0.5, freedom=1e6)
    low, high = ratio_bounds(known, at_least)(0.05)
    assert 1.8 < low < 2.0
    assert high == math.inf
    low, high = ratio_bounds(at_least, known)(0.05)
    assert low == 0.0
    assert 0.5 < high < 0.6


def sample(*runs: np.ndarray) -> Sample:
    window = Window(begin_unix_s=0.0, end_unix_s=100.0, request_duration_s=1.0)
    series = [
        Series(run=str(number), values=values, at_unix_s=np.linspace(0, 99.9, len(values)), window=window)
        for number, values in enumerate(runs)
    ]
    return Sample(series=series)


def test_bounds_on_a_ratio_of_p95s_cover_as_often_as_they_claim():
    rng = np.random.default_rng(5)
    missed = [0, 0]
    for _ in range(400):
        a, b = rng.lognormal(0, 0.5, 300), 1.5 * rng.lognormal(0, 0.5, 400)
        low, high = quantile_ratio_bounds(sample(a), sample(b), 0.95)(0.05)
        missed[0] += low > 1.5
        missed[1] += high < 1.5
    assert all(4 <= count <= 28 for count in missed)  # 20 are expected, fewer where a bound is cautious


def test_a_tenfold_p95_is_seen_in_a_hundred_requests():
    rng = np.random.default_rng(6)
    a, b = rng.lognormal(0, 0.3, 100), 10 * rng.lognormal(0, 0.3, 100)
    low, high = quantile_ratio_bounds(sample(a), sample(b), 0.95)(0.001)
    assert 4 < low < 10
    assert high > 10
    turned = quantile_ratio_bounds(sample(b), sample(a), 0.95)(0.001)
    assert turned == pytest.approx((1 / high, 1 / low))


@pytest.mark.parametrize("spread", [0.0, 0.1, 0.3])
def test_pooled_runs_that_differ_widen_the_bounds_on_a_ratio(spread):
    """Every run's latencies are multiplied by a factor of its own; the deployments' true ratio is 1."""
    rng = np.random.default_rng(7)

    def pooled() -> Sample:
        return sample(*(math.exp(rng.normal(0, spread)) * rng.lognormal(0, 0.3, 300) for _ in range(4)))

    missed = 0
    for _ in range(200):
        low, high = quantile_ratio_bounds(pooled(), pooled(), 0.5)(0.05)
        missed += not low <= 1.0 <= high
    assert missed <= 36  # 20 are expected; without the variance between runs, 127 and 169 where runs differ


def test_runs_that_agree_count_as_one_long_run():
    rng = np.random.default_rng(8)
    values = rng.lognormal(0, 0.3, 300)
    one = sample(values)
    effective, freedom = sample(values, values).precision(1.0)
    assert (effective, freedom) == pytest.approx([2 * part for part in one.precision(1.0)])
