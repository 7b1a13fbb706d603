"""Driver: the real world behind the seam: the machine's clock, measured time, asyncio.

`RealNode` is for blocking programs, `RealRuntime` for actors. `AsyncioRuntime` is what actors have in both worlds: the
event loop they run on decides whose seconds pass.
"""

import asyncio
import time
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

import numpy as np

from atoll.cost import Op
from atoll.errors import Unavailable
from atoll.record import Record
from atoll.rng import stream
from atoll.runtime.api import Connection, Listener, Network, Serve

T = TypeVar("T")


class RealNode:
    """Real time for one blocking program. `record`: gets the seconds of each `compute` as `compute.KIND`."""

    def __init__(self, seed: int = 0, record: Record | None = None) -> None:
        self.seed = seed
        self.record = record

    def now(self) -> float:
        """Seconds since some fixed moment; never runs backwards."""
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        """Block the calling thread. ValueError: a negative time."""
        time.sleep(seconds)

    def rng(self, *names: str | int) -> np.random.Generator:
        """The random stream of that name: the same seed and names give the same numbers."""
        return stream(self.seed, *names)

    def compute(self, op: Op, fn: Callable[[], T]) -> T:
        """Run `fn` and record how long it took; one that fails is not recorded."""
        start = time.perf_counter()
        result = fn()
        if self.record is not None:
            self.record.observe(f"compute.{op.kind}", time.perf_counter() - start)
        return result


class AsyncioRuntime:
    """Sleep, tasks, randomness and connections of actors, on whichever event loop runs them. `network`: by what they
    reach each other; None: they can't."""

    def __init__(self, seed: int = 0, network: Network | None = None) -> None:
        self.seed = seed
        self._network = network
        self._tasks: set[asyncio.Task[Any]] = set()

    async def sleep(self, seconds: float) -> None:
        """Let that much time pass. ValueError: a negative time."""
        if not seconds >= 0:
            raise ValueError(f"can't sleep for {seconds} s")
        await asyncio.sleep(seconds)

    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Run `coro` beside the caller."""
        task = asyncio.get_running_loop().create_task(coro, name=name)
        self._tasks.add(task)  # asyncio itself holds tasks weakly: one that nobody keeps may vanish
        task.add_done_callback(self._tasks.discard)
        return task

    def rng(self, *names: str | int) -> np.random.Generator:
        """The random stream of that name: the same seed and names give the same numbers."""
        return stream(self.seed, *names)

    async def connect(self, address: str, protocol: str, *, largest: int = 0, timeout_s: float) -> Connection:
        """See `Runtime`."""
        return await self._reaches().connect(address, protocol, largest=largest, timeout_s=timeout_s)

    async def listen(self, address: str, protocol: str, serve: Serve, *, largest: int = 0) -> Listener:
        """See `Runtime`."""
        return await self._reaches().listen(address, protocol, serve, largest=largest)

    def _reaches(self) -> Network:
        if self._network is None:
            raise Unavailable("this runtime was made without a network: give it `net.streams.Streams(guard)`")
        return self._network


class RealRuntime(AsyncioRuntime):
    """Real time for actors. `record`: as for `RealNode`; it is told from worker threads."""

    def __init__(self, seed: int = 0, record: Record | None = None, network: Network | None = None) -> None:
        super().__init__(seed, network)
        self._node = RealNode(seed, record)

    def now(self) -> float:
        """Seconds since some fixed moment; never runs backwards."""
        return self._node.now()

    async def compute(self, op: Op, fn: Callable[[], T]) -> T:
        """Run `fn` in a worker thread. Cancelling the wait does not stop it."""
        return await asyncio.to_thread(self._node.compute, op, fn)
