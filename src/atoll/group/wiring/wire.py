"""Driver: the wire: a peer's sockets, driven by a thread of their own or by the program that waits (`net/driven.py`).

Carries out what its station asks; decides nothing. Reductions run in whichever thread drives, and release the GIL.
"""

import logging
import socket
import threading
import time
from typing import Final

from atoll.errors import AtollError, InvalidConfig, MasterLost, ProtocolError
from atoll.group import messages
from atoll.group.api import (
    LARGEST_FRAME,
    MasterAway,
    MasterBack,
    MasterGone,
    PeerEvent,
    Relink,
    Ticket,
)
from atoll.group.collectives.execution import SHARD_BYTES
from atoll.group.legality import wrong_with
from atoll.group.messages import Establish, Seat, Status, ToMaster, Welcome
from atoll.group.peer import Peer
from atoll.group.progress import STALL_S, Progress
from atoll.group.station import Station, Take
from atoll.group.wiring.helper import Helper
from atoll.group.wiring.links import CONNECTIONS, MOST_CONNECTIONS, Links
from atoll.group.wiring.search import Search
from atoll.net import arena, capabilities, doors, tcp
from atoll.net.address import parse_address
from atoll.net.bucket import TokenBucket
from atoll.net.channel import CONTROL, Channel, Frame
from atoll.net.driven import DrivenLoop
from atoll.net.guard import OPEN, Guard
from atoll.net.loop import Address, SocketLoop, local_host
from atoll.net.preamble import Greeting
from atoll.version import VERSION

log = logging.getLogger("atoll.group")

_CHECK_S: Final = 1.0
_DIAL_S: Final = 3.0
RECONNECT_S: Final = 30.0
"""So long a master that is gone is looked for, unless told otherwise."""
_PATIENCE_S: Final = 0.003
"""How long a message to the master may wait for the next one to go with it."""
GREETING: Final = Greeting(VERSION)


def parse_addresses(addresses: str) -> list[Address]:
    """ "host:port,host:port": the master's, and where another may take over."""
    return [parse_address(address.strip()) for address in addresses.split(",")]


def dial_master(addresses: str, timeout_s: float) -> tuple[socket.socket, Address]:
    """Connect to the first of them that answers, again and again until the time is up. MasterLost: none does."""
    places = parse_addresses(addresses)
    end = time.monotonic() + timeout_s
    while True:
        for place in places:
            left_s = max(0.1, end - time.monotonic())
            try:
                return socket.create_connection(place, left_s if len(places) == 1 else min(left_s, _DIAL_S)), place
            except OSError as error:
                why = error.strerror or error
        if time.monotonic() + 0.2 >= end:
            raise MasterLost(f"no master answers at {addresses} ({why}): start one with `atoll master`")
        time.sleep(0.2)


def _bucket(bytes_per_s: float) -> TokenBucket:
    try:
        return TokenBucket(bytes_per_s)
    except ValueError as error:
        raise InvalidConfig(f"upload limit: {error}") from None


def _resolved(address: str) -> Address:
    host, port = parse_address(address)
    try:
        return str(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]), port
    except OSError as error:
        raise InvalidConfig(f"{host!r} is no address that others could dial: {error.strerror}") from None


