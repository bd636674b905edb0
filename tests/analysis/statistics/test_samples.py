"""Definitions by hand-worked examples; intervals by how often they cover."""

import numpy as np
import pytest

from analysis.levels import definitions as metrics
from analysis.statistics import samples as stats
from analysis.statistics.samples import Window


def test_ttft_counts_from_the_bytes_sent_to_the_first_chunk():
    found = metrics.ttft_s(sent_s=np.array([0.2, 0.2]), first_chunk_s=np.array([0.5, np.nan]))
    assert found[0] == pytest.approx(0.3)
    assert np.isnan(found[1])


def test_time_to_first_answer_skips_reasoning():
    assert metrics.ttfa_s(sent_s=np.array([0.1]), first_answer_s=np.array([2.1])) == pytest.approx([2.0])


def test_tpot_leaves_out_the_tokens_of_the_first_chunk():
    found = metrics.tpot_s(
        first_chunk_s=np.array([1.0, 1.0, 1.0, 1.0]),
        last_chunk_s=np.array([3.0, 3.0, 1.0, 3.0]),
        output_tokens=np.array([11.0, 11.0, 1.0, np.nan]),
        first_chunk_tokens=np.array([1.0, 3.0, 1.0, 1.0]),
    )
    assert found[:2] == pytest.approx([0.2, 0.25])
    assert np.isnan(found[2:]).all()


def test_decode_rate_is_one_over_tpot():
    found = metrics.decode_tok_s(np.array([0.02, 0.0, np.nan]))
    assert found[0] == 50.0
    assert np.isnan(found[1:]).all()


def test_gaps_are_itl_only_where_each_chunk_is_one_token():
    found = metrics.chunks_are_tokens(
        chunks=np.array([3.0, 3.0, 3.0]), output_tokens=np.array([3.0, 4.0, np.nan])
    )
    assert found.tolist() == [True, False, False]


def test_in_flight_counts_the_part_of_each_request_inside_the_window():
    found = metrics.mean_in_flight(
        begin_unix_s=np.array([0.0, 5.0, 20.0]), end_unix_s=np.array([15.0, 8.0, 30.0]), window=(10.0, 20.0)
    )
    assert found == pytest.approx(0.5)


def test_tokens_arrive_evenly_between_first_and_last():
    times = {"first_unix_s": np.array([10.0]), "last_unix_s": np.array([20.0]), "tokens": np.array([11.0])}
    assert metrics.tokens_by(9.0, **times).tolist() == [0.0]
    assert metrics.tokens_by(10.0, **times).tolist() == [1.0]
    assert metrics.tokens_by(15.0, **times) == pytest.approx([6.0])
    assert metrics.tokens_by(99.0, **times) == pytest.approx([11.0])


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
