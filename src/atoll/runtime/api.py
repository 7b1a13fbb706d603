"""Interface: what programs (blocking) and actors (async) may ask of the world they run in.

A program holds a `Node`, an actor a `Runtime`; both exist in real time (`runtime/real.py`) and in virtual time
(`group/virtual/`, `sim/aio.py`). `here()` is the node of the calling thread, so that `atoll.join` finds its world.
"""

import threading
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from atoll.cost import Op

T = TypeVar("T")


class Node(Protocol):
    """Time, randomness and cost for one blocking program."""

    def now(self) -> float:
        """Seconds since some fixed moment; never runs backwards."""

    def sleep(self, seconds: float) -> None:
        """Let that much of this world's time pass."""

    def rng(self, *names: str | int) -> np.random.Generator:
        """The random stream of that name: the same seed and names give the same numbers."""

    def compute(self, op: "Op", fn: Callable[[], T]) -> T:
        """Run `fn`. Real: its time is recorded under `op`. Virtual: the cost model's seconds for `op` pass."""


class Runtime(Protocol):
    """The same for actors: async services with many conversations at once."""

    def now(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...
    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> "Any":
        """Run `coro` beside the caller; returns an asyncio task."""

    def rng(self, *names: str | int) -> np.random.Generator: ...
    async def compute(self, op: "Op", fn: Callable[[], T]) -> T:
        """As `Node.compute`; real: in a worker thread, so that the event loop goes on."""


_current = threading.local()


def here() -> Node:
    """The node of the calling thread; the real world where nothing else was set."""
    node: Node | None = getattr(_current, "node", None)
    if node is None:
        from atoll.runtime.real import RealNode

        node = _current.node = RealNode()
    return node


def settle(node: Node | None) -> None:
    """Make `node` the world of the calling thread; None: back to the real one."""
    _current.node = node
