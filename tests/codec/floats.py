"""Element types, the gaps between their numbers, and chunks of them to encode."""

from fractions import Fraction
from typing import Any

import numpy as np
from hypothesis import strategies as st
from ml_dtypes import bfloat16, finfo

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
