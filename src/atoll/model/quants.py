"""Policy: how GGUF files pack numbers, and their unpacking to float32; for the reader and for tests of kernels.

A row is cut into blocks; each has its numbers in few bits beside a scale or two. Layouts as in ggml, the library the
format comes from (`ggml-common.h`, `ggml-quants.c`).
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Blocks = NDArray[np.uint8]  # [blocks, bytes of one]
Numbers = NDArray[np.float32]

_AT_ONCE: Final = 1 << 20
"""Numbers unpacked in one go, so that what lies between stays in the cache."""


@dataclass(frozen=True)
class Packing:
    """One way to pack. `numbers` and `nbytes` are those of a block."""

    name: str
    numbers: int
    nbytes: int
    unpack: Callable[[Blocks], Numbers]

    def row_bytes(self, width: int) -> int:
        """Bytes of a row of `width` numbers, a multiple of `numbers`."""
        return width // self.numbers * self.nbytes


def unpacked(packing: Packing, rows: NDArray[np.uint8]) -> Numbers:
    """The numbers of `rows` [rows, bytes], as [rows, width]. What is no finite number there is none here."""
    out = np.empty((rows.shape[0], rows.shape[1] // packing.nbytes * packing.numbers), np.float32)
    step = max(1, _AT_ONCE // max(1, out.shape[1]))
    with np.errstate(all="ignore"):
        for at in range(0, len(rows), step):
            part = out[at : at + step]
            blocks = np.ascontiguousarray(rows[at : at + step]).reshape(-1, packing.nbytes)
            part[...] = packing.unpack(blocks).reshape(part.shape)
    return out


def _scale(blocks: Blocks, at: int) -> Numbers:
    """The float16 that begins at this byte of each block, [blocks, 1]."""
    return np.ascontiguousarray(blocks[:, at : at + 2]).view("<f2").astype(np.float32)


def _float32(blocks: Blocks) -> Numbers:
    return blocks.view("<f4").astype(np.float32, copy=False)


def _float16(blocks: Blocks) -> Numbers:
    return blocks.view("<f2").astype(np.float32)


def _bfloat16(blocks: Blocks) -> Numbers:
    return (blocks.view("<u2").astype(np.uint32) << 16).view(np.float32)


def _nibbles(packed: Blocks) -> NDArray[np.uint8]:
    """First the low halves of all bytes, then the high ones."""
    return np.concatenate((packed & 15, packed >> 4), axis=-1)


def _fifth_bits(packed: Blocks) -> NDArray[np.uint8]:
    bits: NDArray[np.uint8] = np.unpackbits(packed, axis=-1, bitorder="little")
    return np.left_shift(bits, 4, dtype=np.uint8)


def _q4_0(blocks: Blocks) -> Numbers:
    return _scale(blocks, 0) * (_nibbles(blocks[:, 2:]).astype(np.float32) - 8)


def _q4_1(blocks: Blocks) -> Numbers:
    return _scale(blocks, 0) * _nibbles(blocks[:, 4:]).astype(np.float32) + _scale(blocks, 2)


def _q5_0(blocks: Blocks) -> Numbers:
    whole = _nibbles(blocks[:, 6:]) | _fifth_bits(blocks[:, 2:6])
    return _scale(blocks, 0) * (whole.astype(np.float32) - 16)


def _q5_1(blocks: Blocks) -> Numbers:
    whole = _nibbles(blocks[:, 8:]) | _fifth_bits(blocks[:, 4:8])
    return _scale(blocks, 0) * whole.astype(np.float32) + _scale(blocks, 2)


def _q8_0(blocks: Blocks) -> Numbers:
    return _scale(blocks, 0) * blocks[:, 2:].view(np.int8).astype(np.float32)


def _super_scales(blocks: Blocks) -> tuple[Numbers, Numbers]:
    """Scale and offset of each 32 numbers, [blocks, 8, 1], of the K packings: six bits each, twelve bytes for all.

    Of the first four each has the low six bits of a byte. The others have a half of bytes 8 to 11, and above it the two
    bits that those of the first four left.
    """
    low, high, last = (blocks[:, at : at + 4] for at in (4, 8, 12))
    scales = np.concatenate((low & 63, last & 15 | low >> 2 & 48), axis=-1)
    offsets = np.concatenate((high & 63, last >> 4 | high >> 2 & 48), axis=-1)
    scale, offset = _scale(blocks, 0) * scales, _scale(blocks, 2) * offsets
    return scale.astype(np.float32)[..., None], offset.astype(np.float32)[..., None]


def _q4_k(blocks: Blocks) -> Numbers:
    scales, offsets = _super_scales(blocks)
    quarters = _nibbles(blocks[:, 16:].reshape(-1, 4, 32)).reshape(-1, 8, 32)
    return scales * quarters.astype(np.float32) - offsets


def _q5_k(blocks: Blocks) -> Numbers:
    scales, offsets = _super_scales(blocks)
    fifths = blocks[:, None, 16:48] >> np.arange(8, dtype=np.uint8)[:, None] & 1
    whole = _nibbles(blocks[:, 48:].reshape(-1, 4, 32)).reshape(-1, 8, 32) | fifths << 4
    return scales * whole.astype(np.float32) - offsets


def _q6_k(blocks: Blocks) -> Numbers:
    """128 bytes of low halves, 64 of upper pairs of bits, 16 scales, one scale of the scales."""
    low = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).reshape(-1, 2, 4, 32)
    pairs = blocks[:, 128:192].reshape(-1, 2, 1, 32) >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3
    whole = (low | pairs << 4).astype(np.float32) - 32
    scales = _scale(blocks, 208) * blocks[:, 192:208].view(np.int8).astype(np.float32)
    return scales[..., None] * whole.reshape(-1, 16, 16)


FLOAT32: Final = Packing("F32", 1, 4, _float32)
PACKINGS: Final = {
    0: FLOAT32,
    1: Packing("F16", 1, 2, _float16),
    2: Packing("Q4_0", 32, 18, _q4_0),
    3: Packing("Q4_1", 32, 20, _q4_1),
    6: Packing("Q5_0", 32, 22, _q5_0),
    7: Packing("Q5_1", 32, 24, _q5_1),
    8: Packing("Q8_0", 32, 34, _q8_0),
    12: Packing("Q4_K", 256, 144, _q4_k),
    13: Packing("Q5_K", 256, 176, _q5_k),
    14: Packing("Q6_K", 256, 210, _q6_k),
    30: Packing("BF16", 1, 2, _bfloat16),
}
"""By the number that stands for it in files."""
