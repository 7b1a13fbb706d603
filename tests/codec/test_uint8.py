import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from ml_dtypes import bfloat16

from atoll.codec.uint8 import Uint8MinMax
from tests.codec.floats import TYPES, chunks, ulp

CODEC = Uint8MinMax()


def encoded(x: np.ndarray) -> np.ndarray:
    out = np.full(CODEC.encoded_size(len(x)), 7, np.uint8)
    CODEC.encode(x, out)
    return out


def decoded(buffer: np.ndarray, dtype: type) -> np.ndarray:
    out = np.empty(len(buffer) - 16, dtype)
    CODEC.decode(buffer, out)
    return out


@given(chunks())
def test_off_by_at_most_half_a_level_and_one_rounding(x: np.ndarray) -> None:
    back = decoded(encoded(x), x.dtype.type)
    if not len(x):
        return
    low, high = float(x.min()), float(x.max())
    rounding = ulp(max(abs(low), abs(high)), x.dtype.type) / 2
    if x.dtype == np.float64:
        rounding *= 3  # the level itself is computed in float64: a product, a sum
    bound = (Fraction(high) - Fraction(low)) / 510 + rounding * (1 + Fraction(1, 10**6))
    for before, after in zip(x.tolist(), back.tolist(), strict=True):
        assert abs(Fraction(before) - Fraction(after)) <= max(bound, Fraction(1e-300))


@given(chunks())
def test_decoded_values_encode_to_the_same_bytes(x: np.ndarray) -> None:
    once = encoded(x)
    assert encoded(decoded(once, x.dtype.type)).tobytes() == once.tobytes()


@given(chunks())
def test_the_minimum_and_maximum_come_back_exactly(x: np.ndarray) -> None:
    back = decoded(encoded(x), x.dtype.type)
    if len(x) and float(x.max()) - float(x.min()) > 1e-300:
        assert (back.min(), back.max()) == (x.min(), x.max())


def test_the_layout_is_minimum_maximum_then_one_byte_each() -> None:
    assert encoded(np.float32([2, 0, 1, 0.4])).tobytes() == struct.pack("<dd", 0, 2) + bytes([255, 0, 128, 51])


@pytest.mark.parametrize("dtype", TYPES)
def test_levels_are_computed_in_float64_and_rounded_once(dtype: Any) -> None:
    buffer = np.frombuffer(struct.pack("<dd", -3, 5) + bytes(range(256)), np.uint8)
    exact = [Fraction(-3) + Fraction(8 * q, 255) for q in range(256)]
    for value, level in zip(decoded(buffer, dtype).tolist(), exact, strict=True):
        assert (
            abs(Fraction(value) - level) <= ulp(float(level), dtype) / 2 * (1 + Fraction(1, 10**6)) + Fraction(2) ** -50
        )


def test_levels_become_bfloat16_without_a_stop_at_float32() -> None:
    just_above_a_middle = 1 + 2.0**-8 + 2.0**-40
    buffer = np.frombuffer(struct.pack("<ddB", 0, 255 * just_above_a_middle, 1), np.uint8)
    assert decoded(buffer, bfloat16).tolist() == [1 + 2.0**-7]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 3, 100_000])
def test_nan_and_infinity_are_refused_and_nothing_is_written(dtype: Any, bad: float, n: int) -> None:
    x = np.ones(n, dtype)
    x[n // 2] = bad
    out = np.full(CODEC.encoded_size(n), 7, np.uint8)
    with pytest.raises(ValueError, match="NaN, inf"):
        CODEC.encode(x, out)
    assert (out == 7).all()


def test_a_range_beyond_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="too wide"):
        encoded(np.array([-1.7e308, 1.7e308]))


@pytest.mark.filterwarnings("error")
def test_a_range_beyond_float32_works_for_float32() -> None:
    largest = np.finfo(np.float32).max
    x = np.float32([-largest, 0, largest])
    assert decoded(encoded(x), np.float32) == pytest.approx(x, abs=float(largest) / 255 * 1.001)
    assert encoded(x)[16:].tolist() == [0, 128, 255]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [0.0, -0.0, 1.5, -7.0])
def test_a_constant_chunk_is_level_zero_and_exact(dtype: Any, value: float) -> None:
    buffer = encoded(np.full(5, value, dtype))
    assert buffer[16:].tolist() == [0] * 5
    assert decoded(buffer, dtype).tolist() == [value] * 5


@pytest.mark.filterwarnings("error")
def test_a_range_too_narrow_to_divide_counts_as_constant() -> None:
    assert decoded(encoded(np.array([0.0, 5e-324])), np.float64).tolist() == [0, 0]


def test_nothing_is_a_header_alone() -> None:
    buffer = encoded(np.empty(0, np.float32))
    assert buffer.tobytes() == bytes(16)
    assert len(decoded(buffer, np.float32)) == 0


def test_all_negative_values_use_the_whole_range() -> None:
    assert encoded(np.float32([-4, -2, -3.5]))[16:].tolist() == [0, 255, 64]


@pytest.mark.parametrize("dtype", TYPES)
def test_a_long_chunk_equals_its_elements_one_by_one(dtype: Any) -> None:
    x = np.random.default_rng(5).standard_normal(100_003).astype(dtype)
    low, high = float(x.min()), float(x.max())
    expected = np.rint((x.astype(np.float64) - low) * (255 / (high - low)))
    buffer = encoded(x)
    assert buffer[16:].tolist() == expected.tolist()
    assert set(zip(buffer[16:].tolist(), decoded(buffer, dtype).tolist(), strict=True)) == {
        (q, value) for q, value in enumerate(decoded(with_every_level(low, high), dtype).tolist()) if q in expected
    }


def with_every_level(low: float, high: float) -> np.ndarray:
    return np.frombuffer(struct.pack("<dd", low, high) + bytes(range(256)), np.uint8)


@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32, np.float64])
@pytest.mark.parametrize("bounds", [(-1e308, 1e308), (np.nan, 1.0), (0.0, np.inf), (5e-324, 1e-310), (3.0, -1e200)])
def test_bounds_that_no_encoder_wrote_decode_without_a_warning(dtype: Any, bounds: tuple[float, float]) -> None:
    foreign = np.frombuffer(struct.pack("<dd", *bounds) + bytes(range(256)), np.uint8)
    out = np.empty(256, dtype)
    with np.errstate(all="raise"):
        CODEC.decode(foreign, out)
