"""Driver: so many bytes of memory, a counter with admission: it never goes below nothing or above what there is."""

from collections import deque
from collections.abc import Callable

from atoll.errors import InvalidConfig, InvalidData
from atoll.sim.loop import Loop


class Memory:
    """`capacity` bytes. Who waits for room is admitted first come first served: nobody overtakes a large one."""

    def __init__(self, loop: Loop, name: str, capacity: int) -> None:
        if capacity < 0:
            raise InvalidConfig(f"memory {name!r} can't have {capacity} bytes")
        self.name, self.capacity = name, capacity
        self.used = self.peak = 0
        self._loop = loop
        self._line: deque[tuple[int, Callable[[], object]]] = deque()
        self._era = 0  # between two clearings

    @property
    def free(self) -> int:
        """Bytes nobody holds."""
        return self.capacity - self.used

    def take(self, nbytes: int) -> bool:
        """Hold `nbytes` if there is room now and nobody waits; False: nothing was taken."""
        self._check(nbytes)
        if self._line or nbytes > self.free:
            return False
        self._hold(nbytes)
        return True

    def take_when_free(self, nbytes: int, then: Callable[[], object]) -> None:
        """Call `then` once `nbytes` are held; never before this call returns. InvalidData: more than there can be."""
        self._check(nbytes)
        if nbytes > self.capacity:
            raise InvalidData(f"{nbytes} bytes never fit into {self.name!r} of {self.capacity}; ask for less")
        self._line.append((nbytes, then))
        self._admit()

    def give_back(self, nbytes: int) -> None:
        """Hold `nbytes` less. InvalidData: more than are held."""
        self._check(nbytes)
        if nbytes > self.used:
            raise InvalidData(f"{nbytes} bytes given back to {self.name!r}, of which only {self.used} were taken")
        self.used -= nbytes
        self._admit()

    def clear(self) -> None:
        """Forget who holds and who waits: their process has ended."""
        self._era += 1
        self.used = 0
        self._line.clear()

    def _admit(self) -> None:
        while self._line and self._line[0][0] <= self.free:
            nbytes, then = self._line.popleft()
            self._hold(nbytes)
            self._loop.post(0, self._admitted, self._era, then)

    def _admitted(self, era: int, then: Callable[[], object]) -> None:
        if era == self._era:
            then()

    def _hold(self, nbytes: int) -> None:
        self.used += nbytes
        self.peak = max(self.peak, self.used)

    def _check(self, nbytes: int) -> None:
        if nbytes < 0 or nbytes != int(nbytes):
            raise InvalidData(f"{nbytes} bytes of {self.name!r} must be a whole number of at least 0")
