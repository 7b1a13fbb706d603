"""Policy: floats as 4 bits each: a sign and a power of two, relative to the largest of 256 neighbours.

The exchange of Streaming DiLoCo (Douillard et al., 2025, arXiv 2501.18512): 3 bits of exponent, none of mantissa.
Scales are float32; a code is a level from 0 to 7, and 8 more where it is negative. Level L > 0 is 2**(L - 7) of the
scale, level 0 is zero.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.codec.rows import RowCodec

_LEVELS = 7
_NEGATIVE = np.uint8(8)
_MANTISSA_BITS = 23
_ONE = np.int32(127 << _MANTISSA_BITS)  # float32 1.0, as bits
_ROOT_HALF = np.int32(np.array(0.5**0.5, np.float32).view(np.int32))
_SIZES = np.array([0.0, *(2.0**level for level in range(1 - _LEVELS, 1))], np.float32)  # by level


class E3M0(RowCodec):
    """Off by at most a factor of the root of two, down to 2**-6.5 of the largest size among 256 neighbours; what is
    smaller becomes 0. Float64 must lie in the range of float32.

    With a seed, values go to one of the two levels around them at random, so that they are right on average, to within
    2**-16 of the higher one. One seed draws the same numbers for every chunk: give each its own.
    """

    name = "e3m0"

    def __init__(self) -> None:
        super().__init__(256, np.float32, np.concatenate([_SIZES, -_SIZES]))

    def scales(self, peaks: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.float32]:
        return peaks.astype(np.float32)

    def codes(self, ratios: NDArray[Any], draws: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        sizes = np.minimum(np.abs(ratios).astype(np.float32), np.float32(1))
        levels = _nearest(sizes) if draws is None else _either(sizes, draws)
        levels |= ((ratios < 0) & (levels > 0)) * _NEGATIVE
        return levels


def _nearest(sizes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Of sizes from 0 to 1, by ratio: a power of two up to the root of two around it."""
    octaves = (sizes.view(np.int32) - _ROOT_HALF) >> _MANTISSA_BITS  # how often it halves from 1 on, below 0
    levels: NDArray[np.uint8] = np.clip(octaves + _LEVELS, 0, _LEVELS).astype(np.uint8)
    return levels


def _either(sizes: NDArray[np.float32], draws: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One of the two levels around each, the nearer the likelier."""
    lower: NDArray[np.int32] = np.clip(((sizes.view(np.int32) - _ONE) >> _MANTISSA_BITS) + _LEVELS, 0, _LEVELS)
    floor, ceiling = _SIZES[lower], _SIZES[np.minimum(lower + 1, _LEVELS)]
    lower += draws * (ceiling - floor) < sizes - floor
    return lower.astype(np.uint8)
