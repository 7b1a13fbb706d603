"""Driver: a relay before a master, which counts what passes: all bytes of each connection, whatever they mean."""

import socket
import threading
from contextlib import suppress
from types import TracebackType
from typing import Self


class CountingRelay:
    """Listens on loopback and passes all on to `target`, "host:port". A context manager."""

    def __init__(self, target: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = host, int(port)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._sockets: list[socket.socket] = []
        self.counts: list[list[int]] = []
        """Of each connection, in order: bytes to the target, and from it."""
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        for sock in (self._listener, *self._sockets):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
            sock.close()

    def now(self) -> list[tuple[int, int]]:
        """The counts at this moment."""
        return [(up, down) for up, down in self.counts]

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                far = socket.create_connection(self._target)
                count = [0, 0]
                self.counts.append(count)
                self._sockets += [near, far]
                for way, (source, sink) in enumerate([(near, far), (far, near)]):
                    threading.Thread(target=_pass_on, args=(source, sink, count, way), daemon=True).start()


def _pass_on(source: socket.socket, sink: socket.socket, count: list[int], way: int) -> None:
    with suppress(OSError):
        for sock in (source, sink):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        while data := source.recv(1 << 16):
            count[way] += len(data)
            sink.sendall(data)
    with suppress(OSError):
        sink.shutdown(socket.SHUT_WR)
