"""Driver: connections between actors, on asyncio's transports: those of the system, or those of virtual time.

What is said is `net/session.py`'s business. Large data is read straight into its place, and written in pieces that wait
for each other, so that nothing is held twice.
"""

import asyncio
import errno
import logging
import math
import os
import socket
import ssl
from collections.abc import Callable
from typing import Any, Final

from atoll.errors import AtollError, ConnectionLost, DeadlineExceeded, InvalidConfig, Refused
from atoll.net import tcp, tls
from atoll.net.address import parse_address, spelled
from atoll.net.guard import OPEN, Guard
from atoll.net.handshake import CHALLENGE_BYTES
from atoll.net.session import Session
from atoll.runtime.api import Bytes, Connection, Listener, Message, Serve

log = logging.getLogger("atoll.net")

PIECE: Final = 256 << 10
"""Bytes that are handed over at once."""
UNREAD_MESSAGES: Final = 64
UNREAD_BYTES: Final = 1 << 20
"""So much may wait to be received before the other side has to."""
MOST_STRANGERS: Final = 256
"""At one door, who have not been admitted yet; one more, and the first of them must go."""
ADMITTED_S: Final = 10.0
CLOSED_S: Final = 1.0
WARN_S: Final = 1.0
"""Of those who are refused, one in so long is worth a warning."""
BACKLOG: Final = 256
_IGNORED: Final = 4096


class Streams:
    """A `Network` for those who know each other by `guard`."""

    def __init__(self, guard: Guard = OPEN) -> None:
        self.guard = guard
        self._ours = b"" if guard.tls is None else tls.certificate(guard.tls)
        self._dials = None if guard.tls is None else tls.context(guard.tls, server_side=False)
        self._listens = None if guard.tls is None else tls.context(guard.tls, server_side=True)

    async def connect(self, address: str, protocol: str, *, largest: int = 0, timeout_s: float) -> Connection:
        """See `Runtime`."""
        host, port = parse_address(address)
        link: Link | None = None
        try:
            async with asyncio.timeout(timeout_s):
                _, link = await asyncio.get_running_loop().create_connection(
                    lambda: Link(self._session(protocol, True, largest)), host, port, ssl=self._dials
                )
                await link.admitted()
        except TimeoutError:
            raise ConnectionLost(f"{address} does not answer within {timeout_s:g} s") from None
        except ssl.SSLError as error:
            raise tls.explain(error) from None
        except OSError as error:
            raise ConnectionLost(f"{address} can't be reached: {_why(error)}") from None
        finally:
            if link is not None and not link.open:
                link.abort()
        assert link is not None
        return link

    async def listen(self, address: str, protocol: str, serve: Serve, *, largest: int = 0) -> Listener:
        """See `Runtime`."""
        host, port = parse_address(address)
        door = _Door(serve)
        try:
            server = await asyncio.get_running_loop().create_server(
                lambda: door.knock(Link(self._session(protocol, False, largest), door.admit, door.gone)),
                host, port, backlog=BACKLOG, ssl=self._listens,
                ssl_handshake_timeout=ADMITTED_S if self._listens else None,
            )  # fmt: skip
        except OSError as error:
            raise InvalidConfig(
                f"can't listen on {address} ({_why(error)}): choose another address, or end what uses it"
            ) from None
        door.opened(server)
        return door

    def _session(self, protocol: str, dialled: bool, largest: int) -> Callable[["asyncio.BaseTransport"], Session]:
        """What makes one when the connection stands."""

        def made(transport: asyncio.BaseTransport) -> Session:
            challenge = os.urandom(CHALLENGE_BYTES) if self.guard.key else b""
            binding = b""
            if wrapped := transport.get_extra_info("ssl_object"):
                theirs = wrapped.getpeercert(binary_form=True) or b""
                binding = tls.binding(theirs, self._ours) if dialled else tls.binding(self._ours, theirs)
            return Session(
                protocol, dialled=dialled, largest=largest, key=self.guard.key, challenge=challenge, binding=binding
            )

        return made


