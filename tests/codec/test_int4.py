from bisect import bisect_left
from fractions import Fraction
from math import floor
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ml_dtypes import bfloat16, finfo

from atoll import codec
from atoll.codec.int4 import Int4
from atoll.rng import stream
from tests.codec.floats import TYPES, calls_of, chunks, ulp

CODEC = Int4()
SIZES = [0, 1, 2, 31, 32, 33, 1000]
FLOAT32_MAX = float(np.finfo(np.float32).max)
LARGEST = {dtype: min(float(finfo(dtype).max), FLOAT32_MAX) for dtype in TYPES}
BFLOAT16 = np.arange(0x7F80, dtype=np.uint16).view(bfloat16).astype(np.float64).tolist()  # from 0 up, by their bits


encoded, decoded, round_trip = calls_of(CODEC)


def rows_of(x: np.ndarray) -> list[list[Fraction]]:
    return [[Fraction(value) for value in x[i : i + 32].tolist()] for i in range(0, len(x), 32)]


def scale_bits(row: list[Fraction], dtype: type) -> int:
    """Of the least bfloat16 that reaches the row's largest in 7 steps, or of the largest that fits 7 times."""
    enough = bisect_left(BFLOAT16, max(map(abs, row)) / 7)
    return enough if enough < len(BFLOAT16) and 7 * BFLOAT16[enough] <= LARGEST[dtype] else enough - 1


def nearest(value: Fraction, scale: Fraction) -> int:
    """Tried one by one; the even one of two as near, and 0 where all are."""
    return min(range(-7, 8), key=lambda level: (abs(value - level * scale), level % 2, abs(level)))


def layout(scales: list[int], levels: list[int]) -> bytes:
    codes = [level + 8 for level in levels] + [8] * (len(levels) % 2)
    pairs = [first + 16 * second for first, second in zip(codes[::2], codes[1::2], strict=True)]
    return b"".join(bits.to_bytes(2, "little") for bits in scales) + bytes(pairs)


