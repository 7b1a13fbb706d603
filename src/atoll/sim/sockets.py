"""Driver: what asyncio knows as transports and servers, between the hosts of a simulated network.

An address is a host's name and a port. What is sent counts as unread until the other side has read it: so who doesn't
read, or stands still, stops who writes, as a window of TCP does. A way that is cut breaks its connections after
`WATCH_S` (`net/tcp.py`).
"""

import asyncio
from collections import deque
from collections.abc import Callable
from contextvars import Context
from typing import Any, Final, Protocol

from atoll.sim.connection import Connection
from atoll.sim.net import Network

WATCH_S: Final = 4.0
MOST_UNREAD: Final = 4 << 20
"""Bytes; above it who writes is told to wait, until a quarter is left."""
FIRST_PORT: Final = 40000
"""Of those that are given to who doesn't care."""

Factory = Callable[[], asyncio.BaseProtocol]


class Owner(Protocol):
    """A process: where its callbacks run."""

    host: str
    context: Context


class Sockets:
    """All connections of a network, on one event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop, network: Network) -> None:
        self.loop, self.network = loop, network
        self.servers: dict[tuple[str, int], Server] = {}
        self._ends: dict[End, None] = {}
        self._ports = FIRST_PORT

    async def connect(self, owner: Owner, factory: Factory, host: str, port: int) -> tuple["End", Any]:
        """As `loop.create_connection`: there and back. OSError: nothing listens there; no such host."""
        if host not in self.network.fabric.hosts:
            raise OSError(f"there is no host {host!r}")
        answer: asyncio.Future[End] = self.loop.create_future()
        out, back = Connection(self.network, owner.host, host), Connection(self.network, host, owner.host)
        self._ports += 1
        ours = self._ports

        def refuse() -> None:
            if not answer.done():
                answer.set_exception(ConnectionRefusedError())

        def stands(near: End) -> None:
            if answer.done():  # nobody waits any more
                near.abort()
            else:
                answer.set_result(near)

        def arrived() -> None:
            server = self.servers.get((host, port))
            if server is None:
                back.carry(0, refuse)
                return
            near, far = End(self, owner, out), End(self, server.owner, back)
            near.meet(far, (host, port))
            far.meet(near, (owner.host, ours))
            far.open(server.factory)
            back.carry(0, stands, near)

        out.carry(0, arrived)
        near = await answer
        protocol = near.open(factory, now=True)
        return near, protocol

    def listen(self, owner: Owner, factory: Factory, host: str, port: int) -> "Server":
        """As `loop.create_server`. OSError: the host is another's, or the port is in use."""
        if host != owner.host:
            raise OSError(f"{host!r} is no address of {owner.host!r}")
        if not port:
            self._ports += 1
            port = self._ports
        if (host, port) in self.servers:
            raise OSError("the address is in use")
        server = self.servers[host, port] = Server(self, owner, factory, (host, port))
        return server

    def kill(self, owner: Owner) -> None:
        """A process has ended: others see its connections reset."""
        for server in [server for server in self.servers.values() if server.owner is owner]:
            server.close()
        for end in [end for end in self._ends if end.owner is owner]:
            end.reset()

    def cut(self, host: str) -> None:
        """Nothing passes the links of `host` until `mend`."""
        self._set(host, up=False)
        self.loop.call_later(WATCH_S, self._watch)

    def mend(self, host: str) -> None:
        """They are as built."""
        self._set(host, up=True)

    def _set(self, host: str, up: bool) -> None:
        for link in self.network.fabric.links.values():
            if host in (link.source, link.target):
                self.network.set_link(link, link.bytes_per_s if up else 0.0)

    def _watch(self) -> None:
        for end in list(self._ends):
            if not self.network.up(end.owner.host, end.other.owner.host):
                end.broken(TimeoutError("timed out"))

    def add(self, end: "End") -> None:
        self._ends[end] = None

    def forget(self, end: "End") -> None:
        self._ends.pop(end, None)


class Server:
    """What `create_server` gives, as far as it is used."""

    def __init__(self, sockets: Sockets, owner: Owner, factory: Factory, address: tuple[str, int]) -> None:
        self.owner, self.factory = owner, factory
        self._sockets, self._address = sockets, address

    @property
    def sockets(self) -> "tuple[Server, ...]":
        """One, which knows its name."""
        return (self,)

    def getsockname(self) -> tuple[str, int]:
        """Host and port."""
        return self._address

    def close(self) -> None:
        """Take nobody any more."""
        self._sockets.servers.pop(self._address, None)


