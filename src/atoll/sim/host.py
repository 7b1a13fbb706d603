"""Driver: a computer's cores and disk in virtual time.

Cores are shared by all tasks, each on as many as it has threads at most (processor sharing). A disk starts so many
operations at once, each after its latency, and then shares its bandwidth among them.
"""

import math
from collections.abc import Callable

from atoll.errors import InvalidConfig
from atoll.sim.fluid import Activity, Fluid
from atoll.sim.queue import Queue

UNITS_PER_S = 1e9
"""Work of cores is counted in nanoseconds of one."""
Done = Callable[[], object]
Landed = Callable[[bool], object]
"""What is told of the end of a read or write: has it succeeded?"""


class Cpu:
    """`cores` equal cores."""

    def __init__(self, fluid: Fluid, name: str, cores: float) -> None:
        _check(f"CPU {name!r}", cores=cores)
        self.name, self.cores = name, cores
        self._fluid = fluid
        self._resource = fluid.resource(f"{name}/cores", cores * UNITS_PER_S)
        self._slow = 1.0
        self._threads: dict[Activity, float] = {}

    def run(self, core_seconds: float, done: Done, *, threads: float = 1) -> Activity:
        """Call `done` after so many seconds of cores, on `threads` of them at most at once; the task is for `cancel`.
        Tasks share in proportion to their threads."""
        _check(f"a task on {self.name!r}", threads=threads)

        def ended() -> None:
            del self._threads[task]
            done()

        uses, cap = {self._resource: 1.0}, threads * UNITS_PER_S / self._slow
        task = self._fluid.start(round(core_seconds * UNITS_PER_S), uses, ended, weight=threads, cap=cap)
        self._threads[task] = threads
        return task

    def cancel(self, task: Activity) -> None:
        """It ends without `done`; one that has ended is left as it is."""
        if self._threads.pop(task, None):
            self._fluid.cancel(task)

    def set_speed(self, slow: float) -> None:
        """From now on every task takes `slow` times as long."""
        _check(f"CPU {self.name!r}", slow=slow)
        self._slow = slow
        self._fluid.set_capacity(self._resource, self.cores * UNITS_PER_S / slow)
        for task, threads in self._threads.items():
            self._fluid.set_cap(task, threads * UNITS_PER_S / slow)

    def abort(self) -> None:
        """Cancel all tasks."""
        for task in list(self._threads):
            self.cancel(task)


class Disk:
    """Starts `depth` operations at once, each in `latency_s` (so `depth / latency_s` per second at most); what they
    read or write shares `bytes_per_s`."""

    def __init__(self, fluid: Fluid, name: str, bytes_per_s: float, latency_s: float = 0.0, depth: int = 32) -> None:
        _check(f"disk {name!r}", bytes_per_s=bytes_per_s)
        if not 0 <= latency_s < math.inf:
            raise InvalidConfig(f"latency_s={latency_s} of disk {name!r} must be finite and at least 0")
        self.name, self.bytes_per_s, self.latency_s = name, bytes_per_s, latency_s
        self.failing = False
        """While it is, operations fail when their latency is over."""
        self.starts = Queue(fluid.loop, depth)
        self._fluid = fluid
        self._resource = fluid.resource(f"{name}/bytes", bytes_per_s)
        self._moving: dict[Activity, None] = {}

    def transfer(self, nbytes: int, done: Landed) -> None:
        """Read or write so many bytes; half duplex: both share the bandwidth."""
        self.starts.submit(round(self.latency_s * 1e9), lambda: self._move(nbytes, done))

    def set_speed(self, slow: float) -> None:
        """From now on bytes take `slow` times as long."""
        _check(f"disk {self.name!r}", slow=slow)
        self._fluid.set_capacity(self._resource, self.bytes_per_s / slow)

    def abort(self) -> None:
        """Forget all operations; nobody is told."""
        self.starts.abort()
        for moving in self._moving:
            self._fluid.cancel(moving)
        self._moving.clear()

    def _move(self, nbytes: int, done: Landed) -> None:
        if self.failing:
            done(False)
            return

        def ended() -> None:
            del self._moving[moving]
            done(not self.failing)

        moving = self._fluid.start(nbytes, {self._resource: 1.0}, ended)
        self._moving[moving] = None


def _check(what: str, **settings: float) -> None:
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise InvalidConfig(f"{name}={value} of {what} must be finite and above 0")
