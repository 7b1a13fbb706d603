"""Driver: the wire: a peer's sockets, driven by a thread of their own or by the program that waits (`net/driven.py`).

Carries out what its station asks; decides nothing. Reductions run in whichever thread drives, and release the GIL.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from typing import Final

from atoll.errors import AtollError, InvalidConfig, MasterLost, ProtocolError
from atoll.group import messages
from atoll.group.api import LinkDown, LinkUp, MasterGone, PeerEvent, Ticket
from atoll.group.helper import Helper
from atoll.group.messages import LinkAck, LinkHello, Seat, Status, ToMaster, Welcome
from atoll.group.peer import Peer
from atoll.group.station import Station
from atoll.net.channel import CONTROL, Channel
from atoll.net.driven import DrivenLoop
from atoll.net.loop import Address, SocketLoop, local_host
from atoll.net.preamble import Greeting
from atoll.version import VERSION

log = logging.getLogger("atoll.group")

DIAL_S: Final = 3.0
STALL_S: Final = 10.0
"""A data phase in which no frame lands for so long has a broken link."""
_CHECK_S: Final = 1.0
_MOST_EARLY_LINKS: Final = 64
GREETING: Final = Greeting(VERSION)


def parse_address(address: str) -> Address:
    """ "host:port" (or "[v6]:port") in two parts."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit() or not 0 <= int(port) < 1 << 16:
        raise InvalidConfig(f"{address!r} is no address: write HOST:PORT")
    return host.strip("[]"), int(port)


def dial_master(address: str, timeout_s: float) -> socket.socket:
    """Connect, again and again until the time is up. MasterLost: nobody answers there."""
    host, port = parse_address(address)
    end = time.monotonic() + timeout_s
    while True:
        try:
            return socket.create_connection((host, port), max(0.1, end - time.monotonic()))
        except OSError as error:
            if time.monotonic() + 0.2 >= end:
                why = error.strerror or error
                raise MasterLost(f"no master answers at {address} ({why}): start one with `atoll master`") from None
            time.sleep(0.2)


