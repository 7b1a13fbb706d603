"""Foreign bytes on the connections of a real peer's links, real sockets between.

Strangers dial, members who know the key, and the one we dial answers. Nothing but the connection, or the link of a
member, ends for it; and nothing stays behind.

A record's op says which: a call, bytes or a message or a frame on an open connection, its end, an operation of our own.
"""

import os
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import numpy as np

from atoll.errors import ProtocolError
from atoll.group import messages
from atoll.group.api import Measured, Relink, Series, Ticket, unvoted_seq
from atoll.group.legality import wrong_with
from atoll.group.messages import (
    Broken,
    Commence,
    Establish,
    Filled,
    Filler,
    LinkAck,
    LinkHello,
    Returned,
    Seat,
    View,
    Welcome,
)
from atoll.group.peer import Peer
from atoll.group.station import Station, Take
from atoll.group.wiring.links import _MOST_EARLY, Links
from atoll.net import preamble
from atoll.net.channel import CONTROL, HEADER, LENT, WHERE, Channel
from atoll.net.loop import Address, SocketLoop
from atoll.net.neighbour import address_of
from atoll.net.preamble import Greeting
from tests.fuzzers.choices import Choices, recorded, records
from tests.fuzzers.mutation import record_mutator

GREETING: Final = Greeting("fuzz")
FIRST: Final = preamble.encode(GREETING)
KEY: Final = b"of this epoch 01"
PROOF: Final = b"this can be read"
US, RING = 1, (1, 2, 3)
CALL, BYTES, MESSAGE, FRAME, END, OPERATION, EPOCH, REPLY = range(8)
MOST_RECORDS, MOST_OPEN, MOST_TURNS = 40, 24, 200
SLOT, SLOTS = 1 << 12, 4


class Slots:
    """Memory the other side lends."""

    def view(self, where: int, nbytes: int) -> memoryview:
        if where >= SLOTS or nbytes > SLOT:
            raise ProtocolError("no such slot")
        return memoryview(bytes(nbytes))


class Net(SocketLoop):
    """Who is dialled is at once here."""

    def __init__(self) -> None:
        super().__init__(GREETING)
        self.answering: list[tuple[int, socket.socket]] = []

    def dial(
        self, address: Address, timeout_s: float, connected: Callable[[Channel], None], failed: Callable[[str], None]
    ) -> Callable[[], None]:
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        self.answering.append((address[1], theirs))
        token = self.after(0.0, lambda: connected(Channel(ours, GREETING)))

        def cancel() -> None:
            self.cancel(token)
            ours.close()

        return cancel


