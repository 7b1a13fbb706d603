"""Interface: what programs (blocking) and actors (async) may ask of the world they run in.

A program holds a `Node`, an actor a `Runtime`; both exist in real time (`runtime/real.py`) and in virtual time
(`group/virtual/`, `sim/aio.py`). `here()` is the node of the calling thread, so that `atoll.join` finds its world.
"""

import threading
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

if TYPE_CHECKING:
    from atoll.cost import Op

T = TypeVar("T")
Bytes = bytes | bytearray | memoryview


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


@dataclass(frozen=True, slots=True)
class Message:
    """What actors say to each other: a small `head`, which a room encodes, and raw `data`, a tensor's bytes say."""

    head: bytes
    data: memoryview


class Connection(Protocol):
    """To one other actor; what is sent arrives whole and in order, or the connection is lost. ConnectionLost: the other
    side has gone, or can't be reached; all that came before can still be received."""

    name: str
    """Of the other side, for people."""
    received: int
    """Bytes that have come so far; grows while a large message is on its way."""

    async def send(self, head: bytes, data: Bytes = b"", *, timeout_s: float) -> None:
        """Returns when it is on its way; `data` may then be overwritten. Who takes nothing for so long is lost."""

    async def receive(self, *, timeout_s: float) -> Message:
        """The next message. DeadlineExceeded: not a byte has come for so long; nothing has changed."""

    def close(self) -> None:
        """What was sent still leaves, but no longer than a second. Every wait on it ends."""


class Listener(Protocol):
    """Takes connections until it is closed; those it has taken go on."""

    address: str
    """HOST:PORT."""

    def close(self) -> None: ...


Serve = Callable[[Connection], Coroutine[Any, Any, None]]


class Network(Protocol):
    """How actors reach each other: in both worlds `net/streams.py`, which knows who may."""

    async def connect(self, address: str, protocol: str, *, largest: int, timeout_s: float) -> Connection: ...
    async def listen(self, address: str, protocol: str, serve: Serve, *, largest: int) -> Listener: ...


class Runtime(Protocol):
    """The same for actors: async services with many conversations at once."""

    def now(self) -> float: ...
    async def sleep(self, seconds: float) -> None: ...
    def spawn(self, coro: Coroutine[Any, Any, T], *, name: str) -> "Any":
        """Run `coro` beside the caller; returns an asyncio task."""

    def rng(self, *names: str | int) -> np.random.Generator: ...
    async def compute(self, op: "Op", fn: Callable[[], T]) -> T:
        """As `Node.compute`; real: in a worker thread, so that the event loop goes on."""

    async def connect(self, address: str, protocol: str, *, largest: int = 0, timeout_s: float) -> Connection:
        """To the actor that listens at HOST:PORT and speaks `protocol`, whose messages have up to `largest` bytes of
        data. ConnectionLost: nobody does, within `timeout_s`. Refused: it is not for us (token, TLS, protocol)."""

    async def listen(self, address: str, protocol: str, serve: Serve, *, largest: int = 0) -> Listener:
        """Run `serve(connection)`, which may last, for each who comes to HOST:PORT (port 0: any free one) and may; its
        connection is closed at its end. InvalidConfig: not there."""


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
