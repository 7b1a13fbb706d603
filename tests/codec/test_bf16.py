from bisect import bisect_right

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16

from atoll.codec.bf16 import Bfloat16

TYPES = [np.float16, bfloat16, np.float32, np.float64]
CODEC = Bfloat16()

# Every bfloat16 from 0 up, in the order of its bits; the last stands for infinity, the value rounding takes it for.
POSITIVE = [*np.arange(0x7F80, dtype=np.uint16).view(bfloat16).astype(np.float64).tolist(), 2.0**128]


def nearest(value: float) -> int:
    """Bits of the bfloat16 nearest to a positive `value`, found by search."""
    if value >= POSITIVE[-1]:
        return 0x7F80
    below = bisect_right(POSITIVE, value) - 1
    middle = (POSITIVE[below] + POSITIVE[below + 1]) / 2
    if value == middle:
        return below + below % 2
    return below + (value > middle)


def encoded(x: np.ndarray) -> np.ndarray:
    out = np.empty(CODEC.encoded_size(len(x)), np.uint8)
    CODEC.encode(x, out)
    return out


def decoded(buffer: np.ndarray, dtype: type) -> np.ndarray:
    out = np.empty(len(buffer) // 2, dtype)
    CODEC.decode(buffer, out)
    return out


def bits(x: np.ndarray) -> list[int]:
    return encoded(x).view(np.uint16).tolist()


@given(st.floats(min_value=0, allow_infinity=False, width=32))
def test_float32_rounds_to_the_nearest(value: float) -> None:
    assert bits(np.array([value, -value], np.float32)) == [nearest(value), nearest(value) | 0x8000]


@given(st.floats(min_value=0, allow_infinity=False))
def test_float64_rounds_to_the_nearest(value: float) -> None:
    assert bits(np.array([value, -value])) == [nearest(value), nearest(value) | 0x8000]


@given(st.integers(0, 0x7F7F), st.sampled_from([-1, 0, 1]))
def test_float64_next_to_a_middle_goes_to_its_own_side(lower: int, side: int) -> None:
    middle = (POSITIVE[lower] + POSITIVE[lower + 1]) / 2
    value = np.nextafter(middle, np.inf * side) if side else middle
    assert bits(np.array([value])) == [nearest(value)]


def test_ties_go_to_even() -> None:
    ulp = 2.0**-7
    assert decoded(encoded(np.float32([1 + ulp / 2, 1 + 3 * ulp / 2])), np.float32).tolist() == [1, 1 + 2 * ulp]


@pytest.mark.parametrize("dtype", TYPES)
def test_small_integers_survive_in_every_type(dtype: type) -> None:
    x = np.arange(-256, 257).astype(dtype)
    assert decoded(encoded(x), dtype).tolist() == x.tolist()


@pytest.mark.filterwarnings("error")
def test_nan_and_infinities_pass() -> None:
    back = decoded(encoded(np.array([np.nan, np.inf, -np.inf, 1e300])), np.float64)
    np.testing.assert_array_equal(back, [np.nan, np.inf, -np.inf, np.inf])


def test_every_bfloat16_comes_back_with_its_own_bits() -> None:
    finite = np.arange(0x7F80, dtype=np.uint16).view(bfloat16)
    for dtype in (bfloat16, np.float32, np.float64):
        assert bits(finite.astype(dtype)) == list(range(0x7F80))


def test_nothing_takes_no_bytes() -> None:
    assert CODEC.encoded_size(0) == 0
    assert len(decoded(encoded(np.empty(0, np.float32)), np.float32)) == 0


def test_the_buffer_may_start_at_an_odd_address() -> None:
    room = np.empty(9, np.uint8)
    CODEC.encode(np.float32([1, 2, 3, 4]), room[1:])
    assert decoded(room[1:], np.float32).tolist() == [1, 2, 3, 4]


@pytest.mark.parametrize("dtype", TYPES)
def test_foreign_bytes_decode_without_a_warning(dtype: type) -> None:
    every = np.arange(1 << 16, dtype=np.uint16).view(np.uint8)
    with np.errstate(all="raise"):
        values = decoded(every, dtype)
    assert np.isnan(values.astype(np.float32)).sum() == 2 * 127