class World:
    """A peer in a ring of three."""

    def __init__(self) -> None:
        self.net = Net()
        self.peer = Peer(Seat(0, "127.0.0.1", US))
        self.station = Station(self.peer, self)
        self.links = Links(self.net, self.station, False, 1, None)
        self.callers: list[tuple[socket.socket, Channel]] = []
        self.epoch = self.seq = 0
        self.insider = False
        """Has somebody spoken who knew the key?"""
        self.lost = 0
        self.station.feed(Ticket("join", 0))
        self.hear(Welcome(US, b"secret"))
        self.establish()

    # -- Carrier ---------------------------------------------------------------------------------------------------

    def tell(self, message: Any, patient: bool = False) -> None:
        assert messages.decode_to_master(messages.encode(message)) == message
        if isinstance(message, Broken):
            self.lost += 1
            assert self.insider, f"a stranger broke a link: {message}"

    def relink(self, to: Relink) -> None:
        self.links.relink(to)

    def measure(self, to: int) -> None:
        self.station.feed(Measured(self.epoch, to, 0.0, 0.0))

    def send(self, to: int, seq: int, word: int, take: Take) -> None:
        self.links.send(to, seq, word, take)

    def resume(self) -> None:
        self.links.resume()

    def wake(self, ticket: Ticket) -> None:
        assert ticket.outcome is not None

    # -- the master, honest ----------------------------------------------------------------------------------------

    def hear(self, message: Any) -> None:
        assert not wrong_with(self.peer, message)
        self.station.feed(message)

    def establish(self) -> None:
        """A new epoch; all make their links."""
        self.epoch += 1
        for _, sock in self.net.answering:
            sock.close()
        self.net.answering.clear()
        self.hear(Establish(self.epoch, tuple(Seat(i, "127.0.0.1", i) for i in RING), KEY))
        self.turn()
        self.reply(FIRST + framed(messages.encode(LinkAck(self.epoch))))
        self.hear(View(self.epoch, RING, opened=self.epoch == 1))

    def operation(self, how: int) -> None:
        x = np.arange(40.0 if how & 8 else 4000.0)
        way: Any = ("eager", "direct", "halving", "ring")[how & 3]
        tag = how >> 2 & 1
        if Series(0, tag) in self.peer.running:
            return
        self.station.feed(Ticket("all_reduce", self.epoch, tag, "all_reduce", tensor=x, algorithm=way))
        if way != "eager" and Series(0, tag) in self.peer.running:
            self.seq += 1
            self.hear(Commence(tag, self.seq))

    # -- what comes ------------------------------------------------------------------------------------------------

    def call(self, how: int, body: bytes) -> None:
        """`how`: with a greeting, with a hello, with the true key, of an epoch to come, through the door."""
        if len(self.callers) >= MOST_OPEN:
            return
        ours, theirs = socket.socketpair()
        theirs.setblocking(False)
        channel = Channel(ours, GREETING)
        if how & 16:
            channel.lender, channel.pid = Slots(), os.getpid()
        said = FIRST if how & 1 else b""
        if how & 2:
            true = how & 4
            proof = PROOF if how & 16 and len(body) & 1 else b""
            address = address_of(memoryview(PROOF)) if proof else 0
            epoch = self.epoch + (1 if how & 8 else 0)
            self.insider = self.insider or bool(true and how & 1)
            said += framed(
                messages.encode(LinkHello(epoch, 2 + len(body) % 2, KEY if true else b"wrong", address, proof))
            )
        self.callers.append((theirs, channel))
        self.net.greet(channel, {}, self.links.accepted)
        push(theirs, said + body)

    def speak(self, what: int, how: int, body: bytes) -> None:
        if not self.callers:
            return
        choices = Choices(body)
        which = choices.number() % len(self.callers)
        sock = self.callers[which][0]
        if what == BYTES:
            push(sock, choices.rest())
        elif what == MESSAGE:
            push(sock, framed(choices.rest()))
        elif what == END:
            sock.close()
            del self.callers[which]
        else:
            push(sock, self.frame(how, choices))

    def frame(self, how: int, choices: Choices) -> bytes:
        running = [seq for seq, _ in self.station.runs] or [self.seq + 1]
        number = choices.number(4)
        seq = (running[number % len(running)], unvoted_seq(Series(0, number % 3), 1), self.seq + 1, number)[how & 3]
        word = choices.number(2)
        if how & 4:
            where = (choices.number(8), 0, address_of(memoryview(PROOF)), 1)[how >> 3 & 3]
            return HEADER.pack(seq, LENT | choices.number(3), word) + WHERE.pack(where)
        rest = choices.rest()
        if how & 8:  # of the size that is due
            due = [(r, k) for r in self.station.runs.values() for k in r.execution._waiting]
            if due:
                run, (_, piece, reduce) = due[number % len(due)]
                word, rest = piece << 1 | reduce, rest.ljust(run.execution._nbytes(piece, reduce), b"\0")
                rest = rest[: run.execution._nbytes(piece, reduce)]
        return HEADER.pack(seq, len(rest), word) + rest

    def reply(self, data: bytes) -> None:
        """On the links we dialled, the newest."""
        if self.net.answering:
            push(self.net.answering[-1][1], data)
        self.turn()

    def turn(self) -> None:
        """Until nothing is left to read."""
        for _ in range(MOST_TURNS):
            for sock in [*(caller for caller, _ in self.callers), *(sock for _, sock in self.net.answering)]:
                with suppress(OSError):
                    sock.recv(1 << 20)
            ready = self.net.select(0.0)
            self.net.handle(ready)
            if not ready and self.net.next_moment() > time.monotonic():
                return
        raise AssertionError("it never comes to rest")

    def check(self) -> None:
        links, net, station = self.links, self.net, self.station
        inside = [channel for link in links._in.values() for channel in link.channels]
        assert set(inside) <= set(net.channels)
        assert len(inside) == len(set(inside))
        assert links._held <= set(net.channels), "a connection that is gone is remembered"
        assert sum(len(link.channels) for link in links._in.values() if link.epoch > self.epoch) <= _MOST_EARLY
        assert station._early_bytes == sum(len(d) for frames in station._early.values() for _, _, d in frames)
        assert len(station._early) <= station._most_early_runs
        assert len(net.channels) <= len(self.callers) + len(net.answering) + MOST_OPEN

    def end(self) -> None:
        """All goes, nothing is left."""
        for sock, _ in self.callers:
            sock.close()
        self.insider = True
        self.turn()
        self.relink(Relink(-1))
        assert not self.links._in
        assert not self.links._out
        assert not self.net.channels, "a connection is left"
        self.net.close()
        for _, sock in self.net.answering:
            sock.close()


