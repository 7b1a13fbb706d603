"""The same names give the same numbers, on every machine and whatever else is drawn."""

import hashlib
import math
from statistics import NormalDist

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.rng import normal, signs, stream

MANY = normal((7, "many"), 400_000).astype(float)


def test_a_stream_is_the_same_on_every_machine_and_hash_seed() -> None:
    # Written down once; the interpreter's hash seed differs between runs of this test.
    assert stream(1, "a", 2).bit_generator.random_raw(2).tolist() == [0x579AE8C4705922F5, 0xD21FF384AA5008C7]


def test_normals_are_the_same_to_the_bit_on_every_machine() -> None:
    digest = hashlib.sha256(normal((1, "a"), 1_000_000).astype("<f4").tobytes()).hexdigest()
    assert digest == "bf6b67c1cb66b91654e502d505f901ccf8bdea3189c5bdc972eff8c0cc510a75"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ((0, "a"), (1, "a")),
        ((0, "a"), (0, "b")),
        ((0, "a"), (0, "a", "")),
        ((0, "ab", "c"), (0, "a", "bc")),
        ((0, "1"), (0, 1)),
        ((0, "a1:b"), (0, "a", "b")),
        ((0, 1, 23), (0, 12, 3)),
        ((0, -1), (0, 1)),
        ((0, 2**64), (0, 0)),
    ],
)
def test_different_names_give_unrelated_numbers(one: tuple, other: tuple) -> None:
    a, b = stream(*one).random(4096), stream(*other).random(4096)
    assert abs(np.corrcoef(a, b)[0, 1]) < 0.08  # five standard deviations
    assert abs(np.corrcoef(normal(one, 4096), normal(other, 4096))[0, 1]) < 0.08


def test_drawing_from_one_stream_does_not_shift_another() -> None:
    quiet = stream(3, "b").random(5)
    beside, b = stream(3, "a"), stream(3, "b")
    shared = []
    for _ in range(5):
        beside.random(9)
        shared.append(b.random())
    assert shared == quiet.tolist()


def test_a_stream_and_normals_of_one_name_do_not_share_bits() -> None:
    words = stream(5, "x").bit_generator.random_raw(4096)
    angles = np.arctan(np.divide(*normal((5, "x"), 8192).reshape(-1, 2).T[::-1])) / math.pi
    assert abs(np.corrcoef((words >> np.uint64(32)).astype(np.uint32).view(np.int32), angles)[0, 1]) < 0.08


@settings(deadline=None)
@given(st.integers(0, 40_000), st.integers(0, 40_000))
def test_any_slice_of_the_normals_can_be_made_alone(offset: int, n: int) -> None:
    np.testing.assert_array_equal(normal((7, "many"), n, offset=offset), MANY[offset : offset + n])


def test_normals_come_in_the_shape_and_type_asked_for() -> None:
    flat = normal((1,), 24)
    assert flat.dtype == np.float32
    np.testing.assert_array_equal(normal((1,), (2, 3, 4)).reshape(-1), flat)
    np.testing.assert_array_equal(normal((1,), 24, np.float64), flat.astype(np.float64))
    assert normal((1,), ()).shape == ()
    assert normal((1,), (0, 3)).shape == (0, 3)


def test_normals_follow_the_normal_distribution() -> None:
    n = MANY.size
    cdf = np.array([NormalDist().cdf(x) for x in np.sort(MANY)])
    distance = np.abs(cdf - (np.arange(n) + 0.5) / n).max()
    assert distance < 1.95 / math.sqrt(n)  # Kolmogorov-Smirnov at 0.1 %
    expected = n * 2 * NormalDist().cdf(-4)
    assert abs((np.abs(MANY) > 4).sum() - expected) < 4 * math.sqrt(expected)


@pytest.mark.parametrize("lag", [1, 2, 8])
def test_neighbouring_normals_are_independent(lag: int) -> None:
    bound = 4.5 / math.sqrt(MANY.size)
    for power in (1, 2):  # squares: two normals of one pair share their radius before the angle
        powered = MANY**power
        assert abs(np.corrcoef(powered[lag:], powered[:-lag])[0, 1]) < bound


def test_signs_are_the_same_on_every_machine_and_fair() -> None:
    found = signs((1, "a"), 100_000)
    assert found[:8].tolist() == [1, -1, 1, -1, -1, 1, -1, -1]
    assert set(np.unique(found)) == {-1.0, 1.0}
    assert abs(found.mean()) < 4.5 / math.sqrt(found.size)
    for lag in (1, 64, 256):
        assert abs((found[lag:] * found[:-lag]).mean()) < 4.5 / math.sqrt(found.size)


@settings(deadline=None)
@given(st.integers(0, 2000), st.integers(0, 2000))
def test_any_slice_of_the_signs_can_be_made_alone(offset: int, n: int) -> None:
    np.testing.assert_array_equal(signs((7,), n, offset=offset), signs((7,), 4000)[offset : offset + n])
