"""Policy: floats as one byte each: 256 levels, one of them exactly zero (zero point and scale).

For sparse tensors, and for those where a zero must stay one: masks, padding, frozen weights. Formula: PCCL (Keiblinger
et al., 2025, arXiv 2505.14065), with levels rounded to nearest, ties to even.
"""

import struct

import numpy as np

from atoll.codec.api import Bytes, Floats
from atoll.codec.chunk import blocks_as, largest, look_up, value_range

_HEADER = struct.Struct("<dB")  # scale, zero point
_NARROWEST = 1e-300  # below this the scale would lose bits, or be zero
_LEVELS = np.arange(256.0)


class Uint8ZeroPoint:
    """Off by at most half a scale = (max(x, 0) - min(x, 0)) / 255, and one rounding of the element type.

    Zero comes back exactly; the minimum and maximum need not, and so decoded values need not encode to the same bytes
    again. A chunk without zero spends levels on the way there: `uint8` is finer for it. A range below 1e-300 counts as
    zero. Levels beyond the largest number of the element type decode to that number.
    """

    name = "uint8-zero"
    hops = True

    def encoded_size(self, n: int) -> int:
        return _HEADER.size + n

    def encode(self, x: Floats, out: Bytes, seed: int | None = None) -> None:
        low, high = value_range(x, self.name)
        low, high = min(low, 0.0), max(high, 0.0)
        if high - low < _NARROWEST:
            out[:] = 0
            return
        scale = (high - low) / 255
        zero = round(-low / scale)
        _HEADER.pack_into(out.data, 0, scale, zero)
        for block, levels in blocks_as(np.float64, x):
            levels /= scale
            np.rint(levels, out=levels)
            levels += zero
            np.clip(levels, 0, 255, out=levels)  # 256 where the minimum and the maximum both lie on a tie
            np.copyto(out[_HEADER.size :][block], levels, casting="unsafe")

    def decode(self, buffer: Bytes, out: Floats) -> None:
        scale, zero = _HEADER.unpack_from(buffer.data)
        end = largest(out.dtype)
        with np.errstate(all="ignore"):  # 255 of the largest scale may overflow, and no encoder wrote NaN
            exact = np.clip((_LEVELS - zero) * scale, -end, end)
            look_up(exact, buffer[_HEADER.size :], out)
