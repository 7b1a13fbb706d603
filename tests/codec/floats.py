"""Element types, the gaps between their numbers, and chunks of them to encode."""

from collections.abc import Callable
from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st
from ml_dtypes import bfloat16, finfo

from atoll.codec.api import Codec

Encode = Callable[..., np.ndarray]

TYPES = [np.float16, bfloat16, np.float32, np.float64]
LARGEST = {dtype: float(finfo(dtype).max) for dtype in TYPES} | {np.float64: 8e307}  # a range must fit a float64


def ulp(value: float, dtype: type) -> Fraction:
    """Distance between neighbours of `dtype` at `value`."""
    info = finfo(dtype)
    exponent = np.frexp(abs(value))[1] - 1 if value else info.minexp
    return Fraction(2) ** (int(max(exponent, info.minexp)) - info.nmant)


@st.composite
def chunks(draw: st.DrawFn) -> np.ndarray:
    """Values over the whole range of a type, or a few neighbours of one number."""
    dtype: Any = draw(st.sampled_from(TYPES))
    number = st.floats(-LARGEST[dtype], LARGEST[dtype])
    if draw(st.booleans()):
        return np.array(draw(st.lists(number, max_size=50))).astype(dtype)
    centre = draw(st.floats(-1000, 1000))
    steps = draw(st.lists(st.integers(-400, 400), min_size=1, max_size=50))
    return np.array([centre + step * float(ulp(centre, dtype)) for step in steps]).astype(dtype)


def calls_of(codec: Codec) -> tuple[Encode, Encode, Encode]:
    """Bytes of elements, elements (how many, of which type) of bytes, and there and back."""

    def encoded(x: np.ndarray, seed: int | None = None) -> np.ndarray:
        out = np.full(codec.encoded_size(len(x)), 7, np.uint8)
        codec.encode(x, out, seed)
        return out

    def decoded(buffer: np.ndarray, n: int, dtype: Any) -> np.ndarray:
        out = np.empty(n, dtype)
        codec.decode(buffer, out)
        return out

    def round_trip(x: np.ndarray, seed: int | None = None) -> np.ndarray:
        return decoded(encoded(x, seed), len(x), x.dtype.type)

    return encoded, decoded, round_trip
