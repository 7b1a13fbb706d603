from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import finfo

from atoll import codec
from atoll.codec.e3m0 import E3M0
from tests.codec.floats import TYPES, calls_of, chunks, ulp

CODEC = E3M0()
FLOAT32_MAX = float(np.finfo(np.float32).max)
LEVELS = [Fraction(0), *(Fraction(2) ** level for level in range(-6, 1))]


encoded, decoded, round_trip = calls_of(CODEC)


def codes_of(buffer: np.ndarray, n: int) -> list[int]:
    pairs = buffer[4 * -(-n // 256) :]
    return [code for pair in pairs.tolist() for code in (pair % 16, pair // 16)][:n]


def within_float32(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -FLOAT32_MAX, FLOAT32_MAX) if x.dtype == np.float64 else x


inputs = chunks().map(within_float32)


def exact(x: np.ndarray) -> list[Fraction]:
    """In units of the scale, which is the largest size as a float32."""
    values = [Fraction(value) for value in x.tolist()]
    scale = Fraction(float(np.float32(max(map(abs, x.astype(np.float64).tolist()), default=0.0))))
    return [value / scale if scale else Fraction(0) for value in values]


def test_it_is_found_by_its_name() -> None:
    found = codec.get("e3m0")
    assert isinstance(found, E3M0)
    assert not found.hops


@given(inputs)
def test_levels_are_the_nearest_by_ratio(x: np.ndarray) -> None:
    for value, code in zip(exact(x), codes_of(encoded(x), len(x)), strict=True):
        level = code % 8
        assert (code >= 8) == (value < 0 and level > 0)
        size = abs(value)
        slack = 1 + Fraction(1, 2**20)  # the ratio is rounded to a float32, and so is the root of two
        if level:
            assert LEVELS[level] ** 2 <= 2 * (size * slack) ** 2
        if level < 7:
            upper = LEVELS[level + 1]
            assert 2 * (size / slack) ** 2 <= upper**2


@given(inputs)
def test_off_by_at_most_the_root_of_two(x: np.ndarray) -> None:
    dtype = x.dtype.type
    peak = max(map(abs, x.astype(np.float64).tolist()), default=0.0)
    if peak < 2.0**-110:
        return  # beyond what a float32 can tell apart
    for before, after in zip(x.tolist(), round_trip(x).tolist(), strict=True):
        if abs(before) >= peak / 64:
            rounding = ulp(float(before), dtype)
            assert abs(Fraction(after)) ** 2 <= 2 * (abs(Fraction(before)) * (1 + Fraction(1, 2**20)) + rounding) ** 2
            assert 2 * (abs(Fraction(after)) + rounding) ** 2 * (1 + Fraction(1, 2**18)) >= Fraction(before) ** 2
            assert after == 0 or (after > 0) == (before > 0)


@given(inputs, st.integers(-(2**70), 2**70))
def test_with_a_seed_it_is_one_of_the_levels_around(x: np.ndarray, seed: int) -> None:
    buffer = encoded(x, seed)
    assert buffer.tobytes() == encoded(x, seed).tobytes()
    for value, code in zip(exact(x), codes_of(buffer, len(x)), strict=True):
        size, level = min(abs(value), Fraction(1)), code % 8  # beyond 1 where the scale was rounded down to a float32
        slack = 1 + Fraction(1, 2**20)
        assert size <= (LEVELS[level + 1] if level < 7 else 1) * slack
        assert level == 0 or LEVELS[level - 1] <= size * slack


@given(inputs)
def test_what_is_decoded_encodes_to_the_same_bytes(x: np.ndarray) -> None:
    x = x.astype(np.float32)
    if max(map(abs, x.tolist()), default=0.0) >= 2.0**-110:
        assert encoded(round_trip(x)).tobytes() == encoded(x).tobytes()


def test_the_layout_is_scales_then_two_elements_a_byte() -> None:
    x = np.float32([4, -4, 2, 0, -0.0625])  # 1, -1, 1/2, 0, -1/64 of the scale
    assert encoded(x).tobytes().hex() == "00008040" + "f7" + "06" + "09"
    two_rows = encoded(np.float32([0] * 256 + [1]))
    assert two_rows.tobytes().hex() == "00000000" + "0000803f" + "00" * 128 + "07"


@pytest.mark.parametrize(("n", "size"), [(0, 0), (1, 5), (2, 5), (256, 132), (257, 137), (25_600, 13_200)])
def test_an_element_takes_four_bits_and_an_eighth(n: int, size: int) -> None:
    assert CODEC.encoded_size(n) == size


def test_the_least_sizes_become_nothing() -> None:
    x = np.float32([1, 2.0**-6.4, 2.0**-6.6, -(2.0**-6.4), -(2.0**-6.6)])
    assert round_trip(x).tolist() == [1, 2.0**-6, 0, -(2.0**-6), 0]


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [0.3, 0.004, -0.7, 0.9, -0.001])
def test_with_a_seed_it_is_right_on_average(dtype: Any, value: float) -> None:
    """Means of 2,000 draws, within four standard errors."""
    x = np.full((2000, 256), value).astype(dtype)
    x[:, 0] = 1
    back = round_trip(x.reshape(-1), seed=11).reshape(x.shape)[:, 1].astype(np.float64)
    wanted = float(x[0, 1])
    lower = max([0.0, *(2.0**k for k in range(-6, 1) if 2.0**k <= abs(wanted))])
    upper = min(2.0**k for k in range(-6, 1) if 2.0**k > abs(wanted))
    deviation = np.sqrt((abs(wanted) - lower) * (upper - abs(wanted)) / len(back))
    assert abs(back.mean() - wanted) < 4 * deviation + 2.0**-16


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", [0, 1, 2, 255, 256, 257, 1000, 70_003])
def test_nothing_beyond_its_room_is_touched(dtype: Any, n: int, seed: int | None) -> None:
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    room = np.full(CODEC.encoded_size(n) + 8, 77, np.uint8)
    CODEC.encode(x, room[4:-4], seed)  # scales are float32
    assert set(room[:4].tolist() + room[-4:].tolist()) == {77}
    assert room[4:-4].tobytes() == encoded(x, seed).tobytes()
    back = np.full(n + 2, 77, dtype)
    CODEC.decode(room[4:-4], back[1:-1])
    assert (back[0], back[-1]) == (77, 77)
    assert back[1:-1].tobytes() == decoded(encoded(x, seed), n, dtype).tobytes()


@pytest.mark.parametrize("dtype", TYPES)
def test_a_long_chunk_equals_its_rows_one_by_one(dtype: Any) -> None:
    n = 70_003
    x = (np.random.default_rng(5).standard_normal(n) * np.repeat(2.0 ** np.arange(-8, 8), 4400)[:n]).astype(dtype)
    whole = round_trip(x)
    apart = np.concatenate([round_trip(x[i : i + 256]) for i in range(0, n, 256)])
    assert whole.tobytes() == apart.tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zeros_have_scale_zero_and_stay_zeros(dtype: Any, value: float, seed: int | None) -> None:
    x = np.full(267, value, dtype)
    assert encoded(x, seed).tobytes() == bytes(8 + 134)
    assert round_trip(x, seed).tobytes() == np.zeros(267, dtype).tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TYPES)
def test_the_largest_and_the_least_numbers_stay_what_they_are(dtype: Any) -> None:
    most = min(float(finfo(dtype).max), FLOAT32_MAX)
    x = np.array([most, -most, 0], dtype)
    assert round_trip(x).tolist() == x.tolist()
    least = np.array([max(float(finfo(dtype).smallest_subnormal), 2.0**-149)], dtype)
    assert round_trip(least).tolist() == least.tolist()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 33, 100_000])