class Link(asyncio.BufferedProtocol):
    """A `Connection`. `admit(self)` is called when the other side may speak, `gone(self)` when all is over."""

    def __init__(
        self, session: Callable[[asyncio.BaseTransport], Session], admit: "Callable[[Link], None] | None" = None,
        gone: "Callable[[Link], None] | None" = None,
    ) -> None:  # fmt: skip
        self.name = "one who has not come yet"
        self.received = 0
        self._make, self._admit, self._gone = session, admit, gone
        self._session: Session
        self._transport: asyncio.Transport | None = None
        self._error: AtollError | None = None
        self._news, self._goes_out, self._sending = asyncio.Event(), asyncio.Event(), asyncio.Lock()
        self._goes_out.set()
        self._waits = False
        """The other side has to, for we have not received what it sent."""

    @property
    def refused(self) -> str:
        """Why, if the other side doesn't belong to us."""
        return str(self._error) if isinstance(self._error, Refused) else ""

    @property
    def open(self) -> bool:
        """May both speak?"""
        return self._error is None and self._transport is not None and self._session.admitted

    # -- Connection ---------------------------------------------------------------------------------------------------

    async def send(self, head: bytes, data: Bytes = b"", *, timeout_s: float) -> None:
        """See `Connection`."""
        view = memoryview(data)
        view = view.cast("B") if view.nbytes else memoryview(b"")
        async with self._sending:
            try:
                await self._write(memoryview(self._session.framed(head, len(view))), timeout_s)
                for at in range(0, len(view), PIECE):
                    await self._write(view[at : at + PIECE], timeout_s)
            except asyncio.CancelledError:
                self._fail(ConnectionLost(f"a message to {self.name} was given up half-way"))
                raise

    async def receive(self, *, timeout_s: float) -> Message:
        """See `Connection`."""
        while not self._session.come:
            if self._error is not None:
                raise self._lost()
            self._news.clear()
            try:
                async with asyncio.timeout(timeout_s):
                    await self._news.wait()
            except TimeoutError:
                raise DeadlineExceeded(f"{self.name} said nothing within {timeout_s:g} s") from None
        message = self._session.come.popleft()
        if self._waits and self._transport is not None and not self._full():
            self._waits = False
            self._transport.resume_reading()
        return message

    def close(self) -> None:
        """See `Connection`."""
        if self._error is None:
            self._error = ConnectionLost(f"the connection to {self.name} was closed here")
            self._wake()
        if self._transport is not None:
            self._transport.close()
            asyncio.get_running_loop().call_later(CLOSED_S, self._transport.abort)

    def abort(self) -> None:
        """Close, whatever is on its way."""
        self._fail(ConnectionLost(f"the connection to {self.name} was given up"))

    async def admitted(self) -> None:
        """Returns when both may speak; else raises why not."""
        while not self.open:
            if self._error is not None:
                raise self._lost()
            self._news.clear()
            await self._news.wait()

    # -- asyncio.BufferedProtocol -------------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """It stands: greet."""
        assert isinstance(transport, asyncio.Transport)
        if self._error is not None:  # sent away while TLS shook hands
            transport.abort()
            return
        self._transport, self._session = transport, self._make(transport)
        place = transport.get_extra_info("peername")
        self.name = spelled(place) if place else "one who has gone"
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None:
            tcp.tune(sock)
            tcp.keep_watch(sock)
        self._say()

    def get_buffer(self, sizehint: int) -> memoryview:
        """Where to read to."""
        return self._session.room() if self._error is None else memoryview(bytearray(_IGNORED))

    def buffer_updated(self, nbytes: int) -> None:
        """So much was read."""
        if self._error is not None:  # it is read on until it has said its last words
            return
        before = self._session.admitted
        self.received += nbytes
        try:
            self._session.took(nbytes)
        except AtollError as error:
            self._say()
            self._fail(error, flush=True)
            return
        self._say()
        if self._session.admitted and not before and self._admit is not None:
            self._admit(self)
        if self._full() and not self._waits and self._transport is not None:
            self._waits = True
            self._transport.pause_reading()
        self._news.set()

    def eof_received(self) -> None:
        """The other side sends nothing more."""
        try:
            self._session.ended()
        except AtollError as error:
            self._fail(error)
        else:
            self._fail(ConnectionLost(f"{self.name} has closed the connection"))

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        if isinstance(exc, ssl.SSLError):
            self._fail(tls.explain(exc))
        else:
            self._fail(ConnectionLost(f"the connection to {self.name} broke" + (f": {_why(exc)}" if exc else "")))
        self._transport = None
        if self._gone is not None:
            self._gone(self)

    def pause_writing(self) -> None:
        """Enough waits to leave."""
        self._goes_out.clear()

    def resume_writing(self) -> None:
        """There is room again."""
        self._goes_out.set()

    # -- inside -------------------------------------------------------------------------------------------------------

    async def _write(self, some: memoryview, timeout_s: float) -> None:
        try:
            async with asyncio.timeout(timeout_s):
                await self._goes_out.wait()
        except TimeoutError:
            self._fail(ConnectionLost(f"{self.name} took nothing for {timeout_s:g} s"))
        if self._error is not None or self._transport is None:
            raise self._lost()
        self._transport.write(some)

    def _full(self) -> bool:
        come = self._session.come
        return len(come) >= UNREAD_MESSAGES or sum(len(each.data) for each in come) >= UNREAD_BYTES

    def _say(self) -> None:
        """What the session has to say."""
        if self._transport is not None:
            for said in self._session.leaving:
                self._transport.write(said)
        self._session.leaving.clear()

    def _fail(self, error: AtollError, flush: bool = False) -> None:
        if self._error is None:
            self._error = error
        if self._transport is not None:
            if flush:  # not from within what it calls: TLS is in the middle of reading
                asyncio.get_running_loop().call_soon(self.close)
            else:
                self._transport.abort()
        self._wake()

    def _wake(self) -> None:
        self._news.set()
        self._goes_out.set()

    def _lost(self) -> AtollError:
        """What is raised, anew for each who hears of it."""
        assert self._error is not None
        return type(self._error)(str(self._error))


