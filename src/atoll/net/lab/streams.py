"""Driver: the middle of a lab without root: a process that accepts connections in the name of each host and passes
their bytes on, late. Run by `relay.py`."""

import errno
import selectors
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from random import Random
from typing import Any, Final

import psutil

from atoll.net.lab.api import Shape
from atoll.net.lab.link import Link
from atoll.net.lab.turns import Turns

_PIECE_S: Final = 0.002
_SMALLEST_PIECE, _LARGEST_PIECE = 1448, 64 << 10
_SOCKET_BUFFER: Final = 128 << 10
"""Bytes that wait where no rate is applied: few."""
_WITHIN: Final = Shape(rate_bits_per_s=1e12)
"""From a host to itself."""
_LOOK_AGAIN_S: Final = 0.05
_LOOKS: Final = 10
_AT_ONCE: Final = struct.pack("ii", 1, 0)  # closing with this linger is a reset

Address = tuple[str, int]


class Stream:
    """One direction of a connection: read, on its way, due."""

    def __init__(self, source: socket.socket, target: socket.socket, link: Link) -> None:
        self.source, self.target, self.link = source, target, link
        self.pieces: deque[memoryview | None] = deque()
        """Empty: the end. None: a reset."""
        self.nbytes = 0
        self.due = 0
        """How many of the pieces may be written."""
        self.ended = False
        """The last piece has been read."""
        self.done = False
        """And written."""

    @property
    def room(self) -> int:
        """How much may be read: what the queue and the way hold."""
        shape = self.link.shape
        way = int(shape.rate_bits_per_s * (shape.delay_s + shape.jitter_s) / 8)
        piece = int(shape.rate_bits_per_s * _PIECE_S / 8)
        return min(shape.room_bytes + way - self.nbytes, max(_SMALLEST_PIECE, min(piece, _LARGEST_PIECE)))


class Connection:
    """Two sockets and the streams between them."""

    def __init__(self, hosts: set[int], there: Stream, back: Stream) -> None:
        self.hosts = hosts
        self.streams = (there, back)


