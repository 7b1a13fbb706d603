"""Driver: the memory before a disk, in virtual time: what was read or written lately is there at memory's speed.

Writes are copied into memory and reach the disk in the background, piece by piece; while too much is on its way they
wait, so a long writer ends up at the disk's speed, as under Linux. Whole objects are forgotten, the least recently used
first.
"""

from collections import OrderedDict, deque
from dataclasses import dataclass

from atoll.errors import InvalidConfig
from atoll.sim.fluid import Activity, Fluid
from atoll.sim.host import Disk, Done, Landed

PIECES = 16
"""Of what may be on its way to the disk at once."""


@dataclass(slots=True)
class _Write:
    name: str
    nbytes: int
    left: int
    done: Landed


class PageCache:
    """`capacity` bytes of memory of `bytes_per_s`, of which `dirty_bytes` may be on their way to `disk`."""

    def __init__(self, fluid: Fluid, disk: Disk, capacity: int, dirty_bytes: int, bytes_per_s: float) -> None:
        if not PIECES <= dirty_bytes <= capacity:
            raise InvalidConfig(
                f"the page cache of {disk.name!r}: dirty_bytes={dirty_bytes} must be {PIECES}..capacity={capacity}"
            )
        self.disk, self.capacity, self.dirty_bytes = disk, capacity, dirty_bytes
        self.dirty = self.held = 0
        self._fluid = fluid
        self._memory = fluid.resource(f"{disk.name}/cache", bytes_per_s)
        self._objects: OrderedDict[str, int] = OrderedDict()
        self._writes: deque[_Write] = deque()
        self._pieces: deque[int] = deque()
        self._copies: dict[Activity, None] = {}
        self._copying = self._flushing = self._lost = False
        self._to_land = self._landed = 0  # bytes ever
        self._flushes: deque[tuple[int, Landed]] = deque()
        self._era = 0  # between two aborts

    def read(self, name: str, nbytes: int, done: Landed) -> None:
        """From memory, if the object is there; else from the disk, and remembered."""
        if self._objects.get(name, -1) >= nbytes:
            self._objects.move_to_end(name)
            self._copy(nbytes, lambda: done(True))
            return
        era = self._era

        def landed(ok: bool) -> None:
            if era == self._era:
                if ok:
                    self._remember(name, nbytes)
                done(ok)

        self.disk.transfer(nbytes, landed)

    def write(self, name: str, nbytes: int, done: Landed) -> None:
        """`done(True)` once all is in memory; whether it reaches the disk is what `flush` tells."""
        self._to_land += nbytes
        self._writes.append(_Write(name, nbytes, nbytes, done))
        self._fill()

    def flush(self, done: Landed) -> None:
        """Once all writes before it have reached the disk; False: one has failed since the last flush."""
        self._flushes.append((self._to_land, done))
        self._fluid.loop.post(0, self._tell_flushed)

    def abort(self) -> None:
        """The computer has crashed: memory is empty, and what had not reached the disk is lost."""
        self._era += 1
        for copy in self._copies:
            self._fluid.cancel(copy)
        for queue in (self._copies, self._writes, self._pieces, self._flushes, self._objects):
            queue.clear()
        self.dirty = self.held = 0
        self._copying = self._flushing = self._lost = False
        self._landed = self._to_land

    def _fill(self) -> None:
        if self._copying or not self._writes:
            return
        write = self._writes[0]
        piece = min(write.left, self.dirty_bytes // PIECES, self.dirty_bytes - self.dirty)
        if piece == 0 and write.left:
            return  # until a piece has landed

        def copied() -> None:
            self._copying = False
            write.left -= piece
            if piece:
                self._pieces.append(piece)
            if not write.left:
                self._writes.popleft()
                self._remember(write.name, write.nbytes)
                write.done(True)
            self._drain()
            self._fill()

        self._copying = True
        self.dirty += piece
        self._copy(piece, copied)

    def _drain(self) -> None:
        if self._flushing or not self._pieces:
            return
        piece, era = self._pieces.popleft(), self._era

        def landed(ok: bool) -> None:
            if era != self._era:
                return
            self._flushing = False
            self._lost |= not ok
            self._landed += piece
            self.dirty -= piece
            self._tell_flushed()
            self._drain()
            self._fill()

        self._flushing = True
        self.disk.transfer(piece, landed)

    def _tell_flushed(self) -> None:
        while self._flushes and self._flushes[0][0] <= self._landed:
            _, done = self._flushes.popleft()
            ok, self._lost = not self._lost, False
            done(ok)

    def _copy(self, nbytes: int, done: Done) -> None:
        def ended() -> None:
            del self._copies[copy]
            done()

        copy = self._fluid.start(nbytes, {self._memory: 1.0}, ended)
        self._copies[copy] = None

    def _remember(self, name: str, nbytes: int) -> None:
        self.held += nbytes - self._objects.pop(name, 0)
        self._objects[name] = nbytes
        while self.held > self.capacity:
            _, forgotten = self._objects.popitem(last=False)
            self.held -= forgotten
