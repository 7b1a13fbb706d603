import struct
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from atoll import codec
from atoll.codec.uint8_zero import Uint8ZeroPoint
from tests.codec.floats import LARGEST, TYPES, chunks, ulp

CODEC = Uint8ZeroPoint()
SIZES = [0, 1, 2, 31, 32, 33, 1000]


def encoded(x: np.ndarray) -> np.ndarray:
    out = np.full(CODEC.encoded_size(len(x)), 7, np.uint8)
    CODEC.encode(x, out)
    return out


def decoded(buffer: np.ndarray, dtype: type) -> np.ndarray:
    out = np.empty(len(buffer) - 9, dtype)
    CODEC.decode(buffer, out)
    return out


def buffer_of(scale: float, zero: int, levels: bytes) -> np.ndarray:
    return np.frombuffer(struct.pack("<dB", scale, zero) + levels, np.uint8)


def span(x: np.ndarray) -> Fraction:
    """From the minimum to the maximum, with zero."""
    values = [0.0, *x.tolist()]
    return Fraction(max(values)) - Fraction(min(values))


def test_it_is_found_by_its_name() -> None:
    found = codec.get("uint8-zero")
    assert isinstance(found, Uint8ZeroPoint)
    assert found.hops


@given(chunks())
def test_off_by_at_most_half_a_scale_and_one_rounding(x: np.ndarray) -> None:
    back = decoded(encoded(x), x.dtype.type)
    if not len(x):
        return
    rounding = ulp(float(np.abs(x).max()), x.dtype.type) / 2
    if x.dtype == np.float64:
        rounding *= 4  # scale and level are themselves computed in float64
    bound = span(x) / 510 * (1 + Fraction(1, 10**12)) + rounding * (1 + Fraction(1, 10**6))
    for before, after in zip(x.tolist(), back.tolist(), strict=True):
        assert abs(Fraction(before) - Fraction(after)) <= max(bound, Fraction(1e-300))


@given(chunks())
def test_zeros_stay_zeros_and_no_value_changes_sign(x: np.ndarray) -> None:
    x = np.append(x, np.array([0, -0.0], x.dtype))
    back = decoded(encoded(x), x.dtype.type)
    assert (back[x == 0] == 0).all()
    assert (back[x > 0] >= 0).all()
    assert (back[x < 0] <= 0).all()


@given(chunks())
def test_what_is_larger_stays_no_smaller(x: np.ndarray) -> None:
    back = decoded(encoded(np.sort(x)), x.dtype.type)
    assert back.tolist() == sorted(back.tolist())


@given(chunks())
def test_levels_follow_the_formula_one_by_one(x: np.ndarray) -> None:
    values = x.tolist()
    low, high = min([0.0, *values]), max([0.0, *values])
    scale = (high - low) / 255 if high - low >= 1e-300 else 0.0
    zero = round(-low / scale) if scale else 0
    levels = [min(max(round(value / scale) + zero, 0), 255) if scale else 0 for value in values]
    assert encoded(x).tobytes() == struct.pack("<dB", scale, zero) + bytes(levels)


def test_the_layout_is_scale_zero_point_then_one_byte_each() -> None:
    assert encoded(np.float32([2, 0, 1, 0.4])).tobytes() == struct.pack("<dB", 2 / 255, 0) + bytes([255, 0, 128, 51])
    assert encoded(np.float32([-51, 204, 0, 0.5, 1.5])).tobytes().hex() == "000000000000f03f" + "33" + "00ff333335"


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("zero", [0, 1, 128, 255])
def test_levels_are_computed_in_float64_and_rounded_once(dtype: Any, zero: int) -> None:
    scale = 8 / 255
    exact = [(q - zero) * Fraction(scale) for q in range(256)]
    for value, level in zip(decoded(buffer_of(scale, zero, bytes(range(256))), dtype).tolist(), exact, strict=True):
        assert (
            abs(Fraction(value) - level) <= ulp(float(level), dtype) / 2 * (1 + Fraction(1, 10**6)) + Fraction(2) ** -50
        )


def test_levels_become_bfloat16_without_a_stop_at_float32() -> None:
    just_above_a_middle = 1 + 2.0**-8 + 2.0**-40
    assert decoded(buffer_of(just_above_a_middle, 0, b"\1"), bfloat16).tolist() == [1 + 2.0**-7]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 3, 100_000])
