"""Policy: buffers that go back by themselves: memory is lent again once no array or view looks at it any more.

New memory costs a page fault per 4 KiB, more than all copies of an operation. And since a lease ends with its last
reader, a link that still fills a buffer of a failed operation can never write into another's.
"""

from typing import Any, Final

import numpy as np
from numpy.typing import DTypeLike, NDArray

_SMALLEST: Final = 1 << 16
"""Bytes below which the allocator is as quick."""
_MOST_KEPT: Final = 16
"""Buffers of one size that wait to be lent again."""


class _Lease:
    """Lends `raw` to arrays; returned when the last of them is gone."""

    def __init__(self, memory: "Memory", raw: NDArray[np.uint8]) -> None:
        self._memory, self._raw = memory, raw
        self.__array_interface__ = raw.__array_interface__

    def __del__(self) -> None:
        self._memory._give_back(self._raw)


class Memory:
    """Uninitialised arrays. Each size keeps the buffers it once needed at the same time, `_MOST_KEPT` at most."""

    def __init__(self, largest_total: int = 1 << 30) -> None:
        self._free: dict[int, list[NDArray[np.uint8]]] = {}
        self._kept, self._largest_total = 0, largest_total

    def empty(self, size: int, dtype: DTypeLike) -> NDArray[Any]:
        """An array of that many elements."""
        dtype = np.dtype(dtype)
        nbytes = size * dtype.itemsize
        if nbytes < _SMALLEST:
            return np.empty(size, dtype)
        free = self._free.get(nbytes)
        if free:
            raw = free.pop()
            self._kept -= nbytes
        else:
            raw = np.empty(nbytes, np.uint8)
        return np.asarray(_Lease(self, raw)).view(dtype)

    def _give_back(self, raw: NDArray[np.uint8]) -> None:
        free = self._free.setdefault(raw.nbytes, [])
        if len(free) < _MOST_KEPT and self._kept + raw.nbytes <= self._largest_total:
            free.append(raw)
            self._kept += raw.nbytes
        elif not free:
            del self._free[raw.nbytes]
