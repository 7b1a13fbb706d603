"""Policy: a chunk of elements as codecs walk through it: its range, blocks that stay in the cache, values by level."""

from collections.abc import Iterator
from typing import Any

import numpy as np
from ml_dtypes import bfloat16, finfo
from numpy.typing import NDArray

from atoll.codec.api import Bytes, Floats
from atoll.codec.bf16 import narrowed

BLOCK = 1 << 15  # elements; a block's float64 scratch stays in the processor's cache


def blocks(n: int) -> Iterator[slice]:
    """All of `n` elements, BLOCK at a time; the last may be shorter."""
    return (slice(start, min(start + BLOCK, n)) for start in range(0, n, BLOCK))


def blocks_as(dtype: Any, x: Floats) -> Iterator[tuple[slice, NDArray[Any]]]:
    """Each block and a copy of its elements as `dtype`, in memory that the next one uses again."""
    scratch = np.empty(min(len(x), BLOCK), dtype)
    for block in blocks(len(x)):
        values = scratch[: block.stop - block.start]
        np.copyto(values, x[block], casting="unsafe")
        yield block, values


def value_range(x: Floats, codec: str) -> tuple[float, float]:
    """Minimum and maximum, (0, 0) of nothing; ValueError where they bound no finite range."""
    if not len(x):
        return 0.0, 0.0
    lows, highs = [], []
    for block in blocks(len(x)):
        values = x[block] if x.itemsize > 2 else x[block].astype(np.float32)  # 16-bit types compare one by one
        lows.append(values.min())
        highs.append(values.max())
    low, high = float(np.min(lows)) + 0.0, float(np.max(highs)) + 0.0  # + 0.0: a minimum of -0.0 or 0.0 is one header
    if not np.isfinite(high - low):
        raise ValueError(
            f"{codec} needs finite values whose range fits a float64; the tensor has NaN, inf or too wide a range"
        )
    return low, high


def largest(dtype: Any) -> float:
    """The largest finite number of a floating type, bfloat16 too."""
    return float(finfo(dtype).max)  # type: ignore[no-untyped-call]


def look_up(values: NDArray[np.float64], levels: Bytes, out: Floats) -> None:
    """Write the value of each level, rounded once to the type of `out`; `values` has one for each of 256 levels."""
    table = (narrowed(values) if out.dtype == bfloat16 else values).astype(out.dtype)
    for block in blocks(len(out)):
        np.take(table, levels[block], out=out[block], mode="clip")  # "raise" would buffer `out`
