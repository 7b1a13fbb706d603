"""A gradient as one byte: how far off it may be, what it can't say, and the same bits everywhere."""

import hashlib
import math

import numpy as np
import pytest

from atoll.train.one_byte.code import FACTOR, MOST, ByteCode, FloatCode

RNG = np.random.default_rng(0)
GIVEN = np.exp(RNG.uniform(-7.9, 7.8, 100_000)) * RNG.choice([-1.0, 1.0], 100_000)


def there_and_back(code: ByteCode, numbers: object, seed: int = 0) -> np.ndarray:
    data = code.encode(numbers, np.random.default_rng(seed))
    return code.decode(data)


def test_a_number_is_one_byte() -> None:
    assert len(ByteCode().encode(GIVEN, RNG)) == GIVEN.size


def test_what_comes_back_is_within_six_and_a_half_percent() -> None:
    assert np.abs(there_and_back(ByteCode(), GIVEN) / GIVEN - 1).max() <= 0.065


def test_stochastic_rounding_is_right_on_average() -> None:
    back = there_and_back(ByteCode(stochastic=True), GIVEN)
    assert np.abs(back / GIVEN - 1).max() <= FACTOR - 1
    assert abs((back / GIVEN).mean() - 1) < 0.003


def test_stochastic_rounding_of_what_is_below_the_range_is_right_on_average_too() -> None:
    least = math.exp(-63 / 8)
    back = there_and_back(ByteCode(stochastic=True), np.full(100_000, 0.3 * least))
    assert np.unique(back) == pytest.approx([0.0, least])
    assert back.mean() == pytest.approx(0.3 * least, rel=0.03)


@pytest.mark.parametrize("nothing", [0.0, -0.0, math.nan, math.inf, -math.inf, 1e-9])
@pytest.mark.parametrize("stochastic", [False, True])
def test_nothing_and_what_is_no_number_are_byte_zero(nothing: float, stochastic: bool) -> None:
    code = ByteCode(stochastic=stochastic)
    assert code.encode([nothing], np.random.default_rng(3)) == b"\0"
    assert code.decode(b"\0").tolist() == [0.0]


def test_what_is_beyond_the_range_is_its_end() -> None:
    code = ByteCode()
    assert code.encode([1e9, -1e9], RNG) == bytes([127, 255])
    assert code.decode(bytes([127, 255])) == pytest.approx([math.exp(63 / 8), -math.exp(63 / 8)])


def test_every_byte_comes_back_as_itself() -> None:
    code = ByteCode(reference=3.0)
    every = bytes(b for b in range(256) if b & 127)
    for stochastic in (False, True):
        assert ByteCode(3.0, stochastic).encode(code.decode(every), RNG) == every


def test_sizes_are_those_of_the_sheet_and_the_same_bits_on_every_machine() -> None:
    values = ByteCode().decode(bytes(range(1, MOST + 1)))
    assert values == pytest.approx([math.exp((level - 64) / 8) for level in range(1, MOST + 1)], rel=1e-12)
    # Written down once: products of float64 are fixed by IEEE 754.
    assert hashlib.sha256(values.astype("<f8").tobytes()).hexdigest()[:16] == "fa06fd20e0018041"


def test_floats_travel_for_comparison() -> None:
    code = FloatCode()
    assert code.decode(code.encode([1.5, math.nan, -2.0], RNG)).tolist() == [1.5, 0.0, -2.0]
