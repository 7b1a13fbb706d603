"""The statistics agree with closed forms and with tables from elsewhere."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.rng import stream
from atoll.workload.fit.stats import (
    cv_of,
    digamma,
    gamma_by_likelihood,
    ks_distance,
    quantiles,
    spearman,
    trigamma,
)

EULER = 0.57721566490153286


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (1, -EULER),
        (0.5, -EULER - 2 * math.log(2)),
        (0.25, -EULER - math.pi / 2 - 3 * math.log(2)),
        (3, 1.5 - EULER),
        (50, sum(1 / k for k in range(1, 50)) - EULER),
    ],
)
def test_digamma_at_known_places(x: float, expected: float) -> None:
    assert digamma(x) == pytest.approx(expected, abs=1e-9)


def test_trigamma_at_known_places() -> None:
    assert trigamma(1) == pytest.approx(math.pi**2 / 6, abs=1e-8)
    assert trigamma(0.5) == pytest.approx(math.pi**2 / 2, abs=1e-8)


@pytest.mark.parametrize("shape", [0.25, 1.0, 5.0])
def test_the_fit_finds_the_gamma_values_were_drawn_from(shape: float) -> None:
    values = stream(0, "gamma").gamma(shape, 3.0, 200_000)
    assert gamma_by_likelihood(values) == pytest.approx((shape, 3.0), rel=0.02)


def test_likelihood_is_highest_at_the_fit() -> None:
    values = stream(0, "few").lognormal(0, 1, 50)

    def log_likelihood(shape: float, scale: float) -> float:
        each = (shape - 1) * np.log(values) - values / scale - shape * math.log(scale) - math.lgamma(shape)
        return float(each.sum())

    shape, scale = gamma_by_likelihood(values)
    best = log_likelihood(shape, scale)
    for factor in (0.99, 1.01):
        assert log_likelihood(shape * factor, scale) < best
        assert log_likelihood(shape, scale * factor) < best


def test_values_all_the_same_are_as_even_as_can_be() -> None:
    shape, scale = gamma_by_likelihood(np.full(9, 2.0))
    assert shape > 1e6
    assert shape * scale == pytest.approx(2.0)
    assert math.isnan(cv_of(np.array([1.0])))
    assert math.isnan(cv_of(np.zeros(5)))


def test_distances_of_small_samples() -> None:
    assert ks_distance([1, 2, 3], [1, 2, 3]) == 0
    assert ks_distance([1, 2], [3, 4]) == 1
    assert ks_distance([1, 1, 1, 2], [1, 2]) == pytest.approx(0.25)
    assert math.isnan(ks_distance([], [1]))


samples = st.lists(st.integers(-5, 5), min_size=1, max_size=20)


@settings(deadline=None)
@given(a=samples, b=samples)
def test_a_distance_is_the_largest_gap_at_any_value(a: list[int], b: list[int]) -> None:
    gaps = [abs(sum(x <= v for x in a) / len(a) - sum(x <= v for x in b) / len(b)) for v in range(-6, 7)]
    assert ks_distance(a, b) == pytest.approx(max(gaps), abs=1e-12)


def test_rank_correlation() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 1000]) == pytest.approx(1)
    assert spearman([1, 2, 3], [3, 2, 1]) == pytest.approx(-1)
    # By hand, with ties: ranks 1, 2.5, 2.5, 4 and 2, 1, 3, 4.
    assert spearman([1, 5, 5, 9], [4, 2, 6, 8]) == pytest.approx(3 / math.sqrt(4.5 * 5))
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3]))


def test_quantiles_are_the_values_where_they_are_few() -> None:
    assert quantiles(np.array([3, 1, 2]), 5) == (1, 2, 3)
    assert quantiles(np.arange(1000), 10) == tuple(range(50, 1000, 100))
