"""Distributions of lengths from the buckets of a histogram: known ones are found again."""

import random

import numpy as np
import pytest

from analysis.production.buckets import Buckets, added
from analysis.production.length_fit import fit_lengths, length_values
from loadtest.simulator.metrics import token_buckets
from loadtest.workload.distributions import Distribution

BOUNDS = np.array([*token_buckets(32768), np.inf])


def counted(lengths: list[int], bounds: np.ndarray = BOUNDS) -> Buckets:
    bucket = np.searchsorted(bounds, lengths)
    counts = np.bincount(bucket, minlength=len(bounds)).astype(np.float64)
    return Buckets(upper=bounds, counts=counts, total=float(sum(lengths)))


def drawn(text: str, count: int = 4000, seed: int = 1) -> list[int]:
    rng = random.Random(seed)
    return [Distribution.parse(text).draw_count(rng) for _ in range(count)]


@pytest.mark.parametrize(
    "text", ["lognormal:512,0.6", "lognormal:3000,0.2", "lognormal:90,2", "exp:300", "100-900", "10-20"]
)
def test_the_distribution_behind_a_histogram_is_found_again(text: str) -> None:
    fitted, true = fit_lengths(counted(drawn(text))), Distribution.parse(text)
    assert fitted.distribution.kind == true.kind
    assert fitted.distribution.mean == pytest.approx(true.mean, rel=0.12)
    assert fitted.distribution.b == pytest.approx(true.b, rel=0.1)
    assert Distribution.parse(fitted.text).mean == pytest.approx(fitted.distribution.mean, rel=0.01)
    assert fitted.fits
    assert fitted.distance < 0.02


def test_the_spread_is_found_as_often_as_its_likelihood_says() -> None:
    """With 200 requests the CV of a lognormal is known to about 7 %: no bias beyond a third of that."""
    found = [fit_lengths(counted(drawn("lognormal:400,0.8", 200, seed))).distribution for seed in range(30)]
    assert {one.kind for one in found} <= {"lognormal", "exp"}
    spread = np.array([one.b for one in found if one.kind == "lognormal"])
    assert len(spread) > 25
    assert spread.mean() == pytest.approx(0.8, rel=0.07)


def test_lengths_of_two_kinds_of_requests_are_said_to_fit_nothing() -> None:
    fitted = fit_lengths(counted(drawn("lognormal:40,0.4") + drawn("lognormal:4000,0.3")))
    assert not fitted.fits
    assert fitted.distance > 0.1


def test_one_length_is_fixed_and_its_spread_is_not_seen() -> None:
    fitted = fit_lengths(counted([400] * 300))
    assert (fitted.text, fitted.one_bucket, fitted.fits) == ("400", True, True)


@pytest.mark.parametrize("text", ["lognormal:512,0.6", "exp:300", "100-900"])
def test_values_from_buckets_have_the_mean_and_the_spread_of_those_counted(text: str) -> None:
    lengths = drawn(text)
    buckets = counted(lengths)
    values = length_values(buckets, fit_lengths(buckets), 2000)
    assert values.mean() == pytest.approx(np.mean(lengths), rel=1e-3)
    assert np.std(values) == pytest.approx(np.std(lengths), rel=0.05)


def test_values_of_a_histogram_that_nothing_fits_still_have_its_mean() -> None:
    lengths = drawn("20-25", 1000) + drawn("3000-3500", 500)
    buckets = counted(lengths)
    values = length_values(buckets, fit_lengths(buckets), 3000)
    assert values.mean() == pytest.approx(np.mean(lengths), rel=1e-3)
    assert np.mean(values <= 50) == pytest.approx(2 / 3, abs=0.01)


def test_histograms_with_other_bounds_are_added_on_those_that_both_have() -> None:
    one, other = counted(drawn("100-900", 500)), counted(drawn("100-900", 300), BOUNDS[[*range(8), -1]])
    both = added([one, other])
    assert both.upper.tolist() == other.upper.tolist()
    assert both.n == 800
    assert both.mean == pytest.approx((one.total + other.total) / 800)
    assert both.counts[-1] == one.counts[8:].sum() + other.counts[-1]


def test_a_limit_between_two_bounds_leaves_the_number_above_it_open() -> None:
    buckets = Buckets(upper=np.array([1.0, 2.5, np.inf]), counts=np.array([10.0, 6.0, 4.0]), total=30.0)
    assert buckets.above(1.0) == (10.0, 10.0, 10.0)
    assert buckets.above(2.0) == (4.0, pytest.approx(6.0), 10.0)
    assert buckets.above(9.0) == (0.0, 4.0, 4.0)
