"""Driver: a peer's links to the others, for one epoch: dialled when there is something to say, striped over several
connections where the way is long, over shared memory where there is none.

A link has one direction: who dials sends data, the other acknowledges the link and gives memory back. Frames of a link
leave in the order they were asked for, each on the first connection that has room; so on each connection they are in
order, and one that must wait for another never waits for one behind it.
"""

import hmac
import logging
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from typing import Final

from atoll.errors import AtollError, ProtocolError
from atoll.group import messages
from atoll.group.api import LARGEST_FRAME, LinkDown, LinkUp, Measured, Relink
from atoll.group.messages import Filled, Filler, LinkAck, LinkHello, Returned, Seat
from atoll.group.station import Station, Take
from atoll.group.wiring.ways import Copies, InPlace, Shared, Stream, Way
from atoll.net import arena, doors, tcp
from atoll.net.arena import Arena, Tenant
from atoll.net.bucket import TokenBucket
from atoll.net.channel import CONTROL, Channel, Frame
from atoll.net.loop import SocketLoop
from atoll.net.neighbour import Neighbour, address_of

log = logging.getLogger("atoll.group")

DIAL_S: Final = 3.0
ACKNOWLEDGED_S: Final = 5.0
"""A link that isn't by then is none: so whoever doesn't answer is named, before the master must drop both ends."""
CONNECTIONS: Final = 8
"""Of a long link: one alone recovers too slowly from a lost packet."""
MOST_CONNECTIONS: Final = 16
LONG_S: Final = 0.005
"""Round trip from which a link is long."""
_LONGEST_KEY: Final = 64
_MOST_EARLY: Final = 256
_MOST_HELD: Final = 1 << 14
_QUEUED: Final = 1 << 20
"""Bytes that may wait in a connection before the kernel takes them."""
_SLOTS: Final = 32
_FIRST_BURST: Final = 256 << 10
_LARGEST_BURST: Final = 16 << 20
_FILLER: Final = bytes(256 << 10)
_ENOUGH_S: Final = 0.2
"""A burst that took so long tells the rate of a link."""
_PROOF_BYTES: Final = 16


class _Out:
    """A link we send on."""

    def __init__(self, to: int) -> None:
        self.to = to
        self.ready: list[Channel] = []
        self.channels: list[Channel] = []
        self.waiting: deque[tuple[int, int, Take]] = deque()
        self.cancel: list[Callable[[], None]] = []
        self.way: Way = Stream()
        self.began = time.monotonic()
        self.round_trip_s = 0.0


class _In:
    """A link others send to us on."""

    def __init__(self, epoch: int, source: int, key: bytes) -> None:
        self.epoch, self.source, self.key = epoch, source, key
        self.channels: list[Channel] = []
        self.held: deque[tuple[Channel, Frame]] = deque()
        """Frames whose bytes are the other side's, and whose turn has not come."""


class _Measurement:
    """Of one link: bursts, each twice as large as the one before, until one takes long enough to be told from the round
    trip."""

    def __init__(self) -> None:
        self.burst = _FIRST_BURST
        self.unanswered = 0
        self.sent_at = 0.0


