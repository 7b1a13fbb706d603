"""Driver: how a program in virtual time reaches its peer policy, and that the others: links over simulated
connections."""

from collections import deque
from typing import TYPE_CHECKING, Final

from atoll.group import messages
from atoll.group.api import (
    LinkDown,
    LinkUp,
    MasterAway,
    MasterBack,
    MasterGone,
    Measured,
    PeerEvent,
    Relink,
    Ticket,
)
from atoll.group.membership.roster import Gone
from atoll.group.messages import Establish, Seat, ToMaster, ToPeer, Welcome
from atoll.group.peer import Peer
from atoll.group.progress import Progress
from atoll.group.station import Station, Take
from atoll.group.wiring.links import ACKNOWLEDGED_S, CONNECTIONS, DIAL_S, LONG_S
from atoll.group.wiring.wire import RECONNECT_S
from atoll.net.channel import HEADER

if TYPE_CHECKING:
    from atoll.group.virtual.process import Process

REDIAL_S: Final = 0.1
FIRST_BURST: Final = 256 << 10
BURST_GROWTH: Final = 8
"""Of a burst to the next; 2 where clocks and neighbours make noise."""
LARGEST_BURST: Final = 16 << 20
ENOUGH_S: Final = 0.2
"""A burst that took so long tells the rate of a link."""


def weight(message: ToMaster | ToPeer) -> int:
    """Bytes of a message on the wire."""
    return HEADER.size + len(messages.encode(message))


class _Link:
    """A data link of one epoch between two ports: a long one has several connections."""

    def __init__(self, epoch: int, source: "VirtualPort", to: int, target: "VirtualPort") -> None:
        self.epoch, self.source, self.to, self.target = epoch, source, to, target
        world = source.world
        self.back = world.connection(target.host, source.host)
        self.round_trip_s = world.network.latency_s(source.host, target.host) + self.back.latency_s
        self.connections = CONNECTIONS if self.round_trip_s > LONG_S else 1
        self.there = world.connection(source.host, target.host, self.connections, self._ready)
        self.up = False
        self.waiting: deque[tuple[int, int, Take]] = deque()
        """Frames that have not begun to leave."""
        self.held: deque[tuple[int, int, bytes]] = deque()
        """Frames whose turn has not come at the target."""
        self.alarm: int | None = None
        """The token of the moment when it will have taken too long to make it."""
        self.burst = 0
        """Bytes that measure it; 0: it is not being measured."""
        self.burst_at = 0.0

    def _ready(self) -> None:
        if self.waiting:
            self.source.process.call(self.source.drain, self)

    def close(self) -> None:
        """Nothing more leaves."""
        self.waiting.clear()
        self.there.abort()
        self.quiet()

    def quiet(self) -> None:
        """It is made, or nobody waits for it any more."""
        if self.alarm is not None:
            self.source.world.loop.cancel(self.alarm)
            self.alarm = None


