"""Policy: rows of neighbours that share a scale, and codes of 4 bits, two a byte: what the 4-bit codecs have in common.

Layout: the scale of each row; then two elements a byte, the first in the low bits.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.codec.api import Bytes


def encoded_size(n: int, row: int, scale: np.dtype[Any]) -> int:
    """Bytes of `n` elements."""
    return scale.itemsize * -(-n // row) + -(-n // 2)


def parts(buffer: Bytes, n: int, row: int, scale: np.dtype[Any]) -> tuple[NDArray[Any], Bytes]:
    """Views of the scales and of the pairs of `n` elements."""
    at = scale.itemsize * -(-n // row)
    return buffer[:at].view(scale), buffer[at:]


def shared(block: slice, by: int) -> slice:
    """Where a block's part lies in an array with one entry for each `by` elements."""
    return slice(block.start // by, -(-block.stop // by))


def in_rows(values: NDArray[Any], row: int) -> NDArray[Any]:
    """One row under the other, the last with zeros up to its end."""
    missing = -len(values) % row
    padded = np.concatenate([values, np.zeros(missing, values.dtype)]) if missing else values
    return padded.reshape(-1, row)


def peaks(rows: NDArray[Any]) -> NDArray[Any]:
    """The largest size in each row; halving whole arrays is several times faster than `max(axis=1)`."""
    found: NDArray[Any] = np.abs(rows).reshape(-1)
    while len(found) > len(rows):
        found = np.maximum(found[::2], found[1::2])
    return found


def uniform(random: np.random.Generator, n: int) -> NDArray[np.float32]:
    """Any of the middles of 65,536 equal parts of 0 to 1."""
    words = random.bit_generator.random_raw(-(-n // 4)).astype("<u8", copy=False)
    drawn = words.view("<u2")[:n].astype(np.float32)
    drawn *= np.float32(2**-16)
    drawn += np.float32(2**-17)
    return drawn


def packed(codes: NDArray[np.uint8]) -> Bytes:
    """Two a byte; there is an even number of them."""
    pairs: NDArray[np.uint16] = codes.view("<u2")
    return (pairs | pairs >> 4).astype(np.uint8)