def test_nan_and_infinity_are_refused_and_nothing_is_written(dtype: Any, bad: float, n: int) -> None:
    x = np.ones(n, dtype)
    x[n // 2] = bad
    out = np.full(CODEC.encoded_size(n), 7, np.uint8)
    with pytest.raises(ValueError, match=r"uint8-zero .* NaN, inf"):
        CODEC.encode(x, out)
    assert (out == 7).all()


def test_a_range_beyond_float64_is_refused() -> None:
    with pytest.raises(ValueError, match="too wide"):
        encoded(np.array([-1.7e308, 1.7e308]))


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", [np.float16, bfloat16, np.float32])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("beyond_zero", [0, 0.4, 0.6, 1.4])
def test_the_largest_numbers_stay_finite(dtype: Any, sign: int, beyond_zero: float) -> None:
    largest = LARGEST[dtype]
    x = np.array([sign * largest, -sign * largest / 255 * beyond_zero]).astype(dtype)
    assert decoded(encoded(x), dtype).astype(float) == pytest.approx(x.astype(float), abs=largest / 500)


@pytest.mark.filterwarnings("error")
def test_the_largest_float64_stays_finite() -> None:
    for largest in [np.finfo(np.float64).max, -np.finfo(np.float64).max]:
        assert decoded(encoded(np.array([largest])), np.float64) == pytest.approx([largest])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [1.5, -7.0, 0.1])
def test_a_constant_chunk_is_its_own_end_of_the_range(dtype: Any, value: float) -> None:
    x = np.full(5, value, dtype)
    buffer = encoded(x)
    assert buffer[9:].tolist() == [255 if value > 0 else 0] * 5
    assert decoded(buffer, dtype).tolist() == pytest.approx(x.tolist(), rel=1e-15)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zeros_are_zero_bytes(dtype: Any, value: float) -> None:
    buffer = encoded(np.full(5, value, dtype))
    assert buffer.tobytes() == bytes(14)
    assert decoded(buffer, dtype).tolist() == [0] * 5


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("value", [5e-324, -1e-310, 9e-301])
def test_a_range_too_narrow_to_divide_counts_as_zero(value: float) -> None:
    assert decoded(encoded(np.array([0, value])), np.float64).tolist() == [0, 0]


@pytest.mark.filterwarnings("error")
def test_the_least_numbers_of_the_smaller_types_survive() -> None:
    for dtype in (np.float16, bfloat16, np.float32):
        x = np.array([0, 1, -1, 3], dtype) * np.nextafter(np.array(0, dtype), np.array(1, dtype))
        assert decoded(encoded(x), dtype).tolist() == x.tolist()


def test_nothing_is_a_header_alone() -> None:
    buffer = encoded(np.empty(0, np.float32))
    assert buffer.tobytes() == bytes(9)
    assert len(decoded(buffer, np.float32)) == 0


def test_ties_at_both_ends_stay_within_a_byte() -> None:
    buffer = encoded(np.float64([-1.5, 253.5, 0]))
    assert buffer.tobytes() == struct.pack("<dB", 1, 2) + bytes([0, 255, 2])  # unclipped, 253.5 would be 254 + 2
    assert decoded(buffer, np.float64).tolist() == [-2, 253, 0]


def test_a_tie_goes_to_the_even_level() -> None:
    x = np.float32([255 * 49, 73.5, 24.5, 122.5])  # 1.5, 0.5 and 2.5 scales; times 1 / 49 the first falls short of it
    assert encoded(x)[9:].tolist() == [255, 2, 0, 2]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", SIZES)
def test_nothing_beyond_its_room_is_touched(dtype: Any, n: int) -> None:
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    room = np.full(CODEC.encoded_size(n) + 2, 77, np.uint8)
    CODEC.encode(x, room[1:-1])
    assert (room[0], room[-1], len(room)) == (77, 77, n + 11)
    assert room[1:-1].tobytes() == encoded(x).tobytes()
    back = np.full(n + 2, 77, dtype)
    CODEC.decode(room[1:-1], back[1:-1])
    assert (back[0], back[-1]) == (77, 77)
    assert back[1:-1].astype(float) == pytest.approx(x.astype(float), abs=float(span(x)) / 500 + 0.01)


@pytest.mark.parametrize("dtype", TYPES)
def test_a_long_chunk_equals_its_elements_one_by_one(dtype: Any) -> None:
    x = np.random.default_rng(5).standard_normal(100_003).astype(dtype)
    low, high = float(x.min()), float(x.max())
    scale = (high - low) / 255
    zero = round(-low / scale)
    buffer = encoded(x)
    assert buffer[:9].tobytes() == struct.pack("<dB", scale, zero)
    assert buffer[9:].tolist() == (np.rint(x.astype(np.float64) / scale) + zero).tolist()
    table = decoded(buffer_of(scale, zero, bytes(range(256))), dtype)
    assert decoded(buffer, dtype).tobytes() == table[buffer[9:]].tobytes()


@pytest.mark.filterwarnings("error")
@given(st.sampled_from(TYPES), st.binary(min_size=9, max_size=60))
def test_any_bytes_decode_to_something_and_always_the_same(dtype: Any, data: bytes) -> None:
    buffer = np.frombuffer(data, np.uint8)
    assert decoded(buffer, dtype).tobytes() == decoded(buffer, dtype).tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("scale", [np.nan, np.inf, -np.inf, 1.7e308, -1.7e308, 5e-324, -1.0])
def test_scales_that_no_encoder_writes_decode_to_something(dtype: Any, scale: float) -> None:
    back = decoded(buffer_of(scale, 3, bytes(range(256))), dtype)
    assert np.isfinite(back.astype(np.float64)).all() == np.isfinite(scale)
