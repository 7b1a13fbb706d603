"""Foreign messages into the real master while three honest peers, real ones too, train.

There are any number of strangers, and one member who keeps no rule. The honest are never lost for it, all the master
says can be said, what it remembers stays bounded; and when the others have gone, the three go on.

A record's op says who speaks (a stranger, the member, nobody: time passes) and how much the honest do afterwards.
"""

from collections import deque
from typing import Any, Final

import msgspec

from atoll.errors import AtollError, Mismatch, PeerLost, ProtocolError
from atoll.group import messages
from atoll.group.api import (
    MOST_VOTES,
    Close,
    DataDone,
    Finish,
    Know,
    LinkDown,
    LinkUp,
    Measure,
    Measured,
    Relink,
    Say,
    Series,
    Start,
    Tell,
    Ticket,
    unvoted_seq,
)
from atoll.group.membership.admission import MOST_STATES
from atoll.group.membership.ballots import SYNC
from atoll.group.membership.election import Plan, StateNote, TensorNote
from atoll.group.membership.master import LOSSES_KEPT, Master
from atoll.group.membership.roster import Gone, Tick
from atoll.group.messages import (
    AskStatus,
    Beat,
    Broken,
    Bye,
    Complete,
    Hello,
    Initiate,
    Kept,
    Linked,
    Probed,
    Return,
    Seat,
    Stalled,
    Topology,
    Verdict,
    View,
)
from atoll.group.peer import Peer
from atoll.net.channel import LARGEST_CONTROL
from tests.fuzzers.choices import recorded, records
from tests.fuzzers.mutation import record_mutator

HONEST: Final = (1, 2, 3)
MEMBER: Final = 4
STRANGERS: Final = (5, 6, 7)
MOST_RECORDS: Final = 30
MOST_EVENTS: Final = 6000
STEPS_AFTER: Final = 3
SECRET: Final = b"nobody knows it"

SPEAKER, HOW_MUCH = 7, 3
"""Bits of an op: who (0 to 7), then two for how much the honest do, then whether `epoch` is to be the present one."""
NOW: Final = 0x20
TIME, GONE = 6, 7


class Honest:
    """A real peer and a program that never ends."""

    def __init__(self, world: "World", number: int) -> None:
        self.world, self.id = world, number
        self.peer = Peer(Seat(0, "127.0.0.1", 1000 + number, "here"))
        self.epoch, self.flag, self.seen, self.steps, self.turn = 0, False, -1, 0, 0
        self.live = 0
        self.waits: Ticket | None = None
        self.error: AtollError | None = None

    def go(self) -> None:
        """The next call of the program."""
        self.turn += 1
        if not self.epoch:
            ticket = Ticket("join", 0, min_world=self.world.first, name=f"honest-{self.id}")
        elif self.flag:
            ticket = Ticket("topology", self.epoch)
        elif self.seen != self.epoch:
            note = StateNote(self.steps, "popular", (TensorNote("w", "float32", (1,), bytes(16)),))
            ticket = Ticket("sync", self.epoch, 0, SYNC, msgspec.msgpack.encode(note), tensor=self)
        elif self.steps % 3 == 0:
            ticket = Ticket("all_reduce", self.epoch, 0, "all_reduce", tensor=self, algorithm="eager")
        elif self.steps % 3 == 1:
            ticket = Ticket("all_reduce", self.epoch, 0, "all_reduce", tensor=self, algorithm="ring")
        else:
            ticket = Ticket("gather_bytes", self.epoch, 0, "gather_bytes", bytes([self.id]))
        self.waits = ticket
        self.feed(ticket)

    def feed(self, event: Any) -> None:
        for action in self.peer.handle(event):
            match action:
                case Tell(message, _):
                    self.world.post(self.world.to_master, self.id, message)
                case Finish(ticket, outcome):
                    assert ticket.outcome is None, "a ticket was answered twice"
                    ticket.outcome = outcome
                    if ticket is self.waits:
                        self.world.post(self.woken, ticket)
                case Relink(epoch, _, successor, _):
                    self.live = epoch
                    if successor is not None:
                        self.world.post(self.feed, self.world.dial(epoch, self.id, successor.id))
                case Measure(to):
                    self.world.post(self.feed, Measured(self.live, to, 1e8, 1e-3))
                case Start(run):
                    self.world.post(self.moved, self.live, run)

    def moved(self, epoch: int, run: Any) -> None:
        if epoch == self.live:
            self.feed(DataDone(run))

    def woken(self, ticket: Ticket) -> None:
        outcome = ticket.outcome
        assert outcome is not None
        if outcome.pending is not None:
            self.flag = outcome.pending
        if outcome.view is not None and outcome.view.epoch > self.epoch:
            self.epoch, self.flag = outcome.view.epoch, outcome.view.pending
        if outcome.error is None:
            if ticket.kind == "sync":
                self.seen = self.epoch
                self.steps = max(self.steps, msgspec.msgpack.decode(outcome.payloads[0], type=Plan).revision % 1000)
            elif ticket.kind not in ("join", "topology"):
                self.steps += 1
        elif not isinstance(outcome.error, PeerLost | Mismatch):
            self.error = outcome.error
            return
        self.go()


