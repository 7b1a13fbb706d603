"""Lengths follow the laws they say, within their bounds, and take one number from their stream each."""

import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.rng import stream
from atoll.workload.generate.lengths import AnyLengths, Empirical, Geometric, Joint, LogNormal, Zipf


def drawn(law: AnyLengths, n: int = 20_000) -> np.ndarray:
    rng = stream(0, "lengths")
    return np.array([law.draw(rng) for _ in range(n)])


def test_zipf_is_the_whole_law_with_the_rest_rejected() -> None:
    got = np.bincount(drawn(Zipf(1.5, 6)), minlength=7)[1:] / 20_000
    weights = np.array([k**-1.5 for k in range(1, 7)])
    assert got == pytest.approx(weights / weights.sum(), abs=4 * math.sqrt(0.25 / 20_000))


def test_a_geometric_number_of_turns_has_its_mean_and_its_tail() -> None:
    got = drawn(Geometric(3.0), 40_000)
    assert got.min() == 1
    assert got.mean() == pytest.approx(3.0, rel=0.03)
    assert (got > 10).mean() == pytest.approx((2 / 3) ** 10, rel=0.15)
    cut = np.bincount(drawn(Geometric(3.0, high=3)), minlength=4)[1:] / 20_000
    assert cut == pytest.approx(np.array([9, 6, 4]) / 19, abs=0.015)


def test_a_log_normal_is_cut_as_if_drawn_again() -> None:
    law = LogNormal(100, 0.8, low=50, high=150)
    got = drawn(law)
    assert got.min() == 50
    assert got.max() == 150
    normal = NormalDist()
    below = [normal.cdf(math.log(k / 100) / 0.8) for k in (49.5, 80.5, 150.5)]
    assert (got <= 80).mean() == pytest.approx((below[1] - below[0]) / (below[2] - below[0]), abs=0.015)


def test_answers_go_with_their_prompts() -> None:
    law = Joint([1, 100, 1000], [Empirical([1]), Empirical([2, 4]), Empirical([3])])
    assert [law.given(n).values for n in (1, 99, 100, 999, 1000, 10**9)] == [(1,), (1,), (2, 4), (2, 4), (3,), (3,)]
    assert law.given(0).values == (1,)


laws = st.one_of(
    st.builds(LogNormal, st.just(40.0), st.floats(0, 1e6), st.integers(1, 40), st.integers(40, 1 << 20)),
    st.builds(LogNormal, st.just(40.0), st.floats(0, 1e-6), st.integers(1, 40), st.integers(40, 1 << 20)),
    st.builds(Zipf, st.floats(1.001, 900), st.integers(1, 3000)),
    st.builds(Empirical, st.just((7,))),
    st.builds(Geometric, st.floats(1, 1e300), st.integers(1, 1 << 20)),
)


@settings(deadline=None)
@given(law=laws, seed=st.integers(0, 99))
def test_any_law_stays_in_its_bounds_and_takes_one_number_a_draw(law: AnyLengths, seed: int) -> None:
    rng, twin = stream(seed, "law"), stream(seed, "law")
    for _ in range(5):
        assert getattr(law, "low", 1) <= law.draw(rng) <= getattr(law, "high", 7)
    twin.random(5)
    assert rng.random() == twin.random()


def test_the_smallest_bound_never_loops() -> None:
    for law in (Zipf(1.1, 1), Zipf(1.1, 2), Geometric(3.0, 1), LogNormal(1, 5.0, 1, 1)):
        assert set(drawn(law, 200)) <= {1, 2}
