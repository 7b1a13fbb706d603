"""Driver: a simulated process: a program, what can happen to it, and its `Node`."""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from atoll import rng
from atoll.cost import Op
from atoll.group.virtual.port import VirtualPort
from atoll.runtime.api import settle
from atoll.sim.loop import Program

if TYPE_CHECKING:
    from atoll.group.virtual.world import World

T = TypeVar("T")


class Process:
    """One program on one host, and a port for each time it joins."""

    def __init__(self, world: "World", name: str, host: str, main: Callable[[], Any]) -> None:
        self.world, self.name, self.host = world, name, host
        self.frozen = self.dead = False
        self._backlog: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.port: VirtualPort | None = None

        def body() -> Any:
            settle(self)
            return main()

        self.program = Program(world.loop, name, body)

    # -- what happens to it ----------------------------------------------------------------------------------------

    def call(self, fn: Callable[..., object], *args: Any) -> None:
        """The one door by which events reach the process: a frozen one hears them later, a dead one never."""
        if not self.dead:
            self._backlog.append((fn, args))
            self._hear()

    def _hear(self) -> None:
        while self._backlog and not self.frozen and not self.dead:
            fn, args = self._backlog.popleft()
            fn(*args)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self._hear()

    def crash(self) -> None:
        """SIGKILL: connections reset, the program ends where it waits."""
        if self.dead or self.program.ended:
            return
        self.dead = True
        if self.port is not None:
            self.port.reset()
        self.program.crash()

    # -- Node ------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self.world.loop.now_s

    def sleep(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"can't sleep for {seconds} s")
        self.world.loop.post(round(seconds * 1e9), self.call, self.program.resume)
        self.program.park(f"the end of sleep({seconds})")

    def rng(self, *names: str | int) -> np.random.Generator:
        return rng.stream(self.world.seed, *names)

    def compute(self, op: Op, fn: Callable[[], T]) -> T:
        """Run `fn`, which takes no time, then let pass what `op` costs. InvalidConfig: there is no model of its
        kind."""
        value = fn()
        self._charge(op)
        return value

    def _charge(self, op: Op) -> None:
        """Where `op` takes its time: a device, once there are any, resumes the program when it has done it."""
        seconds = self.world.seconds_of(op)
        if seconds:
            self.sleep(seconds)

    def open_port(self, address: str) -> VirtualPort:
        """There is one master; the address is not looked at."""
        self.port = VirtualPort(self)
        return self.port
