"""Driver: shared memory that survives nobody: lent slot by slot to processes of the same machine.

An anonymous memory file (Linux's memfd), passed as a descriptor (`doors.py`): nothing has a place in the file system,
so kill -9 of either side leaves nothing behind. The file is sealed against shrinking before it is shared, or a reader
could be brought down by its owner. Elsewhere than on Linux `available()` says no, and data goes over TCP.
"""

import mmap
import os
import sys
from hashlib import blake2b
from typing import Final

from atoll.errors import ProtocolError

_SEALS: Final = 0x1 | 0x2 | 0x4  # F_SEAL_SEAL, F_SEAL_SHRINK, F_SEAL_GROW
_F_ADD_SEALS, _F_GET_SEALS = 1033, 1034
_LARGEST: Final = 1 << 34
_PAGE: Final = 4096


def available() -> bool:
    """Can processes of this machine share memory?"""
    return sys.platform == "linux" and hasattr(os, "memfd_create")


def machine() -> str:
    """The same for all processes that can reach each other's abstract sockets: one boot, one network namespace."""
    if not available():
        return ""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            boot = file.read().strip()
        return blake2b(f"{boot} {os.stat('/proc/self/ns/net').st_ino}".encode(), digest_size=8).hexdigest()
    except OSError:
        return ""


class Arena:
    """Memory of ours. `lend` copies bytes into a free slot; `give_back` frees it once all who borrowed it have.

    Pages are taken when a slot is first used.
    """

    def __init__(self, slots: int, slot_bytes: int) -> None:
        import fcntl

        self.slot_bytes = -(-slot_bytes // _PAGE) * _PAGE
        self.fd = os.memfd_create("atoll", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        os.ftruncate(self.fd, slots * self.slot_bytes)
        fcntl.fcntl(self.fd, _F_ADD_SEALS, _SEALS)
        self._map = mmap.mmap(self.fd, slots * self.slot_bytes)
        self._view = memoryview(self._map)
        self._free = list(range(slots))[::-1]  # the last one used is the warmest
        self._borrowers = [0] * slots

    @property
    def free(self) -> int:
        """Slots nobody reads."""
        return len(self._free)

    def lend(self, data: memoryview) -> int:
        """Copy `data` into a free slot, for one borrower. IndexError: there is none. ValueError: it is too large."""
        if len(data) > self.slot_bytes:
            raise ValueError(f"{len(data)} bytes don't fit into a slot of {self.slot_bytes}")
        slot = self._free.pop()
        self._borrowers[slot] = 1
        start = slot * self.slot_bytes
        self._view[start : start + len(data)] = data
        return slot

    def lend_again(self, slot: int) -> None:
        """One more borrower of what lies there."""
        self._borrowers[slot] += 1

    def give_back(self, slot: int) -> bool:
        """A borrower has read it. True: it was the last one."""
        if not 0 <= slot < len(self._borrowers) or not self._borrowers[slot]:
            raise ProtocolError(f"slot {slot} was given back, but not lent")
        self._borrowers[slot] -= 1
        if self._borrowers[slot]:
            return False
        self._free.append(slot)
        return True

    def close(self) -> None:
        """Our side of it; who has mapped it keeps what he reads. May be called again."""
        if self.fd >= 0:
            self._view.release()
            self._map.close()
            os.close(self.fd)
            self.fd = -1


class Tenant:
    """Another process's arena, to be read. ProtocolError: not what an arena is."""

    def __init__(self, fd: int, slot_bytes: int) -> None:
        import fcntl

        try:
            size = os.fstat(fd).st_size
            seals = fcntl.fcntl(fd, _F_GET_SEALS)
            if seals & _SEALS != _SEALS or not 0 < size <= _LARGEST:
                raise ProtocolError("shared memory that could shrink under its reader, or is too large")
            self._map = mmap.mmap(fd, size, prot=mmap.PROT_READ)
        except OSError as error:
            raise ProtocolError(f"no shared memory: {error}") from None
        finally:
            os.close(fd)
        self._slot_bytes = -(-slot_bytes // _PAGE) * _PAGE
        self._view = memoryview(self._map)

    def view(self, slot: int, nbytes: int) -> memoryview:
        """What lies in a slot. ProtocolError: there is no such slot."""
        start = slot * self._slot_bytes
        if nbytes > self._slot_bytes or start + nbytes > len(self._view):
            raise ProtocolError(f"{nbytes} bytes in slot {slot}: there is no such place")
        return self._view[start : start + nbytes]