class _Door:
    """A `Listener`."""

    def __init__(self, serve: Serve) -> None:
        self.address = ""
        self._serve = serve
        self._server: asyncio.base_events.Server | None = None
        self._strangers: dict[Link, asyncio.TimerHandle] = {}
        self._served: set[asyncio.Task[None]] = set()
        self._warned_at = -math.inf

    def opened(self, server: Any) -> None:
        self._server = server
        self.address = spelled(server.sockets[0].getsockname())

    def close(self) -> None:
        """See `Listener`."""
        if self._server is not None:
            self._server.close()
        for link in list(self._strangers):
            self._send_away(link)

    def knock(self, link: Link) -> Link:
        """Somebody has come: he gets some time to say who he is, and room, if need be that of another."""
        if len(self._strangers) >= MOST_STRANGERS:
            self._send_away(next(iter(self._strangers)))
        self._strangers[link] = asyncio.get_running_loop().call_later(ADMITTED_S, self._send_away, link)
        return link

    def _send_away(self, link: Link) -> None:
        self._no_stranger(link)
        link.abort()

    def admit(self, link: Link) -> None:
        self._no_stranger(link)
        task = asyncio.get_running_loop().create_task(self._attend(link), name=f"serve-{link.name}")
        self._served.add(task)
        task.add_done_callback(self._served.discard)

    def gone(self, link: Link) -> None:
        self._no_stranger(link)
        now = asyncio.get_running_loop().time()
        if link.refused and now - self._warned_at > WARN_S:
            self._warned_at = now
            log.warning("%s was refused: %s", link.name, link.refused)

    def _no_stranger(self, link: Link) -> None:
        timer = self._strangers.pop(link, None)
        if timer is not None:
            timer.cancel()

    async def _attend(self, link: Link) -> None:
        try:
            await self._serve(link)
        except AtollError as error:
            log.info("%s: %s", link.name, error)
        except Exception:
            log.exception("a conversation with %s failed", link.name)
        finally:
            link.close()


def _why(error: BaseException) -> str:
    if isinstance(error, ConnectionRefusedError) or getattr(error, "errno", None) == errno.ECONNREFUSED:
        return "nothing listens there"
    return str(getattr(error, "strerror", None) or error or type(error).__name__)
