"""Policy: floats as 4 bits each: a sign and a power of two, relative to the largest of 256 neighbours.

The exchange of Streaming DiLoCo (Douillard et al., 2025, arXiv 2501.18512): 3 bits of exponent, none of mantissa.
Layout: a float32 scale for each 256 elements; then two elements a byte, the first in the low bits, each a level from 0
to 7 and 8 more where it is negative. Level L > 0 is 2**(L - 7) of the scale, level 0 is zero.
"""

import numpy as np
from numpy.typing import NDArray

from atoll.codec import rows
from atoll.codec.api import Bytes, Floats
from atoll.codec.chunk import BLOCK, blocks, blocks_as, largest, value_range
from atoll.rng import stream

_ROW = 256
_SCALE = np.dtype(np.float32)
_LEVELS = 7
_NEGATIVE = np.uint8(8)
_MANTISSA_BITS = 23
_ONE = np.int32(127 << _MANTISSA_BITS)  # float32 1.0, as bits
_ROOT_HALF = np.int32(np.array(0.5**0.5, np.float32).view(np.int32))
_VALUES = np.array([0.0, *(2.0**level for level in range(1 - _LEVELS, 1))], np.float32)
_VALUES = np.concatenate([_VALUES, -_VALUES])  # by code
_PAIRS = np.stack([_VALUES[np.arange(256) % 16], _VALUES[np.arange(256) // 16]], axis=1)  # by byte
_LARGEST = largest(np.float32)


class E3M0:
    """Off by at most a factor of the root of two, down to 2**-6.5 of the largest size among 256 neighbours; what is
    smaller becomes 0. Float64 must lie in the range of float32.

    With a seed, values go to one of the two levels around them at random, so that they are right on average, to within
    2**-16 of the higher one. One seed draws the same numbers for every chunk: give each its own.
    """

    name = "e3m0"
    hops = False

    def encoded_size(self, n: int) -> int:
        return rows.encoded_size(n, _ROW, _SCALE)

    def encode(self, x: Floats, out: Bytes, seed: int | None = None) -> None:
        low, high = value_range(x, self.name)
        if max(-low, high) > _LARGEST:
            raise ValueError(f"{self.name} needs values of at most {_LARGEST:.4g} in size, the range of float32")
        all_scales, all_pairs = rows.parts(out, len(x), _ROW, _SCALE)
        random = None if seed is None else stream(seed, "codec", self.name)
        for block, values in blocks_as(np.float64 if x.dtype == np.float64 else np.float32, x):
            ratios = rows.in_rows(values, _ROW)
            scales = rows.peaks(ratios).astype(np.float32)
            all_scales[rows.shared(block, _ROW)] = scales
            ratios /= np.where(scales > 0, scales, np.float32(1))[:, np.newaxis]  # a row without scale has only zeros
            sizes = np.minimum(np.abs(ratios.reshape(-1)).astype(np.float32), np.float32(1))
            codes = _nearest(sizes) if random is None else _either(sizes, rows.uniform(random, len(sizes)))
            codes |= ((ratios.reshape(-1) < 0) & (codes > 0)) * _NEGATIVE
            pairs = all_pairs[rows.shared(block, 2)]
            pairs[:] = rows.packed(codes)[: len(pairs)]

    def decode(self, buffer: Bytes, out: Floats) -> None:
        all_scales, all_pairs = rows.parts(buffer, len(out), _ROW, _SCALE)
        scratch = np.empty((min(len(all_pairs), BLOCK // 2), 2), np.float32)
        with np.errstate(all="ignore"):  # scales that no encoder wrote
            for block in blocks(len(out)):
                pairs = all_pairs[rows.shared(block, 2)]
                np.take(_PAIRS, pairs, axis=0, out=scratch[: len(pairs)], mode="clip")  # "raise" would buffer `out`
                values = scratch.reshape(-1)[: block.stop - block.start]
                values *= np.repeat(all_scales[rows.shared(block, _ROW)], _ROW)[: len(values)]
                np.copyto(out[block], values, casting="unsafe")


def _nearest(sizes: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Of sizes from 0 to 1, by ratio: a power of two up to the root of two around it."""
    octaves = (sizes.view(np.int32) - _ROOT_HALF) >> _MANTISSA_BITS  # how often it halves from 1 on, below 0
    levels: NDArray[np.uint8] = np.clip(octaves + _LEVELS, 0, _LEVELS).astype(np.uint8)
    return levels


def _either(sizes: NDArray[np.float32], draws: NDArray[np.float32]) -> NDArray[np.uint8]:
    """One of the two levels around each, the nearer the likelier."""
    lower: NDArray[np.int32] = np.clip(((sizes.view(np.int32) - _ONE) >> _MANTISSA_BITS) + _LEVELS, 0, _LEVELS)
    floor, ceiling = _VALUES[lower], _VALUES[np.minimum(lower + 1, _LEVELS)]
    lower += draws * (ceiling - floor) < sizes - floor
    return lower.astype(np.uint8)
