"""Driver: the memory of another process of this machine, read without its help (Linux's `process_vm_readv`).

No copy is made on the other side and nothing is shared beforehand. The kernel allows it between processes that may
trace each other: of the same user, where no policy (Yama's `ptrace_scope`, a container's filter) forbids it; so it must
be tried. What is read is only as valid as the promise that it doesn't change meanwhile.
"""

import ctypes
import functools
import os
import sys
from collections.abc import Callable

import numpy as np


class _Span(ctypes.Structure):
    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


@functools.cache
def _readv() -> Callable[..., int] | None:
    if sys.platform != "linux":
        return None
    function = getattr(ctypes.CDLL(None, use_errno=True), "process_vm_readv", None)
    if function is not None:
        span, count = ctypes.POINTER(_Span), ctypes.c_ulong
        function.argtypes = [ctypes.c_int, span, count, span, count, count]
        function.restype = ctypes.c_ssize_t
    return function


def address_of(data: memoryview) -> int:
    """Where these bytes lie in this process."""
    return int(np.asarray(data).__array_interface__["data"][0])


class Remote:
    """`len()` bytes in another process."""

    __slots__ = ("_address", "_nbytes", "_pid")

    def __init__(self, pid: int, address: int, nbytes: int) -> None:
        self._pid, self._address, self._nbytes = pid, address, nbytes

    def __len__(self) -> int:
        return self._nbytes

    def read(self, at: int, into: memoryview) -> None:
        """Fill `into` from byte `at` on. ConnectionError: they are gone, or we may not."""
        readv = _readv()
        ours, theirs = address_of(into), self._address + at
        left = len(into)
        while left:
            n = -1
            if readv is not None:
                n = readv(self._pid, _Span(ours, left), 1, _Span(theirs, left), 1, 0)
            if n <= 0:
                code = ctypes.get_errno()
                raise ConnectionError(f"can't read the memory of process {self._pid}: {os.strerror(code)}")
            ours, theirs, left = ours + n, theirs + n, left - n


class Neighbour:
    """A process whose memory we may read."""

    def __init__(self, pid: int) -> None:
        self._pid = pid

    def view(self, address: int, nbytes: int) -> Remote:
        """Bytes of its memory."""
        return Remote(self._pid, address, nbytes)

    def holds(self, address: int, expected: bytes) -> bool:
        """Can we read there, and is it what it said?"""
        found = bytearray(len(expected))
        try:
            self.view(address, len(expected)).read(0, memoryview(found))
        except ConnectionError:
            return False
        return found == expected
