"""Draws follow the distribution they should, and depend on seed and place alone."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.endpoint.api import Sampling
from atoll.serve.sampling import draw, likeliest, log_probabilities

LOGITS = np.array([2.0, 1.0, 0.5, 0.0, -1.0, -3.0, 1.0], np.float32)
DRAWS = 4000


def shares(sampling: Sampling, said=(), banned=()) -> np.ndarray:
    counts = np.zeros(len(LOGITS))
    for place in range(DRAWS):
        counts[draw(LOGITS, sampling, place, list(said), banned)] += 1
    return counts / DRAWS


def expected(logits: np.ndarray, temperature: float, allowed: np.ndarray) -> np.ndarray:
    weights = np.where(allowed, np.exp(logits.astype(float) / temperature), 0)
    return weights / weights.sum()


PROBABILITIES = np.exp(LOGITS) / np.exp(LOGITS).sum()
RANK = np.argsort(np.argsort(-LOGITS, kind="stable"), kind="stable")


@pytest.mark.parametrize(
    ("sampling", "temperature", "allowed"),
    [
        (Sampling(), 1.0, RANK >= 0),
        (Sampling(temperature=0.5), 0.5, RANK >= 0),
        (Sampling(temperature=2.0), 2.0, RANK >= 0),
        (Sampling(top_k=3), 1.0, RANK < 3),
        (Sampling(top_k=100), 1.0, RANK >= 0),
        (Sampling(top_p=0.6), 1.0, RANK < 2),
        (Sampling(top_p=0.01), 1.0, RANK < 1),
        (Sampling(min_p=0.3), 1.0, 0.3 * PROBABILITIES.max() <= PROBABILITIES),
        (Sampling(top_k=4, top_p=0.9), 1.0, RANK < 4),
    ],
)
def test_draws_follow_the_distribution(sampling, temperature, allowed):
    wanted = expected(LOGITS, temperature, allowed)
    np.testing.assert_array_less(abs(shares(sampling) - wanted), 4 * np.sqrt(wanted * (1 - wanted) / DRAWS) + 1e-9)


def test_penalties_and_bias_shift_logits():
    sampling = Sampling(presence_penalty=1.0, frequency_penalty=0.5, bias={3: 2.0})
    shifted = LOGITS.copy()
    shifted[0] -= 1.0 + 2 * 0.5
    shifted[1] -= 1.0 + 0.5
    shifted[3] += 2.0
    wanted = expected(shifted, 1.0, RANK >= 0)
    found = shares(sampling, said=[0, 1, 0])
    np.testing.assert_array_less(abs(found - wanted), 4 * np.sqrt(wanted * (1 - wanted) / DRAWS))


def test_what_is_banned_is_never_drawn():
    assert shares(Sampling(), banned={0, 6})[[0, 6]].sum() == 0
    assert draw(LOGITS, Sampling(temperature=0), 0, [], {0}) == 1


@pytest.mark.parametrize("temperature", [0, 1])
def test_what_is_banned_is_drawn_where_nothing_else_is_possible(temperature):
    row = np.full(8, -np.inf, np.float32)
    row[3] = 1
    assert draw(row, Sampling(temperature=temperature), 0, [], {3, 4}) == 3


def test_temperature_0_takes_the_likeliest_and_of_equals_the_first():
    assert draw(LOGITS, Sampling(temperature=0), 0, []) == 0
    assert draw(LOGITS[1:], Sampling(temperature=0, bias={1: 0.5, 0: 0.0}), 0, []) == 0


def test_almost_no_temperature_is_none():
    for temperature in (1e-300, 1e-44, 1e-6):
        assert {draw(LOGITS, Sampling(temperature=temperature), place, []) for place in range(20)} == {0}


def test_the_same_seed_and_place_draw_the_same():
    first = [draw(LOGITS, Sampling(seed=7), place, []) for place in range(50)]
    assert first == [draw(LOGITS, Sampling(seed=7), place, []) for place in range(50)]
    assert first != [draw(LOGITS, Sampling(seed=8), place, []) for place in range(50)]


def test_a_large_vocabulary_is_looked_at_whole_where_it_must_be():
    flat = np.zeros(50_000, np.float32)
    drawn = {draw(flat, Sampling(top_p=0.99), place, []) for place in range(200)}
    assert max(drawn) > 10_000


@given(st.lists(st.integers(-3, 3), min_size=1, max_size=40), st.integers(0, 45))
def test_the_likeliest_are_those_of_a_stable_sort(values, n):
    wanted = sorted(range(len(values)), key=lambda i: (-values[i], i))[:n]
    assert likeliest(np.array(values, np.float32), n) == wanted


def test_log_probabilities_are_those_of_the_softmax():
    np.testing.assert_allclose(log_probabilities(LOGITS), np.log(PROBABILITIES), rtol=1e-5)
    assert (log_probabilities(np.array([200.0, -200.0], np.float32)) <= 0).all()
