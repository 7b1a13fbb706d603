"""Policy: floats as bfloat16: 2 bytes an element, the range of float32, 8 significant bits."""

from typing import Any

import numpy as np
from ml_dtypes import bfloat16
from numpy.typing import NDArray

from atoll.codec.api import Bytes, Floats


class Bfloat16:
    """Round to nearest, ties to even; NaN and infinities pass. A float16 above 65,408 comes back as infinity."""

    name = "bf16"
    hops = True

    def encoded_size(self, n: int) -> int:
        return 2 * n

    def encode(self, x: Floats, out: Bytes, seed: int | None = None) -> None:
        with np.errstate(over="ignore"):
            np.copyto(out.view(bfloat16), narrowed(x) if x.dtype == np.float64 else x, casting="unsafe")

    def decode(self, buffer: Bytes, out: Floats) -> None:
        with np.errstate(all="ignore"):  # NaN that no encoder wrote
            np.copyto(out, buffer.view(bfloat16), casting="unsafe")


def narrowed(x: NDArray[np.float64]) -> NDArray[Any]:
    """The float32 values whose nearest bfloat16 is that of `x`.

    Rounding twice goes wrong where float32 lands on the middle of two bfloat16 and `x` was not there: those values move
    one float32 back towards `x`.
    """
    single = x.astype(np.float32)
    moved = np.flatnonzero(((single.view(np.uint32) & 0xFFFF) == 0x8000) & (single != x))
    towards = np.where(x[moved] > single[moved], np.float32(np.inf), np.float32(-np.inf))
    single[moved] = np.nextafter(single[moved], towards)
    return single
