"""Policy: floats as one byte each: the nearest of 256 levels spread evenly between the chunk's minimum and maximum."""

import struct

import numpy as np

from atoll.codec.api import Bytes, Floats
from atoll.codec.chunk import blocks_as, look_up, value_range

_HEADER = struct.Struct("<dd")  # minimum, maximum
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
        low, high = value_range(x, self.name)
        if high - low < _NARROWEST:
            _HEADER.pack_into(out.data, 0, low, low)
            out[_HEADER.size :] = 0
            return
        _HEADER.pack_into(out.data, 0, low, high)
        scale = 255 / (high - low)
        for block, levels in blocks_as(np.float64, x):
            levels -= low
            levels *= scale
            np.rint(levels, out=levels)
            np.copyto(out[_HEADER.size :][block], levels, casting="unsafe")

    def decode(self, buffer: Bytes, out: Floats) -> None:
        low, high = _HEADER.unpack_from(buffer.data)
        with np.errstate(all="ignore"):  # bounds that no encoder wrote
            exact = low + _FRACTIONS * (high - low)
            exact[-1] = high
            look_up(exact, buffer[_HEADER.size :], out)
