"""Driver: gates: ports that pass bytes on to another port, until they are told not to.

The labs of `atoll.net.lab` shape links between a fixed set of hosts, and never break a connection. Here peers come and
go by the hundred, and what is wanted is that connections die: a gate stands before one port, and stalls, resets,
refuses or slows down whatever goes through it, in both directions. All run in one thread of their own.
"""

import asyncio
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from types import TracebackType
from typing import Any, Final, Self

_CHUNK: Final = 16 << 10
_RESET_AT_CLOSE: Final = struct.pack("ii", 1, 0)


class Gate:
    """One port. Its methods may be called from any thread."""

    def __init__(self, street: "Street", target: tuple[str, int]) -> None:
        self.address = ""
        """Where others dial."""
        self._street, self._target = street, target
        self._flows = asyncio.Event()
        self._flows.set()
        self._refuses = False
        self._bytes_per_s = 0.0
        self._free_at = 0.0
        self._passing: set[asyncio.StreamWriter] = set()
        self._server: asyncio.Server

    def stall(self) -> None:
        """Nothing gets through any more, and nobody is told."""
        self._street.call(self._flows.clear)

    def reset(self) -> None:
        """Break all connections."""
        self._street.call(self._reset)

    def refuse(self) -> None:
        """Break all connections, and each new one."""

        def refuse() -> None:
            self._refuses = True
            self._reset()

        self._street.call(refuse)

    def slow(self, bytes_per_s: float) -> None:
        """So much gets through, in all."""
        self._street.call(lambda: setattr(self, "_bytes_per_s", bytes_per_s))

    def heal(self) -> None:
        """All of that is over."""

        def heal() -> None:
            self._refuses, self._bytes_per_s = False, 0.0
            self._flows.set()

        self._street.call(heal)

    def close(self) -> None:
        """The port behind is gone, and so is this one."""

        def close() -> None:
            self._refuses = True
            self._server.close()
            self._flows.set()
            self._reset()

        self._street.call(close)

    # -- in the gates' thread -----------------------------------------------------------------------------------------

    async def open(self) -> Self:
        """Begin to listen."""
        self._server = await asyncio.start_server(self._pass, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        self.address = f"{host}:{port}"
        return self

    def _reset(self) -> None:
        for writer in list(self._passing):
            _reset(writer)

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._passing.add(writer)
        there = None
        try:
            await self._flows.wait()
            if self._refuses:
                return
            back, there = await asyncio.open_connection(*self._target)
            self._passing.add(there)
            await asyncio.gather(self._pump(reader, there), self._pump(back, writer))
        except (OSError, asyncio.CancelledError):  # cancelled at the end only
            pass
        finally:
            for one in (writer, there):
                if one is not None:
                    self._passing.discard(one)
                    _reset(one)

    async def _pump(self, source: asyncio.StreamReader, to: asyncio.StreamWriter) -> None:
        while data := await source.read(_CHUNK):
            await self._flows.wait()
            if self._bytes_per_s:
                now = asyncio.get_running_loop().time()
                self._free_at = max(self._free_at, now) + len(data) / self._bytes_per_s
                await asyncio.sleep(self._free_at - now)
            to.write(data)
            await to.drain()
        await self._flows.wait()
        to.write_eof()


class Street:
    """Where the gates stand: their thread. A context manager."""

    def __enter__(self) -> Self:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="gates", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        asyncio.run_coroutine_threadsafe(self._end(), self._loop).result(5.0)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5.0)
        self._loop.close()

    async def _end(self) -> None:
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def gate(self, host: str, port: int) -> Gate:
        """A new one before that port, which need not be open yet."""
        return asyncio.run_coroutine_threadsafe(Gate(self, (host, port)).open(), self._loop).result(5.0)

    def call(self, what: Callable[[], object]) -> None:
        """Do it in the gates' thread."""
        self._loop.call_soon_threadsafe(what)

    def send(self, walk: Coroutine[Any, Any, None]) -> None:
        """Let it run in the gates' thread."""
        asyncio.run_coroutine_threadsafe(walk, self._loop)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close so that the other side hears of it at once, and what is on its way is lost."""
    with suppress(OSError):
        sock = writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
    writer.transport.abort()
