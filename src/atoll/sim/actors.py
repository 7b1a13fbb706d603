"""Driver: a world of actors in virtual time: processes that are frozen and killed, on hosts that are cut off.

All run on one event loop. A process is the place of all that its first coroutine begins: while it is frozen nothing of
that runs, and timers that are over meanwhile are so when it thaws.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Coroutine
from contextvars import copy_context
from typing import Any, TypeVar

from atoll import cost as costs
from atoll.cost import Op
from atoll.fabric import Fabric, star
from atoll.runtime.api import Network as Reach
from atoll.runtime.api import Runtime
from atoll.sim.aio import PLACE, VirtualEventLoop, VirtualRuntime
from atoll.sim.loop import Loop
from atoll.sim.net import IDEAL, Network, Tcp
from atoll.sim.sockets import Sockets

T = TypeVar("T")
Main = Callable[[Runtime], Coroutine[Any, Any, Any]]


class World:
    """Each process has a host of its own on a switch, `latency_s` from the others, with `bytes_per_s` out and in; or
    is on a host of `fabric`. `reach`: by what actors connect, `net.streams.Streams()` say. `cost`: the seconds that an
    operation takes. `tie_break`: a seed that permutes events of the same moment."""

    def __init__(
        self, reach: Reach, seed: int = 0, *, fabric: Fabric | None = None, latency_s: float = 100e-6,
        bytes_per_s: float = 1e9, tcp: Tcp = IDEAL, cost: costs.Costs = costs.free, tie_break: int | None = None,
    ) -> None:  # fmt: skip
        self.heap = Loop(tie_break)
        self.seed, self.reach = seed, reach
        self.network = Network(self.heap, star(0, bytes_per_s) if fabric is None else fabric, tcp=tcp)
        self.loop = VirtualEventLoop(self.heap)
        self.sockets = self.loop.sockets = Sockets(self.loop, self.network)
        self.processes: list[Process] = []
        self._own_star = fabric is None
        self._way_s, self._bytes_per_s = latency_s / 2, bytes_per_s
        self._cost = costs.seconds_by(cost)
        self._living = 0
        self._over = self.loop.create_future()

    def start(
        self, name: str, main: Main, *, host: str | None = None, delay_s: float = 0.0, slow: float = 1.0,
        reach: Reach | None = None,
    ) -> "Process":  # fmt: skip
        """A process that runs `main` from now on or later; by default on the host of its name. What it computes takes
        `slow` times as long. `reach`: another one than the world's."""
        host = host or name
        fabric = self.network.fabric
        if self._own_star and host not in fabric.hosts:
            fabric.join(fabric.add_host(host), "switch", self._bytes_per_s, self._way_s)
        process = Process(self, name, host, slow, reach or self.reach)
        self.processes.append(process)
        self._living += 1
        self.at(self.heap.now_s + delay_s, lambda: process.begin(main))
        return process

    def at(self, seconds: float, fn: Callable[[], object]) -> None:
        """Call `fn` at that moment."""
        self.heap.post(max(0, round(seconds * 1e9) - self.heap.now_ns), fn)

    def run(self, until_s: float | None = None) -> None:
        """Until every process has ended (Deadlock: they can't), or that moment. Once. The first error of one that was
        not killed is raised."""
        try:
            if until_s is not None:
                self.at(until_s, self._end)
            self.loop.run_until_complete(self._over)
        finally:
            try:
                self.loop.run_until_complete(self.loop.cancel_all())
            finally:
                self.loop.close()
        for process in self.processes:
            if process.error is not None and not process.dead:
                raise process.error

    def seconds_of(self, op: Op) -> float:
        """What it takes on a process that is not slow."""
        return self._cost(op)

    def ended(self) -> None:
        """One has."""
        self._living -= 1
        if not self._living:
            self._end()

    def _end(self) -> None:
        if not self._over.done():
            self._over.set_result(None)


class Process:
    """One actor's process."""

    def __init__(self, world: World, name: str, host: str, slow: float, reach: Reach) -> None:
        self.world, self.name, self.host, self.slow, self.reach = world, name, host, slow, reach
        self.frozen = self.dead = self.done = False
        self.result: Any = None
        self.error: BaseException | None = None
        self.context = copy_context()
        self.context.run(PLACE.set, self)
        self._held: deque[asyncio.Handle] = deque()

    def begin(self, main: Main) -> None:
        """Run it."""
        if self.dead:
            self.done = True
            self.world.ended()
            return
        task = self.world.loop.create_task(main(_Runtime(self)), name=self.name, context=self.context.copy())
        task.add_done_callback(self._ended)

    def holds(self, handle: asyncio.Handle) -> bool:
        """See `aio.Place`."""
        if self.frozen and not self.dead:
            self._held.append(handle)
            return True
        return False

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self.world.loop._ready.extend(self._held)
        self._held.clear()

    def crash(self) -> None:
        """SIGKILL: its connections are reset, and whatever it still does reaches nobody."""
        if self.dead or self.done:
            return
        self.dead = True
        self.world.sockets.kill(self)
        self.thaw()
        self.world.loop.cancel_all_in(self)

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self.done = True
        if not task.cancelled():
            self.error = task.exception()
            self.result = None if self.error else task.result()
        if not self.dead:
            self.world.sockets.kill(self)
            self.world.loop.cancel_all_in(self)
        self.world.ended()


class _Runtime(VirtualRuntime):
    """That of a process."""

    def __init__(self, process: Process) -> None:
        world = process.world
        super().__init__(world.heap, world.seed, lambda op: world.seconds_of(op) * process.slow, process.reach)
        self._process = process

    async def sleep(self, seconds: float) -> None:
        self._check()
        await super().sleep(seconds)

    async def compute(self, op: Op, fn: Callable[[], T]) -> T:
        self._check()
        return await super().compute(op, fn)

    def _check(self) -> None:
        if self._process.dead:
            raise asyncio.CancelledError
