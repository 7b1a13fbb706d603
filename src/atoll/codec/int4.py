"""Policy: floats as 4 bits each: whole multiples, from -7 to 7, of a scale that 32 neighbours share.

For pseudo-gradients, which bear 4 bits well (Streaming DiLoCo: Douillard et al., 2025, arXiv 2501.18512, with E3M0).
Scales are bfloat16, codes multiple + 8.
"""

from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from atoll.codec.chunk import largest
from atoll.codec.rows import LARGEST, RowCodec

_MOST = 7
_ZERO = 8  # the code of 0; code 0 is never written


class Int4(RowCodec):
    """Off by at most half a scale, and one rounding of a 16-bit element type.

    The scale is a seventh of the largest size among its 32 elements, rounded up to bfloat16 (by less than a 128th of
    it, or 2**-133), or down where 7 of it would overflow the element type. Decoded float32 and float64 encode to the
    same bytes again, if that largest size is 2**-126 or more. Float64 must lie in the range of float32.

    With a seed, values go up or down at random: off by less than a scale, but right on average, to within 2**-16 of a
    scale (beyond 7 scales that were rounded down, always down). One seed draws the same numbers for every chunk: give
    each its own.
    """

    name = "int4"

    def __init__(self) -> None:
        super().__init__(32, bfloat16, np.arange(16, dtype=np.float32) - _ZERO)

    def scales(self, peaks: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.float32]:
        scales = (peaks / _MOST).astype(bfloat16)
        scales.view(np.uint16)[:] += scales.astype(peaks.dtype) * _MOST < peaks  # the least that is enough
        return np.minimum(scales.astype(np.float32), _largest_scale(dtype))

    def codes(self, ratios: NDArray[Any], draws: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        if draws is None:
            np.rint(ratios, out=ratios)
            ratios += _ZERO
        else:
            ratios += draws + np.float32(_ZERO)  # and the fraction is cut off
            np.clip(ratios, _ZERO - _MOST, _ZERO + _MOST, out=ratios)  # where the scale was rounded down
        return ratios.astype(np.uint8)


def _largest_scale(dtype: np.dtype[Any]) -> np.float32:
    """The largest bfloat16 that 7 times are still a finite number of that type."""
    seventh = np.array([min(largest(dtype), LARGEST) / _MOST], np.float32)
    found: np.float32 = (seventh.view(np.uint32) & 0xFFFF0000).view(np.float32)[0]
    return found
