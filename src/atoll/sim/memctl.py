"""Driver: a memory controller in virtual time, for studies of single tiles: two queues before one DRAM.

Computation's and communication's requests wait apart; an arbiter says whose next one is issued into the DRAM's own
queue, which serves in order. T3 (Pati et al., 2024, arXiv 2401.16677) lets communication in only where it can't delay a
read of the kernel that computes.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

from atoll.errors import InvalidConfig
from atoll.sim.loop import Loop

Done = Callable[[], object]


class Source(Enum):
    """Whose request it is."""

    COMPUTE = "compute"
    COMM = "comm"


class View(NamedTuple):
    """What an arbiter sees; asked only while the DRAM's queue has room and somebody waits."""

    compute: int  # requests that wait
    comm: int
    occupancy: int  # requests in the DRAM's queue, with the one it serves
    comm_waits_s: float  # the first of them
    last: Source  # issued last


Arbiter = Callable[[View], Source | None]
"""Whose request is issued; None: nobody's until something is served or arrives."""


def round_robin(view: View) -> Source | None:
    """In turns."""
    if view.compute and (view.last is Source.COMM or not view.comm):
        return Source.COMPUTE
    return Source.COMM


def compute_first(view: View) -> Source | None:
    """Communication only where no computation waits."""
    return Source.COMPUTE if view.compute else Source.COMM


@dataclass(frozen=True, slots=True)
class CommunicationAware:
    """Computation first, and communication only into a DRAM queue below `threshold`, lest computation finds it full; or
    when it has waited `patience_s`. The more a kernel needs memory, the lower the threshold should be (5, 10, 30)."""

    threshold: float = math.inf
    patience_s: float = math.inf

    def __post_init__(self) -> None:
        if not self.threshold >= 1:
            raise InvalidConfig(f"threshold={self.threshold} must be at least 1, or communication never passes")

    def __call__(self, view: View) -> Source | None:
        if view.comm and view.comm_waits_s >= self.patience_s:
            return Source.COMM
        if view.compute:
            return Source.COMPUTE
        return Source.COMM if view.occupancy < self.threshold else None


class MemoryController:
    """Serves one request at a time at `bytes_per_s`, and holds up to `depth` that the arbiter can't recall."""

    def __init__(self, loop: Loop, bytes_per_s: float, arbiter: Arbiter, depth: int = 64) -> None:
        if not 0 < bytes_per_s < math.inf or depth < 1:
            raise InvalidConfig(f"a memory controller needs bytes_per_s={bytes_per_s} above 0 and depth={depth} >= 1")
        self.bytes_served = dict.fromkeys(Source, 0)
        self._loop, self._bytes_per_s, self._arbiter, self._depth = loop, bytes_per_s, arbiter, depth
        self._waiting: dict[Source, deque[tuple[int, int, Done]]] = {source: deque() for source in Source}
        self._issued: deque[tuple[Source, int, Done]] = deque()
        self._last = Source.COMM
        self._serving = False

    def request(self, source: Source, nbytes: int, done: Done) -> None:
        """Call `done` when these bytes have been read or written."""
        self._waiting[source].append((self._loop.now_ns, nbytes, done))
        self._issue()

    def _issue(self) -> None:
        compute, comm = self._waiting[Source.COMPUTE], self._waiting[Source.COMM]
        while len(self._issued) < self._depth and (compute or comm):
            waits_s = (self._loop.now_ns - comm[0][0]) / 1e9 if comm else 0.0
            source = self._arbiter(View(len(compute), len(comm), len(self._issued), waits_s, self._last))
            if source is None:
                break
            _, nbytes, done = self._waiting[source].popleft()
            self._issued.append((source, nbytes, done))
            self._last = source
        if self._issued and not self._serving:
            self._serving = True
            self._loop.post(round(self._issued[0][1] / self._bytes_per_s * 1e9), self._served)

    def _served(self) -> None:
        source, nbytes, done = self._issued.popleft()
        self.bytes_served[source] += nbytes
        self._serving = False
        self._issue()
        done()