class World:
    """One master, and who is connected to it."""

    def __init__(self, early: bool) -> None:
        """`early`: the member joins together with the honest."""
        self.first = len(HONEST) + early
        self.master = Master(lambda: SECRET)
        self.honest = {i: Honest(self, i) for i in HONEST}
        self.now = 0.0
        self.events: deque[tuple[Any, tuple[Any, ...]]] = deque()
        self.open = {*HONEST, MEMBER, *STRANGERS}
        self.ids: dict[int, int] = {}
        """Of those who have said hello, by connection."""
        self.reached = True
        """Can the honest reach who is none of them?"""
        for member in self.honest.values():
            member.go()
        if early:
            self.pump(6)
            self.to_master(MEMBER, Hello("127.0.0.1", 9, "mallory", machine="here"))
        self.pump(60)

    def post(self, fn: Any, *args: Any) -> None:
        self.events.append((fn, args))

    def pump(self, most: int) -> None:
        for _ in range(most):
            if not self.events:
                return
            fn, args = self.events.popleft()
            fn(*args)

    def dial(self, epoch: int, who: int, other: int) -> LinkUp | LinkDown:
        up = other in self.honest or (self.reached and other in map(self.ids.get, self.open))
        return (
            LinkUp(epoch, other, 1e-3, "TCP")
            if up
            else LinkDown(epoch, who, other, "nothing listens there", made=False)
        )

    def to_master(self, who: int, event: Any) -> None:
        self.now += 1e-3
        for action in self.master.handle(self.ids.get(who, -who), event, self.now):
            match action:
                case Know(number, ident):
                    self.ids[-number] = ident
                case Say(to, message):
                    body = messages.encode(message)
                    assert len(body) <= LARGEST_CONTROL, f"{type(message).__name__} of {len(body)} bytes"
                    heard = messages.decode_to_peer(body)
                    if to in self.honest:
                        self.spared(message)
                        self.post(self.honest[to].feed, heard)
                case Close(gone):
                    assert gone not in self.honest, "an honest member's connection is closed"
                    self.open -= {who for who in self.open if self.ids.get(who, -who) == gone}

    def spared(self, message: Any) -> None:
        """An honest peer is never told to go."""
        lost = isinstance(message, messages.Expel | messages.Refuse)
        assert not lost, f"an honest member is lost: {message}"

    def say(self, who: int, body: bytes, now: bool) -> None:
        """What a connection carries; one that can't be read ends it."""
        if who not in self.open:
            return
        try:
            message: Any = messages.decode_to_master(body)
        except ProtocolError as error:
            self.leave(who, str(error))
            return
        if now and hasattr(message, "epoch"):
            message = msgspec.structs.replace(message, epoch=self.master.epoch)
        self.to_master(who, message)

    def leave(self, who: int, why: str) -> None:
        if who in self.open:
            self.open.discard(who)
            self.to_master(who, Gone(f"connection lost: {why}"))

    def time(self, seconds: float) -> None:
        """Helpers beat, the master ticks, the honest do what they have to."""
        while seconds > 0:
            self.now += 0.5
            seconds -= 0.5
            for i in self.honest:
                if i in self.master.roster.members:
                    self.to_master(i, Beat(i, SECRET, "running", bytes(8)))
            self.to_master(0, Tick())
            self.pump(15)

    def check(self) -> None:
        """What it remembers is of those who are there, and no more than stated."""
        master, members = self.master, set(self.master.roster.members)
        inside = set(master.forming.ring if master.forming else master.ring)
        assert inside <= members
        assert master.openers <= members
        assert all(i > 0 for i in master._left), "of those in a ring only"
        assert len(master.votes.ballots) <= MOST_VOTES * max(1, len(members))
        assert all(set(ballot.votes) <= inside for ballot in master.votes.ballots.values())
        assert len(master.votes.agreements) <= MOST_STATES
        assert all(a.incumbents <= members for a in master.votes.agreements.values())
        assert len(master.losses) <= LOSSES_KEPT
        for pair in [*master.links._trips, *master.links._rates, *master.links.breaks._troubles]:
            assert set(pair) <= members
        assert members <= set(self.ids.values())

    def end(self) -> None:
        """The strangers leave, the rest goes on."""
        for who in (MEMBER, *STRANGERS):
            self.leave(who, "closed")
        self.reached = False
        goal = {i: member.turn + 4 * STEPS_AFTER for i, member in self.honest.items()}
        for _ in range(MOST_EVENTS // 100):
            self.pump(100)
            if not self.events:
                self.time(1.0)
            if all(member.turn >= goal[i] and member.error is None for i, member in self.honest.items()):
                break
        else:
            state = {i: (m.turn, m.waits and m.waits.kind, m.error) for i, m in self.honest.items()}
            raise AssertionError(f"the honest stand still: {state}, master {self.master.__dict__}")
        assert set(self.master.roster.members) == set(HONEST), f"{list(self.master.roster.members)} are left"
        assert {i for pair in self.master.links._trips for i in pair} <= set(HONEST)


def fuzz(data: bytes) -> None:
    world = World(early=bool(data) and data[0] & 1 == 1)
    for count, (op, body) in enumerate(records(data[1:])):
        if count == MOST_RECORDS:
            break
        who, much = op & SPEAKER, op >> HOW_MUCH & 3
        if who == TIME:
            world.time((body[0] if body else 1) / 8)
            world.reached = not op & 0x80
        elif who == GONE:
            world.leave(MEMBER + (body[0] if body else 0) % 4, "reset")
        else:
            world.say((MEMBER, MEMBER, *STRANGERS, MEMBER)[who], body, bool(op & NOW))
        world.pump((0, 4, 15, 70)[much])
        world.check()
    world.end()
    world.check()


def words() -> list[tuple[int, bytes]]:
    """One of each kind, from the member."""
    kinds: list[Any] = [
        Hello("127.0.0.1", 9, "mallory", {"a": "b"}, 1, "here", "door"),
        Hello("10.0.0.9", 9),
        Hello("fe80::1%eth0", 9),
        Linked(1),
        Linked(1, 1.0, "TCP x 8"),
        Topology(),
        Initiate(1, 0, "all_reduce"),
        Initiate(1, 0, "all_reduce", b"", True, unvoted_seq(Series(0, 0), 1)),
        Initiate(1, 0, "gather_bytes", b"x", False),
        Initiate(
            1, 0, SYNC, msgspec.msgpack.encode(StateNote(1, "popular", (TensorNote("w", "float32", (1,), bytes(16)),)))
        ),
        Initiate(1, 3, "other", b"", False, 0, 7, 1, (4, 1)),
        Initiate(1, 0, "sync s", b"\x93\x00\xa7popular\x90", True, 0, 7, 2, (4,)),
        Complete(1),
        Complete(unvoted_seq(Series(0, 0), 1), "wrong"),
        Broken(1, 4, 1, "the link broke"),
        Broken(1, 4, 1, "nothing listens there", False),
        Broken(1, 2, 4, "reset"),
        Stalled(1, "no data", (1, 2), 9),
        Probed(1, 1, 1e9, 1e-3),
        Probed(1, 2, 1e-310, float("nan")),
        Beat(1, b"guessed", "gone", bytes(8)),
        AskStatus(),
        Return(4, SECRET, Hello("127.0.0.1", 9), View(1, (1, 2, 3, 4), True), kept=1),
        Return(9, b"guessed", Hello("127.0.0.1", 9), View(1 << 40, (9, 9), True), last_id=1 << 50),
        Kept(1, (), 1, Verdict(0, True)),
        Bye(),
    ]
    return [(NOW | 2 << HOW_MUCH, messages.encode(kind)) for kind in kinds]


def seeds() -> list[bytes]:
    said = words()
    hello, rest = said[0], said[3:]
    join = [hello, (TIME | 3 << HOW_MUCH, b"\x08")]
    linked = (NOW | 3 << HOW_MUCH, messages.encode(Linked(1)))
    votes = [(NOW | 3 << HOW_MUCH, messages.encode(vote)) for vote in state_votes()]
    late = [
        recorded(*said),
        recorded(*join, *rest),
        recorded((2 | 3 << HOW_MUCH, hello[1]), (0x80 | TIME, b"\x40"), (GONE, b"\1")),
        *[recorded(*join, linked, (op | 3 << HOW_MUCH, body), (op | 3 << HOW_MUCH, body)) for op, body in rest],
    ]
    accusers = [
        [(NOW | 3 << HOW_MUCH, messages.encode(Broken(1, *link, "said so", False))) for link in links]
        for links in ([(4, 1)] * 4, [(1, 4)] * 4, [(4, 1), (4, 2), (4, 3)], [(4, 1), (1, 4), (2, 4), (4, 2)] * 2)
    ]
    early = [recorded(linked, vote, *rest) for vote in votes] + [recorded(*said) for said in accusers]
    return [b"\0" + seed for seed in late] + [b"\1" + seed for seed in early]


def state_votes() -> list[Initiate]:
    """On states like that of the honest, and others."""
    notes = [
        StateNote(revision, strategy, (TensorNote(name, "float32", (1,), bytes(16)),))
        for revision, strategy, name in [
            (0, "popular", "w"),
            (9, "popular", "w"),
            (9, "popular", "v"),
            (0, "send", "w"),
        ]
    ]
    return [Initiate(1, 0, SYNC, msgspec.msgpack.encode(note)) for note in notes]


def mutate(data: bytes, rng: Any) -> bytes:
    first = rng.randrange(2) if rng.random() < 0.2 else (data or b"\0")[0]
    return bytes([first]) + _mutate(data[1:], rng)


_mutate = record_mutator([seed[1:] for seed in seeds()])