class Relay:
    """Connections between hosts that have a loopback address each."""

    def __init__(self) -> None:
        self._turns = Turns(self._obey)
        self._addresses: list[str] = []
        self._links: dict[tuple[int, int], Link] = {}
        self._cut: set[int] = set()
        self._processes: dict[int, int] = {}  # id -> host
        self._connections: dict[Connection, None] = {}
        self._unheard: list[tuple[set[int], Callable[[], None]]] = []
        """Dialled by or to one who is cut off."""

    def run(self) -> None:
        """Until the lab ends."""
        self._turns.run()

    def _obey(self, order: str, *args: Any) -> Any:
        orders: dict[str, Callable[..., Any]] = {
            "open": self._open,
            "set": lambda a, b, *shape: self._links[a, b].set(Shape(*shape)),
            "cut": self._sever,
            "heal": self._heal,
            "expose": self._expose,
            "runs": lambda host, pid: self._processes.update({pid: host}),
        }
        return orders[order](*args)

    def _open(self, addresses: list[str], seed: int, *shape: Any) -> None:
        self._addresses = addresses
        for a in range(len(addresses)):
            for b in range(len(addresses)):
                self._links[a, b] = Link(_WITHIN if a == b else Shape(*shape), Random(f"{seed} {a} {b}").random)

    def _sever(self, host: int) -> None:
        self._cut.add(host)
        self._look_at_all()

    def _heal(self, host: int) -> None:
        self._cut.discard(host)
        self._look_at_all()
        unheard, self._unheard = self._unheard, []
        for hosts, dial in unheard:
            self._unless_cut(hosts, dial)

    def _look_at_all(self) -> None:
        for connection in list(self._connections):
            self._advance(connection)

    def _unless_cut(self, hosts: set[int], dial: Callable[[], None]) -> None:
        if hosts & self._cut:
            self._unheard.append((hosts, dial))
        else:
            dial()

    # -- who dials ----------------------------------------------------------------------------------------------------

    def _expose(self, host: int, port: int) -> int:
        server = socket.create_server((self._addresses[host], 0), backlog=256)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SOCKET_BUFFER)
        server.setblocking(False)
        self._turns.selector.register(server, selectors.EVENT_READ, partial(self._accept, server, host, port))
        return int(server.getsockname()[1])

    def _accept(self, server: socket.socket, host: int, port: int, _: int) -> None:
        try:
            dialler, source = server.accept()
        except (BlockingIOError, ConnectionAbortedError):  # gone again
            return
        dialler.setblocking(False)
        self._identify(dialler, source, (host, port), _LOOKS)

    def _identify(self, dialler: socket.socket, source: Address, to: tuple[int, int], looks: int) -> None:
        """Find the host. A process is told of after its start, and may have dialled before."""
        a, (b, port) = self._host_of(source), to
        if a is not None:
            moment = self._links[a, b].arrival_of_stream(0, time.monotonic())
            dial = partial(self._dial, dialler, a, b, port)
            self._turns.at(moment, self._unless_cut, {a, b} if a != b else set(), dial)
        elif looks:
            self._turns.at(time.monotonic() + _LOOK_AGAIN_S, self._identify, dialler, source, to, looks - 1)
        else:
            _reset(dialler)

    def _host_of(self, source: Address) -> int | None:
        if source[0] in self._addresses:  # it has bound its socket to its host's address
            return self._addresses.index(source[0])
        for pid, host in list(self._processes.items()):
            try:
                if any(source in _local_ends(process) for process in _family(pid)):
                    return host
            except psutil.NoSuchProcess:
                if not psutil.pid_exists(pid):
                    del self._processes[pid]
        return None

    def _dial(self, dialler: socket.socket, a: int, b: int, port: int) -> None:
        dialled = socket.socket()
        dialled.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SOCKET_BUFFER)
        dialled.bind((self._addresses[a], 0))
        dialled.setblocking(False)
        if dialled.connect_ex((self._addresses[b], port)) not in (0, errno.EINPROGRESS):
            dialled.close()
            _reset(dialler)
            return
        for sock in (dialler, dialled):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        hosts = {a, b} if a != b else set()
        there, back = Stream(dialler, dialled, self._links[a, b]), Stream(dialled, dialler, self._links[b, a])
        connection = Connection(hosts, there, back)
        self._connections[connection] = None
        self._advance(connection)

    # -- bytes --------------------------------------------------------------------------------------------------------

    def _ready(self, connection: Connection, sock: socket.socket, events: int) -> None:
        for stream in connection.streams:
            if stream.source is sock and events & selectors.EVENT_READ:
                self._read(connection, stream)
        self._advance(connection)

    def _read(self, connection: Connection, stream: Stream) -> None:
        if connection.hosts & self._cut or stream.ended or stream.room <= 0:
            return
        try:
            self._put(connection, stream, memoryview(stream.source.recv(stream.room)))
        except BlockingIOError:
            pass
        except OSError:
            self._put(connection, stream, None)

    def _put(self, connection: Connection, stream: Stream, piece: memoryview | None) -> None:
        nbytes = len(piece) if piece is not None else 0
        stream.ended = not nbytes
        stream.nbytes += nbytes
        stream.pieces.append(piece)
        self._turns.at(stream.link.arrival_of_stream(nbytes, time.monotonic()), self._fall_due, connection, stream)

    def _fall_due(self, connection: Connection, stream: Stream) -> None:
        stream.due += 1
        self._advance(connection)

    def _advance(self, connection: Connection) -> None:
        """Write what is due, and ask for what can be done next."""
        if connection not in self._connections:
            return
        cut = bool(connection.hosts & self._cut)
        for stream in connection.streams:
            if not cut and self._write(stream):
                self._close(connection, _reset)
                return
        if all(stream.done for stream in connection.streams):
            self._close(connection, socket.socket.close)
            return
        there, back = connection.streams
        for out, into in ((there, back), (back, there)):
            reads = not (cut or out.ended or out.room <= 0)
            writes = not cut and into.due > 0
            self._ask(connection, out.source, reads * selectors.EVENT_READ | writes * selectors.EVENT_WRITE)

    def _write(self, stream: Stream) -> bool:
        """What is due. True: the connection is broken."""
        while stream.due and not stream.done:
            piece = stream.pieces[0]
            if piece is None:
                return True
            try:
                if not piece:
                    stream.target.shutdown(socket.SHUT_WR)
                    stream.done = True
                    continue
                sent = stream.target.send(piece)
            except BlockingIOError:
                return False
            except OSError:
                return True
            stream.nbytes -= sent
            if sent < len(piece):
                stream.pieces[0] = piece[sent:]
            else:
                stream.pieces.popleft()
                stream.due -= 1
        return False

    def _ask(self, connection: Connection, sock: socket.socket, events: int) -> None:
        selector = self._turns.selector
        known = selector.get_map().get(sock)
        if known is None:
            if events:
                selector.register(sock, events, partial(self._ready, connection, sock))
        elif not events:
            selector.unregister(sock)
        elif events != known.events:
            selector.modify(sock, events, known.data)

    def _close(self, connection: Connection, how: Callable[[socket.socket], None]) -> None:
        del self._connections[connection]
        for stream in connection.streams:
            self._ask(connection, stream.source, 0)
            how(stream.source)


def _local_ends(process: psutil.Process) -> list[Address]:
    ends = process.net_connections if hasattr(process, "net_connections") else process.connections  # psutil before 6
    try:
        return [(end.laddr.ip, end.laddr.port) for end in ends("tcp") if end.laddr]
    except psutil.AccessDenied:
        return []


def _family(pid: int) -> Iterator[psutil.Process]:
    process = psutil.Process(pid)
    yield process
    yield from process.children(recursive=True)


def _reset(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
    sock.close()


if __name__ == "__main__":
    Relay().run()
