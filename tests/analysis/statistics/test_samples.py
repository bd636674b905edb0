"""Percentiles of dependent samples, with intervals that cover as often as they claim."""

import numpy as np
import pytest
import scipy.stats

from analysis.statistics import samples as stats
from analysis.statistics.samples import Window

CLOCK = Window(begin_unix_s=0.0, end_unix_s=200.0, request_duration_s=1.0)


def dependent(rng, *, n=2000, correlation=0.9):
    """Lognormal values on an autoregressive path: correlated over about ten neighbours, half a lifetime."""
    path = np.empty(n)
    path[0] = rng.standard_normal()
    for at in range(1, n):
        path[at] = correlation * path[at - 1] + np.sqrt(1 - correlation**2) * rng.standard_normal()
    return np.exp(path), np.linspace(0.0, 200.0, n, endpoint=False)


def test_too_few_samples_get_no_percentile():
    rng = np.random.default_rng(0)
    at = np.linspace(0, 200, 40)
    few = stats.quantiles(rng.random(40), at, CLOCK)
    assert few.p50 is not None
    assert few.p95 is None
    assert few.p95_interval is None
    at = np.linspace(0, 200, 200)
    some = stats.quantiles(rng.random(200), at, CLOCK)
    assert some.p95 is not None
    assert some.p99 is None


def test_many_independent_samples_get_a_p99():
    at = np.linspace(0, 200, 5000)
    found = stats.quantiles(np.random.default_rng(1).random(5000), at, CLOCK)
    assert found.p99 == pytest.approx(0.99, abs=0.01)


def test_missing_values_are_left_out_of_percentiles():
    values = np.concatenate([np.full(100, np.nan), np.ones(500)])
    assert stats.quantiles(values, np.linspace(0, 200, 600), CLOCK).p95 == 1.0


def test_a_percentile_above_the_first_censored_value_is_only_a_lower_bound():
    values = np.random.default_rng(0).permutation(np.linspace(0.1, 1.0, 1000))
    censored = values > 0.96  # 44 requests ended before their first token
    found = stats.quantiles(values, np.linspace(0, 200, 1000), CLOCK, censored)
    assert found.p95 == pytest.approx(0.955, abs=0.001)
    assert found.p95_at_least is None
    assert found.p95_interval is None  # its upper end is above a censored value
    assert found.p99 is None
    assert found.p99_at_least == pytest.approx(0.991, abs=0.001)
    plain = stats.plain_quantiles(values, censored)
    assert (plain.p95, plain.p99, plain.p99_at_least) == (found.p95, None, found.p99_at_least)


def test_a_censored_value_below_a_percentile_makes_it_a_lower_bound():
    values, censored = np.linspace(0.1, 1.0, 1000), np.zeros(1000, dtype=bool)
    censored[100] = True
    found = stats.plain_quantiles(values, censored)
    assert (found.p50, found.p95, found.p99) == (None, None, None)
    assert found.p50_at_least == pytest.approx(0.55, abs=0.001)


def test_a_sample_that_is_too_small_still_gives_a_lower_bound_of_its_p95():
    true = np.exp(1.6449)
    below = 0
    for seed in range(400):
        values = np.exp(np.random.default_rng(seed).standard_normal(40))
        found = stats.quantiles(values, np.linspace(0, 200, 40), CLOCK)
        assert found.p95 is None
        assert found.p95_at_least is not None
        below += found.p95_at_least <= true
    assert below >= 0.94 * 400


def test_no_misses_in_twenty_requests_allow_a_share_of_fourteen_percent():
    assert stats.MissShare(misses=0, n=20).bounds(0.05) == (0.0, pytest.approx(0.139, abs=0.001))
    assert stats.MissShare(misses=20, n=20).bounds(0.05) == (pytest.approx(0.861, abs=0.001), 1.0)


def test_the_bounds_of_a_share_are_those_of_clopper_and_pearson_at_the_effective_size():
    exact = scipy.stats.binomtest(3, 50).proportion_ci(0.9, method="exact")
    assert stats.MissShare(misses=6, n=100, effect=2.0).bounds(0.05) == pytest.approx(exact)


def test_dependence_shrinks_the_sample():
    effects = []
    for seed in range(30):
        values, at = dependent(np.random.default_rng(seed), n=4000)
        effects.append(stats.design_effect(np.log(values), at, CLOCK))
    exact = (1 + 0.9) / (1 - 0.9)  # of an autoregressive path of first order
    assert np.median(effects) == pytest.approx(exact, rel=0.2)


def test_independent_samples_keep_their_size():
    at = np.linspace(0, 200, 5000)
    effects = [stats.design_effect(np.random.default_rng(k).random(5000), at, CLOCK) for k in range(30)]
    assert np.median(effects) < 1.3


def test_the_interval_of_a_p95_covers_it_nine_times_in_ten_although_samples_depend():
    truth = np.exp(1.6449)
    found = [stats.quantiles(*dependent(np.random.default_rng(k)), CLOCK).p95_interval for k in range(200)]
    known = [interval for interval in found if interval is not None]
    assert len(known) > 150
    covered = np.mean([low <= truth <= high for low, high in known])
    assert 0.82 <= covered <= 0.97


def test_a_drift_is_seen_and_its_absence_too():
    rng = np.random.default_rng(3)
    at = np.linspace(0, 200, 2000)
    change, p = stats.trend(1.0 + at / 200 + 0.1 * rng.standard_normal(2000), at, CLOCK)
    assert change == pytest.approx(2 / 3, rel=0.1)
    assert p < 0.001
    _, p = stats.trend(1.0 + 0.1 * rng.standard_normal(2000), at, CLOCK)
    assert p > 0.001


def test_a_stretch_that_differs_is_found_where_it_lies():
    rng = np.random.default_rng(8)
    at = np.sort(rng.uniform(CLOCK.begin_unix_s, CLOCK.end_unix_s, 2000))
    position = (at - CLOCK.begin_unix_s) / CLOCK.length_s
    slowed = (position > 0.3) & (position < 0.6)
    found = stats.clearest_stretch(np.where(slowed, 1.5, 1.0) + 0.1 * rng.standard_normal(2000), at, CLOCK)
    assert found is not None
    assert found.p < 1e-6
    assert found.change == pytest.approx(0.5, abs=0.05)
    assert (found.begin, found.end) == pytest.approx((0.3, 0.6), abs=0.06)


def test_no_stretch_of_an_even_series_is_clear():
    rng = np.random.default_rng(9)
    at = np.linspace(CLOCK.begin_unix_s, CLOCK.end_unix_s, 2000, endpoint=False)
    found = [stats.clearest_stretch(rng.standard_normal(2000) + 5.0, at, CLOCK) for _ in range(200)]
    assert sum(one is not None and one.p < 0.05 for one in found) <= 20


def test_the_warm_up_of_a_series_ends_where_it_settles():
    rng = np.random.default_rng(5)
    steady = rng.normal(1.0, 0.1, 2000)
    rising = np.concatenate([np.linspace(0.0, 1.0, 300) + rng.normal(0.0, 0.1, 300), steady])
    assert 200 <= stats.warm_up_end(rising) <= 400
    assert stats.warm_up_end(steady) <= 200
    assert stats.warm_up_end(np.ones(3)) == 0
