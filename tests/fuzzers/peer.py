"""Foreign words of a master, and frames of neighbours, to a real peer: policy, station, data phases, `Group`.

A program calls one collective after the other. Whatever they say, every call returns, or raises an error of atoll's.

A record's op says what comes: raw words of the master; the right answer to what this peer said last, with the record as
the other member's part in it; a frame; the data that is due; news of a link.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import msgspec
import numpy as np

import atoll
from atoll.errors import AtollError, Expelled, MasterLost, ProtocolError, Refused
from atoll.group import messages
from atoll.group.api import DataOverdue, LinkDown, LinkUp, MasterGone, Measured, Relink, Series, Ticket, unvoted_seq
from atoll.group.legality import wrong_with
from atoll.group.membership.election import Plan
from atoll.group.messages import (
    Broken,
    Commence,
    Complete,
    Crossed,
    Establish,
    Expel,
    Hello,
    Initiate,
    Linked,
    Loss,
    Pace,
    Probe,
    Refuse,
    Seat,
    Status,
    Topology,
    Verdict,
    View,
    Welcome,
)
from atoll.group.peer import Peer
from atoll.group.state import SharedState
from atoll.group.station import Station, Take
from tests.fuzzers.choices import Choices, recorded, records
from tests.fuzzers.mutation import record_mutator

US: Final = 1
RING: Final = (1, 2, 3)
WORDS, ANSWER, FRAME, DUE, LINK = range(5)
MOST_CALLS: Final = 60
MOST_RECORDS: Final = 120
LAST_EPOCH: Final = (1 << 64) - 1
MOST_DUE, LARGEST_DUE = 16, 1 << 16


class World:
    """A `Port` and a `Carrier`: all that a peer can be told, record by record."""

    def __init__(self, data: bytes) -> None:
        self._records: Iterator[tuple[int, bytes]] = records(data)
        self._left = MOST_RECORDS
        self.peer = Peer(Seat(0, "127.0.0.1", 1, "", ""))
        self.station = Station(self.peer, self)
        self.said: deque[Any] = deque()
        self.waiting: deque[Take] = deque()
        self.epoch = 0
        self.ring: tuple[int, ...] = ()
        self.seq = 0

    # -- Port ------------------------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        return self.peer.id

    def submit(self, ticket: Ticket) -> None:
        self.station.feed(ticket)

    def wait(self, ticket: Ticket, timeout_s: float | None) -> bool:
        while ticket.outcome is None:
            record = next(self._records, None)
            self._left -= 1
            if record is None or self._left < 0:
                self.station.feed(MasterGone("nothing more comes"))
                assert ticket.outcome is not None, "a call is never answered"
            else:
                self.turn(*record)
        error = ticket.outcome.error
        assert error is None or isinstance(error, AtollError)
        return True

    def now(self) -> float:
        return 0.0

    def close(self) -> None:
        self.station.feed(MasterGone("closed"))

    # -- Carrier ---------------------------------------------------------------------------------------------------

    def tell(self, message: Any, patient: bool = False) -> None:
        assert messages.decode_to_master(messages.encode(message)) == message
        self.said.append(message)

    def relink(self, to: Relink) -> None:
        self.epoch, self.ring = to.epoch, tuple(seat.id for seat in to.ring)
        assert to.successor is None or to.successor.id in self.ring
        self.waiting.clear()

    def measure(self, to: int) -> None:
        assert to in self.ring

    def send(self, to: int, seq: int, word: int, take: Take) -> None:
        assert to in self.ring
        self.waiting.append(take)

    def resume(self) -> None:
        while self.waiting:
            self.waiting.popleft()()

    def wake(self, ticket: Ticket) -> None:
        assert ticket.outcome is not None

    # -- what comes ------------------------------------------------------------------------------------------------

    def turn(self, op: int, body: bytes) -> None:
        what = op & 7
        if what == WORDS:
            self.hear(body)
        elif what in (FRAME, LINK):
            self.neighbour(what, op >> 3, body)
        elif what == DUE:
            self.due(op >> 3, body)
        else:
            self.answer(op >> 3, body)
        self.resume()
        self.bounded()

    def bounded(self) -> None:
        station = self.station
        assert station._early_bytes == sum(len(d) for frames in station._early.values() for _, _, d in frames)
        assert len(station._early) <= station._most_early_runs
        assert self.epoch > 0 or not station.runs

    def hear(self, body: bytes) -> None:
        """As the wire does: what can't be, ends the connection."""
        try:
            message = messages.decode_to_peer(body)
            if isinstance(message, Status):
                return
            if wrong := wrong_with(self.peer, message):
                raise ProtocolError(wrong)
        except ProtocolError as error:
            self.station.feed(MasterGone(str(error)))
            return
        self.station.feed(message)

    def say(self, message: Any) -> None:
        self.hear(messages.encode(message))

    def neighbour(self, what: int, how: int, body: bytes) -> None:
        choices = Choices(body)
        if what == LINK:
            to, epoch = RING[how % 3], self.epoch + (how >> 2 & 1)
            kinds: list[Any] = [
                LinkUp(epoch, to, 1e-3, "TCP"),
                LinkDown(epoch, US, to, "reset", made=bool(how & 8)),
                DataOverdue(epoch, "no data", (to,), 9),
                Measured(epoch, to, 1e8, 1e-3),
            ]
            self.station.feed(kinds[choices.number() % 4])
            return
        source = (2, 3, 2, 9)[how & 3]
        seq = choices.number(8) if how & 4 else self.some_seq(choices.number())
        word, data = choices.number(4), memoryview(choices.rest())
        self.frame(source, seq, word, data, landing=bool(how & 8))

    def some_seq(self, which: int) -> int:
        running = [seq for seq, _ in self.station.runs]
        return running[which % len(running)] if running else unvoted_seq(Series(0, which % 4), 1 + which // 4)

    def frame(self, source: int, seq: int, word: int, data: memoryview, landing: bool) -> None:
        """As a link does: an error of the protocol costs the link."""
        try:
            if landing:
                place = self.station.place(source, seq, word, len(data))
                if place is not None:
                    place[:] = data
                    self.station.landed(source, seq, word, place)
            else:
                self.station.arrived(source, seq, word, data)
        except ProtocolError as error:
            self.station.feed(LinkDown(self.epoch, source, US, str(error)))

    def due(self, how: int, body: bytes) -> None:
        """What running data phases wait for, with these bytes in it."""
        for _ in range(1 + how % 12):
            for run_key, run in list(self.station.runs.items()):
                for key in list(run.execution._waiting)[:MOST_DUE]:
                    if run.execution.awaits(key) and self.station.runs.get(run_key) is run:
                        rank, piece, reduce = key
                        if run.execution._nbytes(piece, reduce) > LARGEST_DUE:
                            continue
                        data = bytearray(run.execution._nbytes(piece, reduce))
                        data[: len(body)] = body[: len(data)]
                        self.frame(
                            run.start.ring[rank], run_key[0], piece << 1 | reduce, memoryview(data), bool(how & 1)
                        )
            self.resume()

    def answer(self, how: int, body: bytes) -> None:
        """What a master would say to this peer's last words; `body` is what the second member adds to the vote."""
        if not self.said:
            return
        said = self.said.popleft()
        match said:
            case Hello():
                self.say(Welcome(US, b"secret"))
                self.open()
            case Topology():
                self.open()
            case Linked():
                opened = self.peer.opening is not None
                pace = Pace(1e-3, 1e-3, 1e9, 1e9) if how & 1 else Pace()
                lost = () if opened else (Loss(9, "x", "died"),)
                self.say(View(self.epoch, self.ring, opened, bool(how & 2), lost, "", pace))
            case Broken():
                self.establish()
            case Initiate():
                self.initiated(said, how, body)
            case Complete(seq, fault):
                found = [s for s, r in self.peer.running.items() if r.run == (seq, 0)]
                if found and not fault:
                    self.verdict(self.peer.running[found[0]].ticket, body)
                elif found:
                    self.say(Verdict(found[0].tag, False, (), fault, found[0].scope))
            case _:
                self.establish()

    def establish(self) -> None:
        seats = tuple(Seat(i, "127.0.0.1", i) for i in RING)
        self.say(Establish(min(max(self.epoch, 0) + 1, LAST_EPOCH), seats, b"key"))

    def open(self) -> None:
        self.establish()
        self.station.feed(LinkUp(self.epoch, 2, 1e-3, "TCP"))

    def initiated(self, said: Initiate, how: int, body: bytes) -> None:
        found = self.peer.running.get(Series(said.scope, said.tag))
        if found is None or self.peer.forming:
            return
        ticket = found.ticket
        world = len(ticket.members or self.peer.views[-1].ring)
        if ticket.kind == "sync":
            revision = ticket.tensor.notes and self.seq
            plan = (
                Plan(revision, ((1, 0),), (0,), (bytes(16),))
                if how & 1
                else Plan(revision, ((0, 1),), (0,), (bytes(16),))
            )
            encoded = msgspec.msgpack.encode(plan) if not how & 2 else body
            self.seq += 1
            self.say(Commence(said.tag, self.seq, encoded, said.scope))
        elif ticket.eager and world > 1:
            return
        elif ticket.moves_data and world > 1:
            self.seq += 1
            others = [body if rank == 1 else said.payload for rank in range(world)]
            self.say(Commence(said.tag, self.seq, msgspec.msgpack.encode(others) if said.payload else b"", said.scope))
        else:
            self.verdict(ticket, body)

    def verdict(self, ticket: Ticket, body: bytes) -> None:
        world = len(ticket.members or self.peer.views[-1].ring)
        payloads = tuple(body if rank == 1 and ticket.payload else ticket.payload for rank in range(world))
        self.say(Verdict(ticket.tag, False, payloads if ticket.kind != "sync" else (body,), "", ticket.scope))


def calls(group: atoll.Group) -> list[Callable[[], Any]]:
    """One of each kind."""
    small, large = np.arange(4.0), np.arange(900.0)
    rank = group.rank
    other = (rank + 1) % group.world
    return [
        lambda: group.all_reduce(small.copy()),
        lambda: group.all_reduce(large.copy(), "max"),
        lambda: group.all_reduce(large.copy(), algorithm="ring"),
        lambda: group.all_reduce(large.copy(), algorithm="halving"),
        lambda: group.all_reduce(large.copy(), algorithm="direct", codec="int4"),
        lambda: group.all_gather(large, codec="uint8"),
        lambda: group.reduce_scatter(small),
        lambda: group.broadcast(large.copy(), group.world - 1),
        lambda: group.all_to_all([small[: 1 + r] for r in range(group.world)]),
        lambda: group.gather_bytes(b"hello"),
        lambda: group.barrier(),
        lambda: group.sync(SharedState({"w": small.copy(), "v": np.ones(3)}, revision=1)),
        lambda: group.subgroup("a" if rank else "b").all_reduce(large.copy(), "sum"),
        lambda: group.send(large, other) if group.world > 1 else None,
        lambda: group.recv(large.copy(), other) if group.world > 1 else None,
        lambda: group.update_topology(),
    ]


def program(world: World, first: int) -> None:
    group = atoll.Group.enter(world)
    for n in range(MOST_CALLS):
        ready = calls(group)
        try:
            ready[(first + n) % len(ready)]()
        except (MasterLost, Expelled, Refused):
            return
        except AtollError:
            continue


def fuzz(data: bytes) -> None:
    world = World(data[1:])
    try:
        program(world, data[0] if data else 0)
    except AtollError:
        pass
    world.close()
    assert not world.peer.running
    assert not world.station.runs


ENTER: Final = ((ANSWER, b""), (ANSWER, b""))


def seeds() -> list[bytes]:
    words: list[Any] = [
        Welcome(US, b"secret"),
        Establish(1, (Seat(1, "127.0.0.1", 1), Seat(2, "127.0.0.1", 2)), b"key"),
        Establish(2, (Seat(1, "127.0.0.1", 1),)),
        View(1, (1, 2), True, True),
        View(2, (1,), False, False, (Loss(2, "x", "died"),), "cut"),
        Probe(1, 2),
        Commence(0, 1, b""),
        Verdict(0, True, (b"a", b"b", b"c")),
        Verdict(0, False, (), "no"),
        Crossed(((0, 0),), True, "no"),
        Expel("late"),
        Refuse("no"),
    ]
    said = [(WORDS, messages.encode(word)) for word in words]
    frame = (FRAME | 4 << 3, unvoted_seq(Series(0, 0), 1).to_bytes(8, "little") + bytes(4) + bytes(100))
    done = [(ANSWER, b"\x93\1\1\1"), (DUE | 8 << 3, b"\1"), (ANSWER, b"\x93\1\1\1")]
    place = msgspec.msgpack.encode(["b", 0, 0])
    plan = msgspec.msgpack.encode(Plan(1, ((0, 1),), (0,), (bytes(16),)))
    return [
        bytes([0]) + recorded(*said),
        bytes([0]) + recorded(*ENTER, *said[2:]),
        *[bytes([which]) + recorded(*ENTER, frame, *done * 3) for which in range(16)],
        bytes([12]) + recorded(*ENTER, (ANSWER, place), (ANSWER, b""), (DUE | 8 << 3, b""), (ANSWER, b"")),
        bytes([11]) + recorded(*ENTER, (ANSWER, b""), (DUE | 8 << 3, b""), (ANSWER, plan), *done),
        bytes([11]) + recorded(*ENTER, (ANSWER | 2 << 3, plan), (LINK, b"\1"), *done),
        bytes([1])
        + recorded(*ENTER, (LINK, b"\1"), (LINK, b"\0"), (LINK, b"\2"), *done, (WORDS, messages.encode(words[4]))),
    ]


def mutate(data: bytes, rng: Any) -> bytes:
    first = rng.randrange(256) if rng.random() < 0.2 else (data or b"\0")[0]
    return bytes([first]) + _mutate(data[1:], rng)


_mutate = record_mutator([seed[1:] for seed in seeds()])