def codes_of(buffer: np.ndarray, n: int) -> list[int]:
    pairs = buffer[2 * -(-n // 32) :]
    return [code for pair in pairs.tolist() for code in (pair % 16, pair // 16)][:n]


def within_float32(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -FLOAT32_MAX, FLOAT32_MAX) if x.dtype == np.float64 else x


@st.composite
def of_one_size(draw: st.DrawFn) -> np.ndarray:
    """Numbers up to some size from the least to the largest of a type."""
    dtype: Any = draw(st.sampled_from(TYPES))
    size = 2.0 ** draw(st.integers(max(int(finfo(dtype).minexp) - 60, -1073), int(np.log2(LARGEST[dtype])) - 1))
    return (np.array(draw(st.lists(st.floats(-2, 2), max_size=70))) * size).astype(dtype)


inputs = st.one_of(chunks().map(within_float32), of_one_size())


def test_it_is_found_by_its_name() -> None:
    found = codec.get("int4")
    assert isinstance(found, Int4)
    assert not found.hops


@given(inputs)
def test_scales_reach_the_largest_and_levels_are_the_nearest(x: np.ndarray) -> None:
    scales, levels = [], []
    for row in rows_of(x):
        bits = scale_bits(row, x.dtype.type)
        scales.append(bits)
        levels += [nearest(value, Fraction(BFLOAT16[bits])) for value in row]
    assert encoded(x).tobytes() == layout(scales, levels)


@given(inputs)
def test_off_by_at_most_half_a_scale_and_one_rounding(x: np.ndarray) -> None:
    dtype = x.dtype.type
    back = round_trip(x).tolist()
    for number, row in enumerate(rows_of(x)):
        peak = max(map(abs, row))
        scale = peak / 7 * (1 + Fraction(1, 128)) + Fraction(2) ** -133
        rounding = ulp(float(peak), dtype) / 2 if x.itemsize == 2 else 0
        for before, after in zip(row, back[32 * number :], strict=False):
            assert abs(before - Fraction(after)) <= scale / 2 + rounding


@given(inputs, st.integers(-(2**70), 2**70))
def test_with_a_seed_it_is_one_of_the_levels_around(x: np.ndarray, seed: int) -> None:
    buffer = encoded(x, seed)
    assert buffer.tobytes() == encoded(x, seed).tobytes()
    codes = codes_of(buffer, len(x))
    assert buffer[: 2 * -(-len(x) // 32)].tobytes() == encoded(x)[: 2 * -(-len(x) // 32)].tobytes()
    for number, row in enumerate(rows_of(x)):
        scale = Fraction(BFLOAT16[scale_bits(row, x.dtype.type)])
        for value, code in zip(row, codes[32 * number :], strict=False):
            exact = value / scale if scale else Fraction(0)
            assert 1 <= code <= 15
            assert abs(code - 8 - exact) < 1 + Fraction(1, 2**16)
            if exact.denominator == 1:
                assert code - 8 == exact


@given(inputs)
def test_decoded_float32_and_float64_encode_to_the_same_bytes(x: np.ndarray) -> None:
    x = x.astype(np.float32) if x.itemsize == 2 else x
    peaks = [float(max(map(abs, row))) for row in rows_of(x)]
    if all(peak == 0 or peak >= 2.0**-126 for peak in peaks):
        assert encoded(round_trip(x)).tobytes() == encoded(x).tobytes()


def test_the_layout_is_scales_then_two_elements_a_byte() -> None:
    assert encoded(np.float32([7, -7, 1, 0, 2.4])).tobytes().hex() == "803f" + "1f898a"  # scale 1: 7|-7, 1|0, 2|padding
    two_rows = encoded(np.float32([0] * 32 + [-14, 4]))
    assert two_rows.tobytes().hex() == "0000" + "0040" + "88" * 16 + "a1"


def test_the_scale_is_rounded_up_so_that_nothing_is_cut_off() -> None:
    assert encoded(np.float32([7.001]))[:2].tobytes().hex() == "813f"  # 1 + 2**-7
    assert encoded(np.float64([7 + 2.0**-50]))[:2].tobytes().hex() == "813f"


def test_ties_go_to_even() -> None:
    x = np.float32([7, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, 6.5])
    assert round_trip(x).tolist() == [7, 0, 2, 2, 0, -2, -2, 6]


def test_with_a_seed_the_bytes_are_the_same_on_every_machine() -> None:
    x = np.linspace(-1, 1, 37, dtype=np.float32)
    assert encoded(x, 5).tobytes().hex() == "133e133e2132333444556677779899a9abcbccdddeee8f"


def test_draws_are_sixteen_bits_each_of_the_stream_of_the_seed() -> None:
    x = np.random.default_rng(6).standard_normal(100_001)  # float32 would round a sum in a million across a level
    words = stream(3, "codec", "int4").bit_generator.random_raw(25_008)
    draws = [word >> shift & 0xFFFF for word in words.tolist() for shift in (0, 16, 32, 48)]
    scales = np.repeat(encoded(x)[: 2 * 3126].view(bfloat16).astype(np.float64), 32)[: len(x)]
    expected = [floor(v / s + (2 * d + 1) / 2**17) + 8 for v, s, d in zip(x.tolist(), scales, draws, strict=False)]
    assert codes_of(encoded(x, 3), len(x)) == expected


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [0.3, 2.5, -2.5, 6.9, -0.001])
def test_with_a_seed_it_is_right_on_average(dtype: Any, value: float) -> None:
    x = np.full((4096, 32), value).astype(dtype)
    x[:, 0] = 7  # a scale of 1
    back = round_trip(x.reshape(-1), seed=11).reshape(x.shape)[:, 1:].astype(np.float64)
    exact = float(x[0, 1])
    deviation = np.sqrt((exact % 1) * (1 - exact % 1) / back.size)
    assert abs(back.mean() - exact) < 5 * deviation + 2.0**-16


def test_seeds_draw_unrelated_numbers() -> None:
    x = np.full(32 * 1000, 0.5, np.float32)
    x[::32] = 7
    ups = [np.array(codes_of(encoded(x, seed), len(x))).reshape(-1, 32)[:, 1:].reshape(-1) - 8 for seed in (0, 1, 2)]
    assert (np.abs(np.corrcoef(ups) - np.eye(3)) < 0.03).all()  # five standard deviations


@pytest.mark.parametrize(
    ("n", "size"), [(0, 0), (1, 3), (2, 3), (31, 18), (32, 18), (33, 21), (1000, 564), (3200, 1800)]
)
def test_an_element_takes_four_bits_and_a_half(n: int, size: int) -> None:
    assert CODEC.encoded_size(n) == size


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("n", SIZES)
def test_nothing_beyond_its_room_is_touched(dtype: Any, n: int, seed: int | None) -> None:
    x = np.random.default_rng(n).standard_normal(n).astype(dtype)
    room = np.full(CODEC.encoded_size(n) + 2, 77, np.uint8)
    CODEC.encode(x, room[1:-1], seed)
    assert (room[0], room[-1]) == (77, 77)
    assert room[1:-1].tobytes() == encoded(x, seed).tobytes()
    back = np.full(n + 2, 77, dtype)
    CODEC.decode(room[1:-1], back[1:-1])
    assert (back[0], back[-1]) == (77, 77)
    assert back[1:-1].tobytes() == decoded(encoded(x, seed), n, dtype).tobytes()


@pytest.mark.parametrize("seed", [None, 9])
@pytest.mark.parametrize("dtype", TYPES)
def test_a_long_chunk_equals_its_rows_one_by_one(dtype: Any, seed: int | None) -> None:
    n = 70_003
    x = (np.random.default_rng(5).standard_normal(n) * np.repeat(2.0 ** np.arange(-8, 8), 4400)[:n]).astype(dtype)
    whole = encoded(x, seed)
    back = decoded(whole, n, dtype)
    starts = range(0, n, 32)
    if seed is None:
        apart = [encoded(x[i : i + 32]) for i in starts]
        assert whole.tobytes() == b"".join(a[:2].tobytes() for a in apart) + b"".join(a[2:].tobytes() for a in apart)
    pairs = whole[2 * len(starts) :]
    for i in (*starts[:3], *starts[1020:1030], *starts[-3:]):
        row = np.concatenate([whole[i // 16 : i // 16 + 2], pairs[i // 2 : i // 2 + 16]])
        assert decoded(row, len(x[i : i + 32]), dtype).tobytes() == back[i : i + 32].tobytes()


@pytest.mark.parametrize("cut", [32, 96, 32_768, 32_800])
def test_with_a_seed_draws_depend_on_the_place_alone(cut: int) -> None:
    x = np.random.default_rng(5).standard_normal(70_003).astype(np.float32)
    assert codes_of(encoded(x[:cut], 4), cut) == codes_of(encoded(x, 4), len(x))[:cut]


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("dtype", TYPES)
def test_the_largest_numbers_stay_finite(dtype: Any, seed: int | None) -> None:
    x = np.tile(np.array([LARGEST[dtype], -LARGEST[dtype]], dtype), 2000)  # 7.01 to 7.04 of the scales that fit
    assert round_trip(x, seed).astype(np.float64) == pytest.approx(x.astype(np.float64), rel=0.01)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", [None, 1])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("value", [0.0, -0.0])
def test_zeros_have_scale_zero_and_stay_zeros(dtype: Any, value: float, seed: int | None) -> None:
    x = np.full(67, value, dtype)
    assert encoded(x, seed).tobytes() == bytes(6) + bytes([0x88] * 34)
    assert round_trip(x, seed).tobytes() == np.zeros(67, dtype).tobytes()


@pytest.mark.parametrize("dtype", TYPES)
def test_zeros_beside_large_numbers_stay_zeros(dtype: Any) -> None:
    x = np.array([0, 100, 0, -3, 0], dtype)
    assert round_trip(x, seed=2)[::2].tolist() == [0, 0, 0]


@pytest.mark.filterwarnings("error")
def test_the_least_numbers_have_the_least_scale() -> None:
    assert encoded(np.float32([2.0**-149])).tobytes() == bytes([1, 0, 0x88])
    assert round_trip(np.float32([7 * 2.0**-133, 2.0**-133])).tolist() == [7 * 2.0**-133, 2.0**-133]
    assert encoded(np.float64([5e-324])).tobytes() == bytes([1, 0, 0x88])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("n", [1, 33, 100_000])
def test_nan_and_infinity_are_refused_and_nothing_is_written(dtype: Any, bad: float, n: int) -> None:
    x = np.ones(n, dtype)
    x[n - 1] = bad
    out = np.full(CODEC.encoded_size(n), 7, np.uint8)
    with pytest.raises(ValueError, match=r"int4 .* NaN, inf"):
        CODEC.encode(x, out)
    assert (out == 7).all()


@pytest.mark.parametrize("sign", [1, -1])
def test_float64_beyond_float32_is_refused_and_nothing_is_written(sign: int) -> None:
    out = np.full(CODEC.encoded_size(2), 7, np.uint8)
    with pytest.raises(ValueError, match=r"int4 .* range of float32"):
        CODEC.encode(sign * np.array([1, np.nextafter(FLOAT32_MAX, np.inf)]), out)
    assert (out == 7).all()


@pytest.mark.parametrize("dtype", TYPES)
def test_every_code_is_a_multiple_of_the_scale_rounded_once(dtype: Any) -> None:
    scale = 1 + 77 * 2.0**-7
    bits = np.array([scale], bfloat16).view(np.uint8)
    pairs = np.array([i + 16 * (15 - i) for i in range(16)], np.uint8)
    back = decoded(np.concatenate([bits, pairs]), 32, dtype).tolist()
    for i in range(16):
        for value, code in ((back[2 * i], i), (back[2 * i + 1], 15 - i)):
            exact = (code - 8) * Fraction(scale)
            assert abs(Fraction(value) - exact) <= (ulp(float(exact), dtype) / 2 if dtype is bfloat16 else 0)


@pytest.mark.filterwarnings("error")
@given(st.sampled_from(TYPES), st.integers(0, 100), st.data())
def test_any_bytes_decode_to_something_and_always_the_same(dtype: Any, n: int, data: st.DataObject) -> None:
    size = CODEC.encoded_size(n)
    buffer = np.frombuffer(data.draw(st.binary(min_size=size, max_size=size)), np.uint8)
    room = np.full(n + 2, 77, dtype)
    CODEC.decode(buffer, room[1:-1])
    assert (room[0], room[-1]) == (77, 77)
    assert room[1:-1].tobytes() == decoded(buffer, n, dtype).tobytes()


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("dtype", TYPES)
def test_every_scale_decodes_with_every_code(dtype: Any) -> None:
    scales = np.arange(1 << 16, dtype=np.uint16)
    pairs = np.tile(np.arange(16, dtype=np.uint8) * 0x11, 1 << 16)
    back = decoded(np.concatenate([scales.view(np.uint8), pairs]), 1 << 21, dtype).astype(np.float64)
    with np.errstate(all="ignore"):
        exact = np.outer(scales.view(bfloat16).astype(np.float64), np.arange(16) - 8.0)
        expected = np.repeat(exact.astype(np.float32).astype(dtype).astype(np.float64), 2)
    np.testing.assert_array_equal(back, expected)