class Wire:
    """A `Port` over TCP. `start_helper=False`: nobody reports for us, so a stopped process isn't noticed (tests)."""

    def __init__(self, address: str, *, timeout_s: float = 30.0, start_helper: bool = True) -> None:
        sock = dial_master(address, timeout_s)
        self._net = SocketLoop(GREETING)
        self._control = Channel(sock, GREETING)
        host = local_host(self._control)
        self._peer = Peer(*self._net.listen(host, 0, self._accepted))
        self._station = Station(self._peer, self)
        self._net.add(self._control, self._master_said, self._master_gone)
        self._net.expect_greeting(self._control)
        self._successor: tuple[int, Channel] | None = None
        self._predecessors: dict[tuple[int, int], Channel] = {}
        """Links others have dialled, by (epoch, member id)."""
        self._cancel_dial: Callable[[], None] = _nothing
        self._frames_seen = 0
        self._moved_at = 0.0
        self._helper = Helper(parse_address(address)) if start_helper else None
        self._net.after(_CHECK_S, self._check)
        self._loop = DrivenLoop(self._net, "atoll-wire", self._failed)
        self._loop.start()

    # -- Port: called from the program's thread --------------------------------------------------------------------

    @property
    def id(self) -> int:
        return self._peer.id

    def submit(self, ticket: Ticket) -> None:
        ticket.woken = threading.Event()
        self._loop.call(lambda: self._feed(ticket))

    def wait(self, ticket: Ticket, timeout_s: float | None) -> bool:
        if self._loop.drive(lambda: ticket.outcome is not None, timeout_s):
            return ticket.outcome is not None
        return bool(ticket.woken.wait(timeout_s))

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._loop.close(self._leave)
        if self._helper:
            self._helper.close()

    # -- the loop --------------------------------------------------------------------------------------------------

    def _leave(self) -> None:
        self.tell(messages.Bye())
        self._feed(MasterGone("this group was closed"))

    def _failed(self, error: Exception) -> None:
        self._feed(MasterGone(f"the wire failed ({error!r}): please report it with the log"))

    def _feed(self, event: PeerEvent) -> None:
        self._station.feed(event)

    def _check(self) -> None:
        """Once a second: does data move, does the helper live?"""
        now, station = time.monotonic(), self._station
        if not station.runs or station.frames != self._frames_seen:
            self._moved_at, self._frames_seen = now, station.frames
        elif now - self._moved_at > STALL_S:
            self._moved_at = now
            self._feed(LinkDown(station.epoch, self.id, f"no data for {STALL_S:g} s"))
        if self._helper:
            self._helper.keep()
        self._net.after(_CHECK_S, self._check)

    # -- master ----------------------------------------------------------------------------------------------------

    def _master_said(self, channel: Channel, sequence: int, body: memoryview) -> None:
        message = messages.decode_to_peer(body)
        if isinstance(message, Status):
            return
        self._feed(message)
        if isinstance(message, Welcome) and self._helper:
            self._helper.start(message.id, message.secret)

    def _master_gone(self, channel: Channel, why: str) -> None:
        self._feed(MasterGone(why if channel.refused else f"the master is gone: {why}", channel.refused))

    # -- Carrier: what the station asks for ------------------------------------------------------------------------

    def tell(self, message: ToMaster) -> None:
        self._net.send(self._control, CONTROL, messages.encode(message))

    def relink(self, epoch: int, successor: Seat | None) -> None:
        self._cancel_dial()
        self._cancel_dial = _nothing
        if self._successor:
            self._net.remove(self._successor[1])
            self._successor = None
        expected = self._predecessor
        for key in [k for k in self._predecessors if epoch < 0 or k[0] < epoch or (k[0] == epoch and k[1] != expected)]:
            self._net.remove(self._predecessors.pop(key))
        if successor is not None:
            self._cancel_dial = self._net.dial(
                (successor.host, successor.port),
                DIAL_S,
                lambda channel: self._dialled(epoch, successor.id, channel),
                lambda why: self._feed(LinkDown(epoch, successor.id, why)),
            )

    def send(self, to: int, seq: int, data: memoryview) -> None:
        if self._successor and self._successor[0] == to:
            self._net.send(self._successor[1], seq, data)

    def resume(self, source: int) -> None:
        channel = self._predecessors.get((self._station.epoch, source))
        if channel is not None:
            self._net.resume(channel)

    def wake(self, ticket: Ticket) -> None:
        if self._helper:
            self._helper.progress()
        ticket.woken.set()

    # -- links -----------------------------------------------------------------------------------------------------

    @property
    def _predecessor(self) -> int:
        """Whose link belongs to the present epoch; 0: nobody's."""
        peer = self._peer
        ring = (
            tuple(seat.id for seat in peer.forming.ring) if peer.forming else peer.views[-1].ring if peer.views else ()
        )
        return ring[ring.index(peer.id) - 1] if len(ring) > 1 else 0

    def _dialled(self, epoch: int, to: int, channel: Channel) -> None:
        self._successor = to, channel

        def said(channel: Channel, sequence: int, body: memoryview) -> None:
            if not isinstance(messages.decode_on_link(body), LinkAck):
                raise ProtocolError("something else than an acknowledgement of the link")
            self._feed(LinkUp(epoch, to))

        self._net.add(channel, said, lambda _, why: self._feed(LinkDown(epoch, to, why)))
        self._net.send(channel, CONTROL, messages.encode(LinkHello(epoch, self.id)))

    def _accepted(self, channel: Channel) -> None:
        self._net.add(channel, self._link_hello, lambda _, why: log.info("a connection ended unused: %s", why))

    def _link_hello(self, channel: Channel, sequence: int, body: memoryview) -> None:
        hello = messages.decode_on_link(body)
        if not isinstance(hello, LinkHello) or len(self._predecessors) >= _MOST_EARLY_LINKS:
            raise ProtocolError("something else than the greeting of a link")
        epoch, source = hello.epoch, hello.id
        if epoch < self._station.epoch or (epoch, source) in self._predecessors:
            raise AtollError(f"a link of epoch {epoch} that is over")
        if epoch == self._station.epoch and source != self._predecessor:
            raise AtollError(f"peer {source} is not our neighbour in epoch {epoch}")
        self._predecessors[epoch, source] = channel
        channel.place = lambda seq, nbytes: self._station.place(source, seq, nbytes)
        self._net.add(
            channel,
            lambda _, seq, data: self._data(source, seq, data),
            lambda _, why: self._lost_predecessor(epoch, source, why),
        )
        self._net.send(channel, CONTROL, messages.encode(LinkAck(epoch)))

    def _data(self, source: int, seq: int, data: memoryview) -> None:
        if seq == CONTROL:
            raise ProtocolError("a message on a link that carries data")
        self._station.landed(source, seq, data)

    def _lost_predecessor(self, epoch: int, source: int, why: str) -> None:
        self._predecessors.pop((epoch, source), None)
        self._feed(LinkDown(epoch, source, why))


def _nothing() -> None:
    """No dial is under way."""