def framed(body: bytes) -> bytes:
    return HEADER.pack(CONTROL, len(body), 0) + body


def push(sock: socket.socket, data: bytes) -> None:
    with suppress(OSError):  # full, or hung up
        sock.sendall(data)


def fuzz(data: bytes) -> None:
    world = World()
    try:
        for count, (op, body) in enumerate(records(data)):
            if count == MOST_RECORDS:
                break
            what, how = op & 7, op >> 3
            world.insider = world.insider or KEY in body
            if what == CALL:
                world.call(how, body)
            elif what == OPERATION:
                world.operation(how)
            elif what == EPOCH:
                world.establish()
            elif what == REPLY:
                world.insider = True
                world.reply(framed(body) if how & 1 else body)
            else:
                world.speak(what, how, body)
            world.turn()
            world.check()
    finally:
        world.end()


def seeds() -> list[bytes]:
    member, stranger, early, door = CALL | 7 << 3, CALL | 3 << 3, CALL | 11 << 3, CALL | 23 << 3
    words: list[Any] = [LinkHello(1, 2, KEY), LinkAck(1, True), Returned((0, 1)), Filler(b"x" * 50), Filled()]
    said = [(MESSAGE, b"\0" + messages.encode(word)) for word in words]
    frames = [
        (FRAME | how << 3, bytes([0, 0, 0, 0, 0, 2, 0]) + b"\x40\1\0" + bytes(8))
        for how in (0, 1, 2, 3, 4, 8, 12, 20, 28)
    ]
    operations = [(OPERATION | how << 3, b"") for how in range(16)]
    return [
        recorded((CALL, b"GET / HTTP/1.1\r\n\r\n"), (CALL | 1 << 3, b""), (stranger, b"")),
        *[
            recorded((caller, body), operation, *frames)
            for caller in (member, door)
            for body in (b"", b"\0")
            for operation in operations[:8]
        ],
        *[recorded((caller, b""), word) for caller in (member, early, door) for word in said],
        recorded(*[(REPLY | 1 << 3, messages.encode(word)) for word in words]),
        recorded((member, b""), operations[1], (END, b"\0"), (EPOCH, b""), (early, b""), (EPOCH, b""), *frames),
        recorded((member, b""), (CALL | 7 << 3, b"\0"), *operations, *frames * 2, (BYTES, b"\0\xff\xff\xff")),
    ]


mutate = record_mutator(seeds())