def test_nan_and_infinity_are_refused_and_nothing_is_written(bad: float, n: int) -> None:
    x = np.ones(n, np.float32)
    x[n - 1] = bad
    out = np.full(CODEC.encoded_size(n), 7, np.uint8)
    with pytest.raises(ValueError, match=r"e3m0 .* NaN, inf"):
        CODEC.encode(x, out)
    assert (out == 7).all()


def test_float64_beyond_float32_is_refused() -> None:
    with pytest.raises(ValueError, match=r"e3m0 .* range of float32"):
        encoded(np.array([1, np.nextafter(FLOAT32_MAX, np.inf)]))


@pytest.mark.filterwarnings("error")
@given(st.sampled_from(TYPES), st.integers(0, 600), st.data())
def test_any_bytes_decode_to_something_and_always_the_same(dtype: Any, n: int, data: st.DataObject) -> None:
    size = CODEC.encoded_size(n)
    buffer = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    room = np.full(n + 2, 77, dtype)
    CODEC.decode(buffer, room[1:-1])
    assert (room[0], room[-1]) == (77, 77)
    assert room[1:-1].tobytes() == decoded(buffer, n, dtype).tobytes()


def test_with_a_seed_the_bytes_are_the_same_on_every_machine() -> None:
    x = np.linspace(-1, 1, 37, dtype=np.float32)
    first = encoded(x, 5).tobytes()
    assert first == encoded(x, 5).tobytes() != encoded(x, 6).tobytes()
    assert first.hex() == "0000803feffffefeeeeeeecdac20545555666667677707"