class Wire:
    """A `Port` over TCP. `start_helper=False`: nobody reports for us, so a stopped process isn't noticed (tests)."""

    def __init__(
        self,
        address: str,
        *,
        timeout_s: float = 30.0,
        listen: str = "",
        advertise: str = "",
        start_helper: bool = True,
        shared_memory: bool = True,
        connections: int = CONNECTIONS,
        upload_bytes_per_s: float | None = None,
        reconnect_s: float = RECONNECT_S,
        guard: Guard = OPEN,
    ) -> None:
        if not 1 <= connections <= MOST_CONNECTIONS:
            raise InvalidConfig(f"connections={connections}: a link has 1 to {MOST_CONNECTIONS}")
        upload = None if upload_bytes_per_s is None else _bucket(upload_bytes_per_s)
        listen_at = parse_address(listen) if listen else None
        advertised = _resolved(advertise) if advertise else None
        sock, there = dial_master(address, timeout_s)
        tcp.keep_watch(sock)
        self._net = SocketLoop(GREETING, guard)
        self._control = self._net.channel(sock, dialled=True)
        host, port = self._listen(*(listen_at or (local_host(self._control), 0)))
        if advertised:
            host, port = advertised[0], advertised[1] or port
        local = shared_memory and arena.available()
        door = doors.open_door(self._net, LARGEST_FRAME, self._accepted) if local else ""
        masters = parse_addresses(address)
        self._peer = Peer(Seat(0, host, port, arena.machine() if local else "", door), len(masters))
        self._station = Station(self._peer, self, capabilities.best_shard_bytes() if local else SHARD_BYTES)
        self._links = Links(self._net, self._station, local, connections, upload)
        self._net.add(self._control, self._master_said, self._master_gone)
        self._net.expect_greeting(self._control)
        self._corked = False
        self._progress = Progress(self._station, time.monotonic())
        self._search = Search(self._net, masters, reconnect_s, self._master_found, self._master_ended)
        self._helper = Helper(there, guard) if start_helper else None
        self._net.after(_CHECK_S, self._check)
        self._loop = DrivenLoop(self._net, "atoll-wire", self._failed)
        self._loop.start()

    # -- Port: called from the program's thread --------------------------------------------------------------------

    @property
    def id(self) -> int:
        return self._peer.id

    def submit(self, ticket: Ticket) -> None:
        ticket.woken = threading.Lock()  # held until then; an `Event` is slow to make
        ticket.woken.acquire()
        self._loop.call(lambda: self._feed(ticket))

    def wait(self, ticket: Ticket, timeout_s: float | None) -> bool:
        if self._loop.drive(lambda: ticket.outcome is not None, timeout_s):
            return ticket.outcome is not None
        woken = ticket.woken.acquire(timeout=-1 if timeout_s is None else max(0.0, timeout_s))
        if woken:
            ticket.woken.release()  # for whoever else waits
        return bool(woken)

    def now(self) -> float:
        return time.monotonic()

    def close(self) -> None:
        self._loop.close(self._leave)
        self._links.close()
        if self._helper:
            self._helper.close()

    def _listen(self, host: str, port: int) -> Address:
        try:
            return self._net.listen(host, port, self._accepted)
        except OSError as error:
            self._net.close()
            self._control.close()
            raise AtollError(
                f"can't listen for peers on {host}, port {port} ({error.strerror}): choose another"
            ) from None

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
        overdue = self._progress.look(time.monotonic(), self._links.received(), STALL_S)
        if overdue is not None:
            self._feed(overdue)
        if self._helper:
            self._helper.keep()
        self._net.after(_CHECK_S, self._check)

    # -- master ----------------------------------------------------------------------------------------------------

    def _master_said(self, channel: Channel, frame: Frame) -> None:
        message = messages.decode_to_peer(frame.here)
        if isinstance(message, Status):
            return
        if wrong := wrong_with(self._peer, message):
            raise ProtocolError(f"it {wrong}")
        self._feed(message)
        if isinstance(message, Welcome) and self._helper:
            self._helper.start(message.id, message.secret)
        if isinstance(message, Establish | Welcome) or self._peer.over:
            self._search.settled()

    def _master_gone(self, channel: Channel, why: str) -> None:
        stranger = not (self._peer.id or self._search.on)
        final = channel.refused or channel.unruly or stranger or self._peer.over
        if final or not self._search.begin(why):
            self._search.settled()
            self._feed(MasterGone(why if channel.refused else f"the master is gone: {why}", channel.refused))
        else:
            self._feed(MasterAway())

    def _master_found(self, channel: Channel, there: Address) -> None:
        self._control = channel
        tcp.keep_watch(channel.sock)
        self._net.add(channel, self._master_said, self._master_gone)
        self._net.expect_greeting(channel)
        self._feed(MasterBack())
        if self._helper:
            self._helper.move(there)

    def _master_ended(self, why: str) -> None:
        self._net.remove(self._control)
        self._feed(MasterGone(why))

    # -- Carrier: what the station asks for ------------------------------------------------------------------------

    def tell(self, message: ToMaster, patient: bool = False) -> None:
        if self._control not in self._net.channels:
            return  # between two masters
        data = messages.encode(message)
        if not patient:
            self._corked = False
            self._net.send(self._control, CONTROL, data)
            return
        self._control.put(CONTROL, data)
        if not self._corked:
            self._corked = True
            self._net.after(_PATIENCE_S, self._uncork)

    def _uncork(self) -> None:
        if self._corked:
            self._corked = False
            self._net.write(self._control)

    def relink(self, to: Relink) -> None:
        self._links.relink(to)

    def measure(self, to: int) -> None:
        self._links.measure(to)

    def send(self, to: int, seq: int, word: int, take: Take) -> None:
        self._links.send(to, seq, word, take)

    def resume(self) -> None:
        self._links.resume()

    def wake(self, ticket: Ticket) -> None:
        if self._helper:
            self._helper.progress()
        ticket.woken.release()

    def _accepted(self, channel: Channel) -> None:
        self._links.accepted(channel)
