"""Interface: what a codec is: stateless, deterministic given `seed`; every member decodes the same bytes to the same
bits."""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[Any]  # 1-d, contiguous, float16/bfloat16/float32/float64
Bytes = NDArray[np.uint8]  # 1-d, contiguous


class Codec(Protocol):
    """Turns floats into fewer bytes."""

    name: str
    hops: bool
    """May a partial sum be encoded anew at each hop of a ring? Else every member's input is encoded just once."""

    def encoded_size(self, n: int) -> int:
        """Bytes that `n` elements take, whatever their values."""

    def encode(self, x: Floats, out: Bytes, seed: int | None = None) -> None:
        """Write `x` into `out` (of `encoded_size(len(x))` bytes). ValueError where `x` has no encoding (NaN)."""

    def decode(self, buffer: Bytes, out: Floats) -> None:
        """Write the values of `buffer` into `out`; the same buffer gives the same bits on every machine."""
