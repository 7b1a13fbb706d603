"""Policy: floats as 4 bits each, relative to a scale that a row of neighbours shares: what the 4-bit codecs have in
common.

Layout: the scale of each row; then two elements a byte, the first in the low bits.
"""

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.codec.api import Bytes, Floats
from atoll.codec.chunk import BLOCK, blocks, blocks_as, largest, value_range
from atoll.rng import stream

LARGEST = largest(np.float32)


class RowCodec(ABC):
    """`row` elements share a scale of the type `scale`; `values`, of each of the 16 codes, are in units of it.

    Float64 must lie in the range of float32. One seed draws the same numbers for every chunk: give each its own.
    """

    name: str
    hops = False

    def __init__(self, row: int, scale: Any, values: NDArray[np.float32]) -> None:
        self._row = row
        self._scale: np.dtype[Any] = np.dtype(scale)
        self._pairs = np.stack([values[np.arange(256) % 16], values[np.arange(256) // 16]], axis=1)  # by byte

    @abstractmethod
    def scales(self, peaks: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[np.float32]:
        """Of rows whose largest sizes these are, in a chunk of that type; exact in the type of scales."""

    @abstractmethod
    def codes(self, ratios: NDArray[Any], draws: NDArray[np.float32] | None) -> NDArray[np.uint8]:
        """Of values in units of their scales, which may be overwritten. `draws`, from 0 to 1, decide where given."""

    def encoded_size(self, n: int) -> int:
        nbytes: int = self._scale.itemsize * -(-n // self._row) + -(-n // 2)
        return nbytes

    def encode(self, x: Floats, out: Bytes, seed: int | None = None) -> None:
        low, high = value_range(x, self.name)
        if max(-low, high) > LARGEST:
            raise ValueError(f"{self.name} needs values of at most {LARGEST:.4g} in size, the range of float32")
        all_scales, all_pairs = self._parts(out, len(x))
        random = None if seed is None else stream(seed, "codec", self.name)
        for block, values in blocks_as(np.float64 if x.dtype == np.float64 else np.float32, x):
            ratios = _in_rows(values, self._row)
            scales = self.scales(_peaks(ratios), x.dtype)
            all_scales[_shared(block, self._row)] = scales
            ratios /= np.where(scales > 0, scales, np.float32(1))[:, np.newaxis]  # a row without scale has only zeros
            draws = None if random is None else _uniform(random, ratios.size)
            pairs = all_pairs[_shared(block, 2)]
            pairs[:] = _packed(self.codes(ratios.reshape(-1), draws))[: len(pairs)]

    def decode(self, buffer: Bytes, out: Floats) -> None:
        all_scales, all_pairs = self._parts(buffer, len(out))
        scratch = np.empty((min(len(all_pairs), BLOCK // 2), 2), np.float32)
        with np.errstate(all="ignore"):  # scales that no encoder wrote
            for block in blocks(len(out)):
                pairs = all_pairs[_shared(block, 2)]
                np.take(self._pairs, pairs, axis=0, out=scratch[: len(pairs)], mode="clip")  # "raise" would buffer it
                values = scratch.reshape(-1)[: block.stop - block.start]
                scales = all_scales[_shared(block, self._row)].astype(np.float32, copy=False)
                values *= np.repeat(scales, self._row)[: len(values)]
                np.copyto(out[block], values, casting="unsafe")

    def _parts(self, buffer: Bytes, n: int) -> tuple[NDArray[Any], Bytes]:
        """Views of the scales and of the pairs of `n` elements."""
        at = self._scale.itemsize * -(-n // self._row)
        return buffer[:at].view(self._scale), buffer[at:]


def _shared(block: slice, by: int) -> slice:
    """Where a block's part lies in an array with one entry for each `by` elements."""
    return slice(block.start // by, -(-block.stop // by))


def _in_rows(values: NDArray[Any], row: int) -> NDArray[Any]:
    """One row under the other, the last with zeros up to its end."""
    missing = -len(values) % row
    padded = np.concatenate([values, np.zeros(missing, values.dtype)]) if missing else values
    return padded.reshape(-1, row)


def _peaks(rows: NDArray[Any]) -> NDArray[Any]:
    """The largest size in each row; halving whole arrays is several times faster than `max(axis=1)`."""
    found: NDArray[Any] = np.abs(rows).reshape(-1)
    while len(found) > len(rows):
        found = np.maximum(found[::2], found[1::2])
    return found


def _uniform(random: np.random.Generator, n: int) -> NDArray[np.float32]:
    """Any of the middles of 65,536 equal parts of 0 to 1."""
    words = random.bit_generator.random_raw(-(-n // 4)).astype("<u8", copy=False)
    drawn = words.view("<u2")[:n].astype(np.float32)
    drawn *= np.float32(2**-16)
    drawn += np.float32(2**-17)
    return drawn


def _packed(codes: NDArray[np.uint8]) -> Bytes:
    """Two a byte; there is an even number of them."""
    pairs: NDArray[np.uint16] = codes.view("<u2")
    return (pairs | pairs >> 4).astype(np.uint8)