class Links:
    """All links of a peer. `local`: lend shared memory to peers of this machine. `connections`: of a long link.
    `upload`: what all links may send together."""

    def __init__(
        self, net: SocketLoop, station: Station, local: bool, connections: int, upload: TokenBucket | None
    ) -> None:
        self._net, self._station, self._connections, self._upload = net, station, connections, upload
        self._copies = Copies(Arena(_SLOTS, LARGEST_FRAME)) if local else None
        self._proof = os.urandom(_PROOF_BYTES)
        """Lies where only who can read our memory sees it."""
        self._epoch, self._key = 0, b""
        self._seats: Mapping[int, Seat] = {}
        self._out: dict[int, _Out] = {}
        self._in: dict[tuple[int, int, bytes], _In] = {}
        """By (epoch, member id, key): of an epoch to come the true key is not known yet."""
        self._measured: dict[int, _Measurement] = {}
        """Links that are being measured, by member id."""
        self._held: set[Channel] = set()
        """Connections that hold a frame back."""

    # -- what the station asks for -------------------------------------------------------------------------------------

    def relink(self, to: Relink) -> None:
        """Drop all links of older epochs, dial the successor."""
        self._epoch, self._key = to.epoch, to.key
        self._seats = {seat.id: seat for seat in to.ring}
        for out in self._out.values():
            self._close_out(out)
        self._out.clear()
        self._measured.clear()
        for link in [link for link in self._in.values() if to.epoch < 0 or link.epoch <= to.epoch]:
            if to.epoch < 0 or link.epoch < to.epoch or not self._is_member(link.source, link.key):
                self._close_in(link)
        if to.successor is not None:
            self._dial(to.successor.id)

    def _is_member(self, source: int, key: bytes) -> bool:
        return source in self._seats and hmac.compare_digest(key, self._key)

    def send(self, to: int, seq: int, word: int, take: Take) -> None:
        """Queue a frame for the member `to`."""
        out = self._out.get(to) or self._dial(to)
        out.waiting.append((seq, word, take))
        for channel in out.ready:
            if not channel.outgoing:
                self._net.write(channel)  # asks us for more
            if not out.waiting:
                break

    def measure(self, to: int) -> None:
        """Find out how fast data gets to the member `to`."""
        self._measured[to] = _Measurement()
        out = self._out.get(to)
        if out is None:
            self._dial(to)
        elif out.ready:
            self._send_burst(out, self._measured[to])

    def resume(self) -> None:
        """Frames that were held may have a place now."""
        held, self._held = self._held, set()
        for channel in held:
            self._net.resume(channel)
        for link in [link for link in self._in.values() if link.held and link.epoch == self._epoch]:
            self._offer_held(link)

    def received(self) -> int:
        """Bytes that have come over links that stand now."""
        return sum(channel.received for link in self._in.values() for channel in link.channels)

    def close(self) -> None:
        """Give the memory up."""
        if self._copies is not None:
            self._copies.arena.close()

    # -- links we dial -------------------------------------------------------------------------------------------------

    def _dial(self, to: int) -> _Out:
        out = self._out[to] = _Out(to)
        seat, epoch = self._seats[to], self._epoch
        if self._copies is not None and seat.door and seat.machine == arena.machine():
            out.cancel.append(
                doors.knock(
                    self._net,
                    seat.door,
                    self._copies.arena,
                    lambda channel: self._dialled_locally(epoch, out, channel),
                    lambda why: self._dial_tcp(epoch, out),
                )
            )
        else:
            self._dial_tcp(epoch, out)
        return out

    def _dial_tcp(self, epoch: int, out: _Out) -> None:
        seat = self._seats[out.to]
        out.began = time.monotonic()
        out.cancel.append(
            self._net.dial(
                (seat.host, seat.port),
                DIAL_S,
                lambda channel: self._dialled(epoch, out, channel),
                lambda why: self._down(epoch, out, why),
            )
        )

    def _dialled_locally(self, epoch: int, out: _Out, channel: Channel) -> None:
        assert self._copies is not None
        out.way = Shared(self._copies)
        self._dialled(epoch, out, channel, address_of(memoryview(self._proof)))

    def _dialled(self, epoch: int, out: _Out, channel: Channel, address: int = 0) -> None:
        if out.way.long:
            channel.bucket = self._upload
        out.channels.append(channel)
        self._listen(epoch, out, channel)
        hello = LinkHello(epoch, self._station.peer.id, self._key, address, self._proof if address else b"")
        self._net.send(channel, CONTROL, messages.encode(hello))
        timer = self._net.after(ACKNOWLEDGED_S, lambda: self._check_ready(epoch, out, channel))
        out.cancel.append(lambda: self._net.cancel(timer))

    def _check_ready(self, epoch: int, out: _Out, channel: Channel) -> None:
        if channel in out.channels and channel not in out.ready:
            self._down(epoch, out, f"didn't acknowledge the link within {ACKNOWLEDGED_S:g} s")

    def _said(self, epoch: int, out: _Out, channel: Channel, frame: Frame) -> None:
        message = messages.decode_on_link(frame.here)
        if isinstance(message, Returned):
            out.way.take_back(message.slots)
            for other in self._out.values():  # a slot of the arena may be free for any of them
                if other.waiting and other.ready:
                    self._net.write(other.ready[0])
        elif isinstance(message, Filled) and out.to in self._measured:
            self._filled(epoch, out, self._measured[out.to])
        elif isinstance(message, LinkAck) and channel not in out.ready:
            if message.reads and isinstance(out.way, Shared):
                out.way = InPlace()
            self._acknowledged(epoch, out, channel)
        else:
            raise ProtocolError(f"{type(message).__name__} on a link that is ours to send on")

    def _acknowledged(self, epoch: int, out: _Out, channel: Channel) -> None:
        out.ready.append(channel)
        if len(out.ready) == 1:
            measured = (time.monotonic() - out.began) / 2  # one to connect, one to be acknowledged
            out.round_trip_s = tcp.round_trip_s(channel.sock, otherwise=measured)
            stripes = self._connections if out.way.long and out.round_trip_s > LONG_S else 1
            for _ in range(stripes - 1):
                self._dial_tcp(epoch, out)
            lane = f"{out.way.name} x {stripes}" if stripes > 1 else out.way.name
            self._station.feed(LinkUp(epoch, out.to, out.round_trip_s, lane))
            if out.to in self._measured:
                self._send_burst(out, self._measured[out.to])
        self._listen(epoch, out, channel, lambda: self._fill(out, channel))
        self._net.write(channel)

    def _send_burst(self, out: _Out, measurement: _Measurement) -> None:
        measurement.sent_at = time.monotonic()
        measurement.unanswered = measurement.burst // len(_FILLER)
        filler = messages.encode(Filler(_FILLER))
        for i in range(measurement.unanswered):
            self._net.send(out.ready[i % len(out.ready)], CONTROL, filler)

    def _filled(self, epoch: int, out: _Out, measurement: _Measurement) -> None:
        measurement.unanswered -= 1
        if measurement.unanswered:
            return
        took = time.monotonic() - measurement.sent_at
        if took - out.round_trip_s < _ENOUGH_S and measurement.burst < _LARGEST_BURST:
            measurement.burst *= 2
            self._send_burst(out, measurement)
            return
        del self._measured[out.to]
        rate = measurement.burst / max(took - out.round_trip_s, took / 10)
        self._station.feed(Measured(epoch, out.to, rate, out.round_trip_s))

    def _listen(self, epoch: int, out: _Out, channel: Channel, room: Callable[[], None] | None = None) -> None:
        self._net.add(
            channel,
            lambda channel, frame: self._said(epoch, out, channel, frame),
            lambda _, why: self._down(epoch, out, why),
            room,
        )

    def _fill(self, out: _Out, channel: Channel) -> None:
        """The connection is empty: give it more."""
        most = _QUEUED if len(out.ready) == 1 else 1
        while out.waiting and channel.backlog < most and out.way.open():
            seq, word, take = out.waiting.popleft()
            out.way.put(channel, out.to, seq, word, take)

    def _down(self, epoch: int, out: _Out, why: str) -> None:
        if self._measured.pop(out.to, None) is None:
            self._station.feed(LinkDown(epoch, self._station.peer.id, out.to, why, made=bool(out.ready)))
        else:  # there is no way; the ring may find another
            self._close_out(self._out.pop(out.to))
            self._station.feed(Measured(epoch, out.to, 0.0, 0.0))

    def _close_out(self, out: _Out) -> None:
        for cancel in out.cancel:
            cancel()
        for channel in out.channels:
            self._net.remove(channel)
        out.way.close()

    # -- links others dial ------------------------------------------------------------------------------------------

    def accepted(self, channel: Channel) -> None:
        """Somebody has dialled us."""
        self._net.add(channel, self._hello, lambda _, why: log.info("a connection ended unused: %s", why))

    def _hello(self, channel: Channel, frame: Frame) -> None:
        hello = messages.decode_on_link(frame.here)
        if not isinstance(hello, LinkHello):
            raise ProtocolError("something else than the greeting of a link")
        epoch, source = hello.epoch, hello.id
        if epoch < self._epoch:
            raise AtollError(f"a link of epoch {epoch} that is over")
        if epoch == self._epoch and not self._is_member(source, hello.key):
            raise AtollError(f"somebody who says it is peer {source} is no member in epoch {epoch}")
        if len(hello.key) > _LONGEST_KEY:
            raise ProtocolError(f"a key of {len(hello.key)} bytes")
        if epoch > self._epoch:
            self._make_room()
        link = self._in.setdefault((epoch, source, hello.key), _In(epoch, source, hello.key))
        if len(link.channels) >= MOST_CONNECTIONS:
            raise ProtocolError(f"more than {MOST_CONNECTIONS} connections of peer {source}")
        link.channels.append(channel)

        def place(seq: int, word: int, nbytes: int) -> memoryview | None:
            self._check_begun(link)
            found = self._station.place(source, seq, word, nbytes)
            if found is None:
                self._held.add(channel)
            return found

        channel.place = place
        self._net.add(
            channel,
            lambda channel, frame: self._data(link, channel, frame),
            lambda _, why: self._lost(link, why),
        )
        reads = False
        if hello.proof and channel.pid:
            neighbour = Neighbour(channel.pid)
            if neighbour.holds(hello.address, hello.proof):
                channel.lender, reads = neighbour, True
        self._net.send(channel, CONTROL, messages.encode(LinkAck(epoch, reads)))

    def _make_room(self) -> None:
        """For a link of an epoch to come. Whoever has waited longest may be a stranger, and nobody can tell yet."""
        early = [link for link in self._in.values() if link.epoch > self._epoch]
        if sum(len(link.channels) for link in early) >= _MOST_EARLY:
            self._close_in(early[0])

    def _check_begun(self, link: _In) -> None:
        """Nobody sends before all have left the epoch before."""
        if link.epoch != self._epoch:
            raise ProtocolError(f"data of epoch {link.epoch} in epoch {self._epoch}")

    def _data(self, link: _In, channel: Channel, frame: Frame) -> None:
        self._check_begun(link)
        if frame.sequence == CONTROL:
            if not isinstance(messages.decode_on_link(frame.here), Filler):
                raise ProtocolError("a message that has no business on a link")
            self._net.send(channel, CONTROL, messages.encode(Filled()))
            return
        if frame.lent < 0:
            self._station.landed(link.source, frame.sequence, frame.word, frame.here)
            return
        if len(link.held) >= _MOST_HELD:
            raise ProtocolError(f"peer {link.source} lent more than it may")
        link.held.append((channel, frame))
        self._station.resume()

    def _offer_held(self, link: _In) -> None:
        """Frames in the other side's memory may go in any order."""
        returned: dict[Channel, list[int]] = {}
        offered, link.held = link.held, deque()
        for channel, frame in offered:
            try:
                taken = self._station.arrived(link.source, frame.sequence, frame.word, frame.data)
            except (OSError, AtollError) as error:  # its own fault, whoever's words brought us here
                self._lost(link, str(error))
                return
            if taken:
                if isinstance(channel.lender, Tenant):
                    returned.setdefault(channel, []).append(frame.lent)
            else:
                link.held.append((channel, frame))
        for channel, slots in returned.items():
            self._net.send(channel, CONTROL, messages.encode(Returned(tuple(slots))))

    def _lost(self, link: _In, why: str) -> None:
        self._close_in(link)
        if link.epoch == self._epoch:
            self._station.feed(LinkDown(link.epoch, link.source, self._station.peer.id, why))

    def _close_in(self, link: _In) -> None:
        self._in.pop((link.epoch, link.source, link.key), None)
        link.held.clear()
        for channel in link.channels:
            self._held.discard(channel)
            self._net.remove(channel)