class VirtualPort:
    """`Port` for a program and `Carrier` for its station."""

    def __init__(self, process: "Process") -> None:
        self.process, self.world, self.host = process, process.world, process.host
        self.world.ports.append(self)
        number = len(self.world.ports)
        self.station = Station(Peer(Seat(0, "127.0.0.1", number, self.world.machine_of(self.host))), self)
        self.closed = False
        self.cut_at: float | None = None
        """Since when there is no way to the master."""
        self._line = 0
        """Counts connections to the master: what was on its way in an older one is lost."""
        self._searching_since: float | None = None
        self._waits_for: Ticket | None = None
        self._progress = Progress(self.station, self.now())
        self._out: dict[int, _Link] = {}
        self._in: dict[tuple[int, int], _Link] = {}
        self._connect()
        if self.world.down:
            self._look_for_master(self._line)

    def _connect(self) -> None:
        self.who = self.world.connect(self)
        self._to_master = self.world.connection(self.host, self.world.master_host)
        self._from_master = self.world.connection(self.world.master_host, self.host)

    # -- Port ------------------------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        return self.station.peer.id

    def submit(self, ticket: Ticket) -> None:
        self.station.feed(ticket)

    def wait(self, ticket: Ticket, timeout_s: float | None) -> bool:
        if ticket.outcome is None:
            self._waits_for = ticket
            if timeout_s is not None:
                self.world.loop.post(round(timeout_s * 1e9), self.process.call, self._resume, ticket)
            self.process.program.park(f"{ticket.kind} with tag {ticket.tag} of epoch {ticket.epoch}")
        return ticket.outcome is not None

    def now(self) -> float:
        return self.process.now()

    def close(self) -> None:
        self._end("left")
        self.station.feed(MasterGone("this group was closed"))

    def reset(self) -> None:
        """The process is no more: what had not left is lost."""
        if not self.closed:
            self._to_master.abort()
            for link in self._out.values():
                link.close()
        self._end("connection lost")

    def _end(self, reason: str) -> None:
        """Connections of this port break; the others hear of it, behind all that has been said."""
        if self.closed:
            return
        self.closed = True
        for link in self._in.values():
            link.close()
            link.back.carry(0, link.source.process.call, link.source.link_down, link.epoch, self.id)
        for link in self._out.values():
            link.waiting.clear()
            link.quiet()
            link.there.carry(0, link.target.process.call, link.target.link_down, link.epoch, self.id)
        self._send_master(0, Gone(reason))

    def _resume(self, ticket: Ticket) -> None:
        if self._waits_for is ticket:
            self._waits_for = None
            self.process.program.resume()

    # -- the master ------------------------------------------------------------------------------------------------

    def heard(self, event: PeerEvent) -> None:
        """Something for the peer policy."""
        if not self.closed:
            self.station.feed(event)

    def tell(self, message: ToMaster, patient: bool = False) -> None:
        if not self.closed:
            self._send_master(weight(message), message)

    def _send_master(self, nbytes: int, message: ToMaster | Gone) -> None:
        line = self._line

        def arrive() -> None:
            if line == self._line:
                self.world.tell_master(self.who, message)

        self._to_master.carry(nbytes, arrive)

    def carry(self, message: ToPeer) -> None:
        """Something from the master."""
        self._from_master.carry(weight(message), self.process.call, self._said, self._line, message)

    def _said(self, line: int, message: ToPeer) -> None:
        if line == self._line:
            self.heard(message)
            if isinstance(message, Establish | Welcome):
                self._searching_since = None

    def hang_up_at_last(self) -> None:
        """The master closes the connection; what it has said still comes."""
        self._from_master.carry(0, self.process.call, self._hung_up, self._line)

    def _hung_up(self, line: int) -> None:
        if line == self._line:
            self.hang_up()

    def hang_up(self) -> None:
        """The connection to the master breaks, in both directions."""
        self._line += 1
        self._to_master.abort()
        self._from_master.abort()
        if not self.closed:
            self.process.call(self._look_for_master, self._line)

    def _look_for_master(self, line: int) -> None:
        if line == self._line and not self.closed and not self.station.peer.over:
            if self._searching_since is None:
                self._searching_since = self.now()
            self.heard(MasterAway())
            self._dial_master(line)

    def _dial_master(self, line: int) -> None:
        if line != self._line or self.closed:
            return
        assert self._searching_since is not None
        if not self.world.down and self.world.reaches_master(self.host):
            self._connect()
            self.heard(MasterBack())
        elif self.now() - self._searching_since < RECONNECT_S:
            self.world.loop.post(round(REDIAL_S * 1e9), self.process.call, self._dial_master, line)
        else:
            self.heard(MasterGone(f"the master is gone, and none answered for {RECONNECT_S:g} s"))

    # -- Carrier: links we dial ------------------------------------------------------------------------------------

    def relink(self, to: Relink) -> None:
        for link in self._out.values():
            link.close()
        self._out.clear()
        for key in [key for key in self._in if not key[0] >= to.epoch >= 0]:
            self._in.pop(key).close()
        if to.successor is not None:
            self._dial(to.successor.id)

    def send(self, to: int, seq: int, word: int, take: Take) -> None:
        link = self._out.get(to) or self._dial(to)
        link.waiting.append((seq, word, take))
        self.drain(link)

    def drain(self, link: _Link) -> None:
        """Let frames leave, small ones at once and large ones one after the other."""
        while link.up and link.waiting and not link.there.busy:
            seq, word, take = link.waiting.popleft()
            data = take()
            if data is not None:
                port = link.target
                frame = seq, word, bytes(data)
                link.there.carry(
                    round(len(data) * self.world.volume) + HEADER.size, port.process.call, port.arrived, link, frame
                )

    def _dial(self, to: int) -> _Link:
        link = self._out[to] = _Link(self.station.epoch, self, to, self.world.members[to])
        link.there.carry(0, self._knock, link)
        self._expect(link, DIAL_S, "timed out")
        return link

    def _expect(self, link: _Link, within_s: float, why: str) -> None:
        link.quiet()
        link.alarm = self.world.loop.post(round(within_s * 1e9), self._too_late, link, why)

    def _too_late(self, link: _Link, why: str) -> None:
        link.alarm = None
        self.process.call(self._failed, link, why)

    def _failed(self, link: _Link, why: str) -> None:
        """The link couldn't be made."""
        if self._out.get(link.to) is not link or link.up:
            return
        if link.burst:  # there is no way; the ring may find another
            self._out.pop(link.to).close()
            self.heard(Measured(link.epoch, link.to, 0.0, 0.0))
        else:
            self.heard(LinkDown(link.epoch, self.id, link.to, why, made=False))

    def _knock(self, link: _Link) -> None:
        """At the target's door: its kernel answers, also for a frozen process."""
        if self._out.get(link.to) is not link:
            return  # nobody wants it any more
        other = link.target
        if other.closed or (self.process.name, other.process.name) in self.world.walls:
            link.back.carry(0, self.process.call, self._failed, link, "nothing listens there")
        else:
            self._expect(link, ACKNOWLEDGED_S, f"didn't acknowledge the link within {ACKNOWLEDGED_S:g} s")
            other.process.call(other.accept, link)

    def accept(self, link: _Link) -> None:
        """Another dials us."""
        if not self.closed and link.epoch >= self.station.epoch:
            self._in[link.epoch, link.source.id] = link
            link.back.carry(0, link.source.process.call, link.source.acknowledged, link)

    def acknowledged(self, link: _Link) -> None:
        """A link of ours stands."""
        if link.epoch == self.station.epoch and not self.closed and self._out.get(link.to) is link:
            link.up = True
            link.quiet()
            lane = f"tcp x {link.connections}" if link.connections > 1 else "tcp"
            self.heard(LinkUp(link.epoch, link.to, link.round_trip_s, lane))
            if link.burst:
                self._send_burst(link)
            self.drain(link)

    # -- Carrier: measuring ------------------------------------------------------------------------------------------

    def measure(self, to: int) -> None:
        link = self._out.get(to) or self._dial(to)
        link.burst = FIRST_BURST
        if link.up:
            self._send_burst(link)

    def _send_burst(self, link: _Link) -> None:
        link.burst_at = self.now()
        link.there.carry(link.burst, link.target.process.call, self._answer, link)

    def _answer(self, link: _Link) -> None:
        link.back.carry(0, self.process.call, self._filled, link)

    def _filled(self, link: _Link) -> None:
        if self.closed or self._out.get(link.to) is not link:
            return
        took = self.now() - link.burst_at
        if took - link.round_trip_s < ENOUGH_S and link.burst < LARGEST_BURST:
            link.burst *= BURST_GROWTH
            self._send_burst(link)
            return
        rate = link.burst / max(took - link.round_trip_s, took / 10, 1e-9)
        link.burst = 0
        self.heard(Measured(link.epoch, link.to, rate / self.world.volume, link.round_trip_s))  # of a tensor's bytes

    # -- links others dial -------------------------------------------------------------------------------------------

    def link_down(self, epoch: int, other: int) -> None:
        """The far end of a link is gone."""
        if epoch == self.station.epoch:
            self.heard(LinkDown(epoch, other, self.id, "reset"))

    def arrived(self, link: _Link, frame: tuple[int, int, bytes]) -> None:
        """A frame is here as a whole."""
        if not self.closed and self._in.get((link.epoch, link.source.id)) is link:
            link.held.append(frame)
            self.station.resume()

    def resume(self) -> None:
        for link in list(self._in.values()):
            while link.held and link.epoch == self.station.epoch:
                seq, word, data = frame = link.held.popleft()
                if not self.station.arrived(link.source.id, seq, word, memoryview(data)):
                    link.held.appendleft(frame)
                    break

    def look(self) -> None:
        """Now and then: does data still come?"""
        received = sum(link.there.left() for link in self._in.values()) if self.station.runs else 0
        overdue = self._progress.look(self.now(), received)
        if overdue is not None:
            self.heard(overdue)

    def wake(self, ticket: Ticket) -> None:
        if self._waits_for is ticket:
            self.world.loop.post(0, self.process.call, self._resume, ticket)
