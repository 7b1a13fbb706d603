"""Policy: floats as 4 bits each: whole multiples, from -7 to 7, of a scale that 32 neighbours share.

For pseudo-gradients, which bear 4 bits well (Streaming DiLoCo: Douillard et al., 2025, arXiv 2501.18512, with E3M0).
Layout: a bfloat16 scale for each 32 elements; then two elements a byte as multiple + 8, the first in the low bits.
"""

from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from atoll.codec import rows
from atoll.codec.api import Bytes, Floats
from atoll.codec.chunk import BLOCK, blocks, blocks_as, largest, value_range
from atoll.rng import stream

_ROW = 32  # elements that share a scale
_MOST = 7
_ZERO = 8  # the code of 0; code 0 is never written
_PAIRS = np.stack([np.arange(256) % 16, np.arange(256) // 16], axis=1).astype(np.float32) - _ZERO  # by byte
_LARGEST = largest(np.float32)
_SCALE = np.dtype(bfloat16)


class Int4:
    """Off by at most half a scale, and one rounding of a 16-bit element type.

    The scale is a seventh of the largest size among its 32 elements, rounded up to bfloat16 (by less than a 128th of
    it, or 2**-133), or down where 7 of it would overflow the element type. Decoded float32 and float64 encode to the
    same bytes again, if that largest size is 2**-126 or more. Float64 must lie in the range of float32.

    With a seed, values go up or down at random: off by less than a scale, but right on average, to within 2**-16 of a
    scale (beyond 7 scales that were rounded down, always down). One seed draws the same numbers for every chunk: give
    each its own.
    """

    name = "int4"
    hops = False

    def encoded_size(self, n: int) -> int:
        return rows.encoded_size(n, _ROW, _SCALE)

    def encode(self, x: Floats, out: Bytes, seed: int | None = None) -> None:
        low, high = value_range(x, self.name)
        if max(-low, high) > _LARGEST:
            raise ValueError(f"{self.name} needs values of at most {_LARGEST:.4g} in size, the range of float32")
        all_scales, all_pairs = rows.parts(out, len(x), _ROW, _SCALE)
        largest_scale = _largest_scale(x.dtype)
        random = None if seed is None else stream(seed, "codec", self.name)
        for block, values in blocks_as(np.float64 if x.dtype == np.float64 else np.float32, x):
            levels = rows.in_rows(values, _ROW)
            scales = np.minimum(_scales(rows.peaks(levels)), largest_scale)
            all_scales[rows.shared(block, _ROW)] = scales
            levels /= np.where(scales > 0, scales, np.float32(1))[:, np.newaxis]  # a row without scale has only zeros
            codes = levels.reshape(-1)
            if random is None:
                np.rint(codes, out=codes)
                codes += _ZERO
            else:
                codes += rows.uniform(random, len(codes)) + np.float32(_ZERO)  # and the fraction is cut off
                np.clip(codes, _ZERO - _MOST, _ZERO + _MOST, out=codes)  # where the scale was rounded down
            pairs = all_pairs[rows.shared(block, 2)]
            pairs[:] = rows.packed(codes.astype(np.uint8))[: len(pairs)]

    def decode(self, buffer: Bytes, out: Floats) -> None:
        all_scales, all_pairs = rows.parts(buffer, len(out), _ROW, _SCALE)
        scratch = np.empty((min(len(all_pairs), BLOCK // 2), 2), np.float32)
        with np.errstate(all="ignore"):  # scales that no encoder wrote
            for block in blocks(len(out)):
                pairs = all_pairs[rows.shared(block, 2)]
                np.take(_PAIRS, pairs, axis=0, out=scratch[: len(pairs)], mode="clip")  # "raise" would buffer `out`
                values = scratch.reshape(-1)[: block.stop - block.start]
                scales = all_scales[rows.shared(block, _ROW)].astype(np.float32)
                values *= np.repeat(scales, _ROW)[: len(values)]
                np.copyto(out[block], values, casting="unsafe")


def _scales(peaks: NDArray[Any]) -> NDArray[np.float32]:
    """The least bfloat16 that 7 times are no less than the peak."""
    scales = (peaks / _MOST).astype(bfloat16)
    scales.view(np.uint16)[:] += scales.astype(peaks.dtype) * _MOST < peaks
    return scales.astype(np.float32)


def _largest_scale(dtype: np.dtype[Any]) -> float:
    """The largest bfloat16 that 7 times are still a finite number of that type."""
    seventh = np.array([min(largest(dtype), _LARGEST) / _MOST], np.float32)
    return float((seventh.view(np.uint32) & 0xFFFF0000).view(np.float32)[0])
