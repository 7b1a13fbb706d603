"""Policy: floats as one byte each: the nearest of 256 levels spread evenly between the chunk's minimum and maximum."""

import struct
from collections.abc import Iterator

import numpy as np
from ml_dtypes import bfloat16

from atoll.codec.api import Bytes, Floats
from atoll.codec.bf16 import narrowed

_HEADER = struct.Struct("<dd")  # minimum, maximum
_BLOCK = 1 << 15  # elements; a block's float64 scratch stays in the processor's cache
_NARROWEST = 1e-300  # below this 255 / (maximum - minimum) would overflow
_FRACTIONS = np.arange(256) / 255


class Uint8MinMax:
    """Off by at most (max - min) / 510 and one rounding of the element type; the minimum and maximum come back exactly.

    Decoded values encode to the same bytes again. A range below 1e-300 counts as constant.
    """

    name = "uint8"
    hops = True

    def encoded_size(self, n: int) -> int:
        return _HEADER.size + n

    def encode(self, x: Floats, out: Bytes, seed: int | None = None) -> None:
        low, high = _range(x)
        if high - low < _NARROWEST:
            _HEADER.pack_into(out.data, 0, low, low)
            out[_HEADER.size :] = 0
            return
        _HEADER.pack_into(out.data, 0, low, high)
        scale = 255 / (high - low)
        scratch = np.empty(min(len(x), _BLOCK))
        for block in _blocks(len(x)):
            values = x[block]
            levels = scratch[: len(values)]
            np.copyto(levels, values)
            levels -= low
            levels *= scale
            np.rint(levels, out=levels)
            np.copyto(out[_HEADER.size :][block], levels, casting="unsafe")

    def decode(self, buffer: Bytes, out: Floats) -> None:
        low, high = _HEADER.unpack_from(buffer.data)
        exact = low + _FRACTIONS * (high - low)
        exact[-1] = high
        table = (narrowed(exact) if out.dtype == bfloat16 else exact).astype(out.dtype)
        levels = buffer[_HEADER.size :]
        for block in _blocks(len(out)):
            np.take(table, levels[block], out=out[block], mode="clip")  # "raise" would buffer `out`


def _range(x: Floats) -> tuple[float, float]:
    """Minimum and maximum, (0, 0) of nothing; ValueError where they bound no finite range."""
    if not len(x):
        return 0.0, 0.0
    lows, highs = [], []
    for block in _blocks(len(x)):
        values = x[block] if x.itemsize > 2 else x[block].astype(np.float32)  # 16-bit types compare one by one
        lows.append(values.min())
        highs.append(values.max())
    low, high = float(np.min(lows)) + 0.0, float(np.max(highs)) + 0.0  # + 0.0: a minimum of -0.0 or 0.0 is one header
    if not np.isfinite(high - low):
        raise ValueError(
            "uint8 needs finite values whose range fits a float64; the tensor has NaN, inf or too wide a range"
        )
    return low, high


def _blocks(n: int) -> Iterator[slice]:
    return (slice(start, start + _BLOCK) for start in range(0, n, _BLOCK))