class End(asyncio.Transport):
    """One end of a connection."""

    def __init__(self, sockets: Sockets, owner: Owner, out: Connection) -> None:
        super().__init__()
        self.owner = owner
        self.other: End
        self._sockets, self._out = sockets, out
        self._protocol: Any = None
        self._inbox: deque[memoryview] = deque()
        self._unread = 0
        """Bytes we have sent that the other side has not read."""
        self._waits = self._paused = self._closing = self._over = self._ended = False

    def meet(self, other: "End", name: tuple[str, int]) -> None:
        """The two belong together."""
        self.other = other
        self._extra: dict[str, Any] = {"peername": name}
        self._sockets.add(self)

    def open(self, factory: Factory, now: bool = False) -> Any:
        """Give it a protocol, in its process."""

        def begin() -> Any:
            self._protocol = factory()
            self._protocol.connection_made(self)
            self._feed()
            return self._protocol

        if now:
            return begin()
        self._soon(begin)
        return None

    # -- asyncio.Transport --------------------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        """Will nothing more be sent?"""
        return self._closing

    def write(self, data: Any) -> None:
        """As a socket's."""
        if self._closing:
            return
        copy = memoryview(bytes(data))
        self._unread += len(copy)
        self._out.carry(len(copy), self.other._arrive, copy)
        if self._unread > MOST_UNREAD and not self._waits:
            self._waits = True
            self._protocol.pause_writing()

    def pause_reading(self) -> None:
        """Let it wait."""
        self._paused = True

    def resume_reading(self) -> None:
        """Go on."""
        self._paused = False
        self._soon(self._feed)

    def close(self) -> None:
        """When all has left."""
        if not self._closing:
            self._closing = True
            self._out.carry(0, self.other._finish)
            self._end(None)

    def abort(self) -> None:
        """At once."""
        if not self._over:
            self.reset()
            self._end(None)

    # -- what happens to it -------------------------------------------------------------------------------------------

    def reset(self) -> None:
        """What has not left is lost, and the other side is told; nobody here is."""
        self._closing = True
        self._out.abort()
        self._out.carry(0, self.other.broken, ConnectionResetError("reset by the other side"))
        self._over = True
        self._sockets.forget(self)

    def broken(self, why: Exception) -> None:
        """It is over, without a word to the other side."""
        self._closing = True
        self._out.abort()
        self._end(why)

    def _arrive(self, data: memoryview) -> None:
        self._inbox.append(data)
        self._soon(self._feed)

    def _finish(self) -> None:
        self._ended = True
        self._soon(self._feed)

    def _feed(self) -> None:
        """Give the protocol what has come."""
        while self._inbox and not self._paused and not self._over and self._protocol is not None:
            data = self._inbox.popleft()
            if isinstance(self._protocol, asyncio.BufferedProtocol):
                room = memoryview(self._protocol.get_buffer(len(data)))
                taken = min(len(room), len(data))
                room[:taken] = data[:taken]
                if taken < len(data):
                    self._inbox.appendleft(data[taken:])
                self.other._read(taken)
                self._protocol.buffer_updated(taken)
            else:
                self.other._read(len(data))
                self._protocol.data_received(bytes(data))
        if self._ended and not self._inbox and not self._over and self._protocol is not None:
            self._ended = False
            if not self._protocol.eof_received():
                self.close()

    def _read(self, nbytes: int) -> None:
        self._unread -= nbytes
        if self._waits and self._unread <= MOST_UNREAD // 4:
            self._waits = False
            self._soon(self._protocol.resume_writing)

    def _end(self, why: Exception | None) -> None:
        if self._over and why is not None:
            return
        self._over = True
        self._waits = False  # who waits to write hears of the end instead
        self._sockets.forget(self)
        if self._protocol is not None:
            self._soon(self._protocol.connection_lost, why)
            self._protocol = None

    def _soon(self, fn: Callable[..., Any], *args: Any) -> None:
        self._sockets.loop.call_soon(fn, *args, context=self.owner.context)
