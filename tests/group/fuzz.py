"""Policies only: master and peers under random interleavings of their streams; no clock, thread or tensor.

Scripted programs join, compute (sometimes through several epochs), reduce, sync and let newcomers in, also in two
subgroups at once, while processes crash, freeze, leave and arrive, links break, and the master is killed and started
again. Streams are first in, first out; which one moves next is up to the seed.

    python -m tests.group.fuzz 17            # replay one seed
    python -m tests.group.fuzz 0 100000      # a range
"""

import random
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import numpy as np

from atoll.errors import Expelled, MasterLost, Mismatch
from atoll.group.api import (
    MOST_VOTES,
    Close,
    DataDone,
    Finish,
    Know,
    LinkDown,
    LinkUp,
    MasterAway,
    MasterBack,
    MasterGone,
    Measure,
    Measured,
    Relink,
    RunKey,
    Say,
    Start,
    Tell,
    Ticket,
)
from atoll.group.membership.ballots import SYNC
from atoll.group.membership.election import Plan, StateNote, TensorNote
from atoll.group.membership.master import Master
from atoll.group.membership.recovery import majority
from atoll.group.membership.roster import Gone, Tick
from atoll.group.messages import Beat, Expel, Seat, View
from atoll.group.peer import Peer

LAUNCH, WAIT, NAP = "launch", "wait", "nap"
MOST_EVENTS = 60_000
SMALL = np.zeros(1)
Script = Generator[tuple[str, Any], Any, None]


def told(ticket: Ticket) -> tuple[int, tuple[int, tuple[int, ...]], tuple[Any, ...]]:
    """Of which epoch, whose (scope and members; (0, ()): of all) and what those must have been told alike."""
    outcome = ticket.outcome
    assert outcome is not None
    return (
        ticket.epoch,
        (ticket.scope, ticket.members),
        (ticket.kind, ticket.tag, str(outcome.error), outcome.payloads),
    )


@dataclass
class Side:
    """A master, and who is connected to it."""

    policy: Master
    connections: dict[int, "Box"] = field(default_factory=dict)
    lines: dict[int, int] = field(default_factory=dict)
    """Of the same: which connection of that process it is."""
    cut_off: set[int] = field(default_factory=set)
    """Processes, by number, that can't reach it."""


class Box:
    """One process: a peer policy, its scripted program, its streams."""

    def __init__(self, world: "World", number: int, steps: int) -> None:
        self.world, self.number = world, number
        self.side = world.sides[0]
        self.line = self.who = world.connect(self)
        """Our connection to the master, and how it knows us."""
        self.peer = Peer(Seat(0, "127.0.0.1", number, world.machine), len(world.sides))
        self.dead = self.frozen = False
        self.awaits: Ticket | None = None
        self.epoch, self.flag, self.seen, self.step = 0, False, -1, 0
        self.ring: tuple[int, ...] = ()
        self.live = 0
        self.provoking = False
        self.crash: BaseException | None = None
        self.links: set[tuple[int, int]] = set()
        self.trace: list[tuple[Any, ...]] = []
        self.arrived: Counter[tuple[int, RunKey]] = Counter()
        self.started: set[tuple[int, RunKey]] = set()
        self.axes: list[tuple[int, tuple[int, ...]]] = []
        """Two subgroups, number and members, as they were made in the epoch `made`."""
        self.made = self.scopes = 0
        self.script = self.program(steps)
        self.go()

    @property
    def id(self) -> int:
        return self.peer.id

    # -- the program, as somebody would write it -------------------------------------------------------------------

    def adopt(self, ticket: Ticket) -> bool:
        outcome = ticket.outcome
        assert outcome is not None
        before = self.epoch
        if outcome.pending is not None:
            self.flag = outcome.pending
        if outcome.view and outcome.view.epoch > self.epoch:
            self.epoch, self.ring, self.flag = outcome.view.epoch, outcome.view.ring, outcome.view.pending
        self.trace.append(
            (before, ticket.kind, ticket.tag, str(outcome.error), self.epoch, self.flag, outcome.payloads, told(ticket))
        )
        if isinstance(outcome.error, Expelled | MasterLost) or (
            isinstance(outcome.error, Mismatch) and not self.provoking
        ):
            raise outcome.error
        return outcome.error is None

    def call(self, kind: Any, tag: int = 0, what: str = "", payload: bytes = b"") -> Script:
        for _ in range(self.world.random.choice([0, 0, 0, 2, 60])):  # computing; sometimes through several epochs
            yield NAP, None
        tensor = SMALL if self.world.eager and kind == "all_reduce" else None
        ticket = Ticket(
            kind, self.epoch, tag, what or kind, payload, tensor, min_world=self.world.min_world, algorithm="eager"
        )
        yield LAUNCH, ticket
        yield WAIT, ticket
        return ticket if self.adopt(ticket) else None

    def reduce(self, tag: int) -> Ticket:
        tensor = SMALL if self.world.eager else None
        return Ticket("all_reduce", self.epoch, tag, "all_reduce", tensor=tensor, algorithm="eager")

    def note(self, content: int) -> bytes:
        tensors = (TensorNote("w", "float32", (1,), content.to_bytes(4, "little")),)
        return msgspec.msgpack.encode(StateNote(self.step, "popular", tensors))

    # -- in subgroups ----------------------------------------------------------------------------------------------

    def divide(self, choice: random.Random) -> Script:
        """Make two subgroups anew, or go on with those left of the old ones where all members have them."""
        said = yield from self.call("gather_bytes", payload=self.made.to_bytes(8, "little"))
        if not said or (len(set(said.outcome.payloads)) == 1 and self.made and choice.random() < 0.6):
            return
        rank, axes = self.ring.index(self.id), []
        for key in (rank % 2, rank // 2 % 2):
            votes = yield from self.call("gather_bytes", 0, "subgroup", msgspec.msgpack.encode((key, self.scopes)))
            if not votes:
                return
            places = [msgspec.msgpack.decode(vote, type=tuple[int, int]) for vote in votes.outcome.payloads]
            ours = [r for r, place in enumerate(places) if place[0] == key]
            self.scopes = 1 + max(places[r][1] for r in ours)
            axes.append((self.scopes, tuple(self.ring[r] for r in ours)))
        self.axes, self.made = axes, self.epoch

    def inside(self, axis: int, kind: Any, tag: int, **more: Any) -> Ticket:
        """An operation of a subgroup."""
        scope, members = self.axes[axis]
        left = tuple(i for i in members if i in self.ring)
        return Ticket(kind, self.epoch, tag, more.pop("what", kind), scope=scope, members=left, **more)

    def grid(self, choice: random.Random) -> Script:
        """Operations in both subgroups at once, with the same tags; agreed on by all at the end: a loss may have come
        between those of one subgroup and those of another."""
        tickets = []
        for axis in (0, 1):
            for tag in (0, 1, 2):
                kind, moves = choice.choice(["all_reduce", "gather_bytes", "sync"]), choice.random() < 0.7
                if kind == "sync":  # contents differ, so that data moves
                    tickets.append(self.inside(axis, kind, tag, what=f"{SYNC} {axis}", payload=self.note(self.id)))
                else:
                    tensor = SMALL if moves and kind == "all_reduce" else None
                    way, said = choice.choice(["eager", "ring"]), self.id.to_bytes(8, "little")
                    tickets.append(self.inside(axis, kind, tag, payload=said, tensor=tensor, algorithm=way))
            there = tickets[-1].members
            if choice.random() < 0.5 and len(there) > 1:
                at = there.index(self.id)
                for kind, other in (("send", at + 1), ("recv", at - 1)):
                    tickets.append(self.inside(axis, kind, 0, tensor=SMALL, root=other % len(there)))
        for ticket in self.world.random.sample(tickets, len(tickets)):
            for _ in range(self.world.random.choice([0, 0, 0, 0, 0, 3, 30])):
                yield NAP, None
            yield LAUNCH, ticket
        ok = True
        for ticket in tickets:
            yield WAIT, ticket
            ok = self.adopt(ticket) and ok
        if ok and self.flag:
            return (yield from self.call("topology"))  # the members of another subgroup may still be at work
        return ok and (yield from self.call("gather_bytes"))

    def program(self, steps: int) -> Script:
        yield from self.call("join")
        late: Ticket | None = None
        while self.step < steps:
            choice = random.Random(self.world.seed * 1000 + self.step)  # the same on all
            if late and (self.flag or self.epoch != self.seen or choice.random() < 0.5):
                ticket, late = late, None
                yield WAIT, ticket
                self.adopt(ticket)
                continue
            postponed = self.world.peaceful and self.epoch == self.seen and choice.random() < 0.5
            if self.flag and not postponed:
                yield from self.call("topology")
            if self.epoch != self.seen:
                synced = yield from self.call("sync", 0, SYNC, self.note(self.step))
                if synced:
                    self.seen = self.epoch
                    self.step = msgspec.msgpack.decode(synced.outcome.payloads[0], type=Plan).revision
                    if self.world.divided:
                        yield from self.divide(random.Random(self.world.seed * 1000 + self.step))
                continue
            ok: Any = True
            what = choice.random()
            if self.world.unruly and choice.random() < 0.1:
                odd = self.misbehave_inside if self.world.divided and choice.random() < 0.5 else self.misbehave
                ok = yield from odd(choice, late is None)
            elif self.world.divided and (self.flag or choice.random() < 0.4):
                ok = yield from self.grid(choice)
            elif what < 0.5:
                ok = yield from self.call(choice.choice(["all_reduce", "gather_bytes"]))
            elif what < 0.8 or late:
                tickets = [self.reduce(tag) for tag in (1, 2, 3)]
                if self.world.random.random() < 0.3:
                    tickets.reverse()  # the order of launching may differ from peer to peer
                for ticket in tickets:
                    yield LAUNCH, ticket
                for ticket in sorted(tickets, key=lambda t: t.tag):
                    yield WAIT, ticket
                    ok = self.adopt(ticket) and ok
            else:
                late = Ticket("all_reduce", self.epoch, 9, "all_reduce")
                if self.world.divided and choice.random() < 0.7:
                    late = self.inside(choice.choice([0, 1]), "all_reduce", 9, tensor=SMALL, algorithm="eager")
                yield LAUNCH, late
            if ok:
                self.step += 1
        if late:
            yield WAIT, late
            self.adopt(late)

    def misbehave(self, choice: random.Random, idle: bool) -> Script:
        """One rank calls something else than the others: all must get a Mismatch, nobody may hang."""
        odd = self.ring.index(self.id) == choice.randrange(len(self.ring))
        other = choice.choice(["topology", "gather_bytes"] if idle else ["gather_bytes"])  # else a Group says Busy
        epoch, self.provoking = self.epoch, True
        yield from self.call(other if odd else "all_reduce")
        self.provoking = False
        error = self.trace[-1][3]
        if len(self.ring) > 1 and self.epoch == epoch:
            assert "different things" in error or "disagree" in error, error
        return True

    def misbehave_inside(self, choice: random.Random, idle: bool) -> Script:
        """One rank calls something else than the others of its subgroup: only they get a Mismatch. If it waits for
        newcomers, all do, once they come to what concerns all."""
        axis, odd = choice.choice([0, 1]), self.ring[choice.randrange(len(self.ring))]
        other = choice.choice(["topology", "gather_bytes"] if idle else ["gather_bytes"])
        ticket = self.inside(axis, "all_reduce", 0, tensor=SMALL, algorithm=choice.choice(["eager", "ring"]))
        epoch, self.provoking = self.epoch, True
        if self.id == odd:
            ticket = self.inside(axis, other, 0) if other == "gather_bytes" else Ticket("topology", self.epoch)
        yield LAUNCH, ticket
        yield WAIT, ticket
        ok = self.adopt(ticket)
        concerned = odd in self.axes[axis][1]
        alone = not ticket.members or ticket.members == (self.id,)
        if self.epoch == epoch and not (alone and (other == "gather_bytes" or len(self.ring) == 1)):
            wrong = concerned and odd in self.ring
            assert ok != wrong, (self.trace[-1], odd, self.axes[axis])
        if self.epoch == epoch and (ok or other == "gather_bytes"):
            yield from self.call("gather_bytes")
        self.provoking = False
        return True

    def go(self) -> None:
        try:
            while True:
                what, ticket = next(self.script)
                if what == LAUNCH:
                    self.feed(ticket)
                elif what == NAP:
                    self.world.post((self.number, "nap"), self, self.go_on)
                    return
                elif ticket.outcome is None:
                    self.awaits = ticket
                    return
        except (StopIteration, Expelled, MasterLost, Mismatch) as error:
            self.crash = error
            self.end("left")

    def go_on(self) -> None:
        if not self.dead:
            self.go()

    # -- what a driver would do ------------------------------------------------------------------------------------

    def feed(self, event: Any) -> None:
        if self.dead:
            return
        if isinstance(event, LinkUp):
            self.links.add((event.epoch, event.id))
        for action in self.peer.handle(event):
            match action:
                case Tell(message, _):
                    self.world.post((self.number, "master"), None, self.say, message)
                case Finish(ticket, outcome):
                    assert ticket.outcome is None, "a ticket was answered twice"
                    ticket.outcome = outcome
                    if self.awaits is ticket:
                        self.world.post((self.number, "wake"), self, self.wake, ticket)
                case Relink(epoch, _, successor, _):
                    self.live = epoch
                    if successor is not None:
                        other = self.world.members[successor.id]
                        self.world.post((self.id, successor.id, epoch), other, other.dialled, successor.id, epoch, self)
                case Measure(to):
                    rate = self.world.random.choice([0.0, 1e6, 1e7, 1e8])
                    self.world.post((self.id, to, self.live), self, self.feed, Measured(self.live, to, rate, 1e-3))
                case Start(run, ticket, ring):
                    self.start(run, ring, (run[1], self.id) if ticket.between_two else ring)
        assert len(self.peer.running) <= MOST_VOTES

    def start(self, run: RunKey, ring: tuple[int, ...], concerned: tuple[int, ...]) -> None:
        assert (self.live, run) not in self.started, "two data phases of an epoch have one number"
        assert self.id in ring
        assert len(ring) > 1
        self.started.add((self.live, run))
        for i in concerned:
            if (self.live, self.id, i) not in self.world.broken:
                other = self.world.members[i]
                there = run if not run[1] or i == self.id else (run[0], self.id)
                self.world.post((self.id, i, self.live), other, other.data, self.live, there, len(concerned))

    def wake(self, ticket: Ticket) -> None:
        if self.awaits is ticket and not self.dead:
            self.awaits = None
            self.go()

    def dialled(self, called: int, epoch: int, by: "Box") -> None:
        event = LinkDown(epoch, by.id, called, "refused", made=False) if self.dead else LinkUp(epoch, called)
        self.world.post((called, by.id, epoch), by, by.feed, event)

    def data(self, epoch: int, run: RunKey, world: int) -> None:
        self.arrived[epoch, run] += 1
        assert self.arrived[epoch, run] <= world, "data of another operation"
        if self.arrived[epoch, run] == world and epoch == self.live:
            self.feed(DataDone(run))

    def break_link(self) -> None:
        """A link of the present epoch breaks under two living peers."""
        if len(self.ring) > 1 and self.id in self.ring:
            other = self.world.members[self.ring[(self.ring.index(self.id) + 1) % len(self.ring)]]
            for a, b in ((self, other), (other, self)):
                self.world.broken.add((self.live, a.id, b.id))
                self.world.post((a.id, b.id, self.live), b, b.feed, LinkDown(self.live, b.id, a.id, "reset"))

    def say(self, message: Any) -> None:
        if self.side.connections.get(self.who) is self and self.side.lines.get(self.who) == self.line:
            self.world.to_master(self.side, self.who, message)

    def hear(self, line: int, message: Any) -> None:
        if line == self.line:
            self.feed(message)

    def lost_master(self, line: int) -> None:
        """Our connection to it broke: look for it again."""
        if line and line == self.line and not self.dead and not self.peer.over:
            self.line = 0
            self.feed(MasterAway())
            self.world.cut((self.number, "master"))
            self.dial_master()

    def dial_master(self) -> None:
        self.side = self.world.random.choice(self.world.sides)
        self.world.post((self.number, "dial"), self, self.found_master)

    def found_master(self) -> None:
        if self.line or self.peer.over:
            return
        if self.number in self.side.cut_off:
            self.world.lost_dials.append(self)  # again, once all else is quiet
            return
        self.line = self.who = self.world.connect(self)
        self.feed(MasterBack())

    def end(self, why: str) -> None:
        if self.dead:
            return
        self.dead = True
        self.world.post((self.number, "master"), None, self.say, Gone(why))
        for box in self.world.boxes.values():
            if not box.dead and box.live > 0 and self.id in box.ring:
                self.world.post(
                    (self.id, box.id, box.live), box, box.feed, LinkDown(box.live, self.id, box.id, "reset")
                )


class World:
    """One seed."""

    def __init__(self, seed: int) -> None:
        self.seed, self.random = seed, random.Random(seed)
        self.min_world = self.random.choice([1, 1, 1, 2])
        self.eager = self.random.random() < 0.5
        self.unruly = self.random.random() < 0.2
        self.calm = self.unruly and self.random.random() < 0.5
        """No faults: after each mismatch all members are still in step."""
        self.divided = self.random.random() < 0.5
        self.peaceful = self.divided and not self.unruly and self.random.random() < 0.35
        """Nobody is lost before the end: there may be operations in subgroups right before an update_topology."""
        self.machine = self.random.choice(["", "one"])
        """Unknown: the master has links measured."""
        self.forgetful = self.random.random() < 0.1
        """A master knows nothing of the one before: if newcomers come first, they are another group."""
        self.guarded = not self.forgetful and not self.calm and self.random.random() < 0.25
        """Another master stands by, and peers may be cut off from one or the other."""
        self.sides = [Side(Master(lambda: b""))]
        if self.guarded:
            self.sides.append(Side(Master(lambda: b"", standby=True)))
        self.lost_dials: list[Box] = []
        self.newest: View | None = None
        """The last one that any master has said."""
        self.boxes: dict[int, Box] = {}
        self.members: dict[int, Box] = {}
        self.connected = self.restarts = self.quiet = 0
        self.lost_with_master: set[str] = set()
        self.streams: dict[Any, deque[tuple[Box | None, Callable[..., object], tuple[Any, ...]]]] = {}
        self.busy: list[Any] = []
        self.broken: set[tuple[int, int, int]] = set()
        """Links (epoch, from, to) that carry nothing any more."""
        self.events = 0
        self.now = 0.0

    def post(self, stream: Any, box: Box | None, fn: Callable[..., object], *args: Any) -> None:
        queue = self.streams.get(stream)
        if queue is None:
            queue = self.streams[stream] = deque()
            self.busy.append(stream)
        queue.append((box, fn, args))

    def cut(self, stream: Any, keep: int = 0) -> None:
        """A connection broke: only the first of what was under way arrives."""
        queue = self.streams.get(stream)
        if queue is None:
            return
        while len(queue) > keep:
            queue.pop()
        if not queue:
            self.busy.remove(stream)
            del self.streams[stream]

    def connect(self, box: Box) -> int:
        self.connected += 1
        box.side.connections[-self.connected] = box
        box.side.lines[-self.connected] = -self.connected
        return -self.connected

    @property
    def master(self) -> Master:
        """The one that has gone furthest."""
        return max((side.policy for side in self.sides), key=lambda master: master.epoch)

    def to_master(self, side: Side, who: int, message: Any) -> None:
        self.now += 1e-4
        connections = side.connections
        for action in side.policy.handle(who, message, self.now):
            match action:
                case Say(to, said):
                    if isinstance(said, View) and not self.forgetful:
                        self.check_view(side, said)
                    if to in connections:
                        box = connections[to]
                        self.post(("master", box.number), box, box.hear, side.lines[to], said)
                    assert not isinstance(said, Expel) or not said.reason.startswith("said"), said
                case Close(to):
                    if to in connections:
                        box = connections.pop(to)
                        self.post(("master", box.number), box, box.lost_master, side.lines[to])
                case Know(connection, member):
                    box = connections[member] = self.members[member] = connections.pop(connection)
                    side.lines[member] = side.lines[connection]
                    box.who = member

    def restart_master(self) -> None:
        """Kill one, in the middle of what it says, and start another in its place."""
        self.restarts += 1
        side = self.random.choice(self.sides)
        standby = side is not self.sides[0]
        remembered = None if self.forgetful or standby else side.policy.remembered
        side.policy = Master(lambda: b"", remembered=remembered, standby=standby, now=self.now)
        side.connections.clear()
        for box in self.boxes.values():
            if not box.dead and box.side is side and box.line:
                self.disconnect(box)

    def disconnect(self, box: Box) -> None:
        self.cut((box.number, "master"))
        stream = ("master", box.number)
        self.cut(stream, self.random.randint(0, len(self.streams.get(stream, ()))))
        self.post(stream, box, box.lost_master, box.line)

    def part(self) -> None:
        """Some processes can't reach one of the masters any more."""
        side = self.random.choice(self.sides)
        for box in self.boxes.values():
            if not box.dead and box.number not in side.cut_off and self.random.random() < 0.5:
                side.cut_off.add(box.number)
                if box.side is side and box.line:
                    self.disconnect(box)
                    self.post((box.number, "cut"), None, self.notice, side, box.who, box)

    def notice(self, side: Side, who: int, box: Box) -> None:
        if side.connections.get(who) is box:
            del side.connections[who]
            self.to_master(side, who, Gone("connection lost"))

    def heal(self) -> None:
        for side in self.sides:
            side.cut_off.clear()

    def redial(self) -> bool:
        """All else is quiet: those who found no master look again, and masters see that time has passed."""
        dialling, self.lost_dials = [box for box in self.lost_dials if not box.dead], []
        for box in dialling:
            box.dial_master()
        waiting = [side for side in self.sides if side.policy.recovery]
        waiting = [side for side in waiting if side.policy.recovery.returned or side.policy.recovery.newcomers]
        waiting += [side for side in self.sides if any(self.too_early(side.policy))]
        self.quiet += 1
        if not (dialling or waiting) or self.quiet > 100:
            return False
        self.now += 3.0
        for side in self.sides:
            self.to_master(side, 0, Tick())
        return True

    def too_early(self, master: Master) -> Iterator[bool]:
        """Who has to wait, as one like it was out of reach?"""
        return (master._patience.waits(member.origin, self.now) for member in master.roster.members.values())

    def give_up(self) -> bool:
        """Nobody comes any more: who looks for a master ends. True: somebody did."""
        looking = [b for b in self.boxes.values() if not b.dead and (b.peer.away or b.side.policy.recovery)]
        for box in looking:
            box.feed(MasterGone("no master"))
        return bool(looking)

    def check_view(self, side: Side, view: View) -> None:
        """Every successor link of it has been up. Where there are two masters, it follows on the one before: most of
        its members are with this one, be it as newcomers, who were not told of it."""
        self.check_links(view)
        self.lost_with_master.update(map(str, view.lost))
        if self.guarded and view != self.newest:
            before, self.newest = self.newest, view
            assert before is None or view.epoch > before.epoch, f"two groups: {before}, {view}"
            alone = before is None or (view.opened and not set(before.ring) & set(view.ring))
            here = {i for i in before.ring if self.members[i] in side.connections.values()} if before else set()
            assert alone or majority({*view.ring, *here}, before.ring), f"two groups: {before}, {view}"

    def check_links(self, view: View) -> None:
        """When a view is said, every successor link of it has been up."""
        for i, member in enumerate(view.ring):
            successor = view.ring[(i + 1) % len(view.ring)]
            assert len(view.ring) == 1 or (view.epoch, successor) in self.members[member].links, f"{view}: no link"

    def join(self, steps: int) -> None:
        number = len(self.boxes) + 1
        self.boxes[number] = Box(self, number, steps)

    def disturb(self, what: str, steps: int) -> None:
        alive = [b for b in self.boxes.values() if not b.dead]
        if what == "join":
            self.join(steps)
        elif what == "part":
            self.part()
        elif what == "heal":
            self.heal()
        elif what == "restart master":
            self.restart_master()
        elif what == "thaw":
            for box in alive:
                box.frozen = False
        elif what == "drop stopped":
            for box in alive:
                if box.frozen:
                    for side in self.sides:
                        self.to_master(side, 0, Beat(box.id, b"", "stopped", b""))
            for wait_s in (5.0, 0.5):  # the first one is forgiven, since the master seems away
                self.now += wait_s
                for side in self.sides:
                    self.to_master(side, 0, Tick())
        elif len(alive) > 1:
            box = self.random.choice(alive)
            if what == "freeze":
                box.frozen = True
            elif what == "break link":
                box.break_link()
            else:
                box.end(what)

    def next_event(self) -> bool:
        """Move one random stream on; False: all are empty or belong to frozen processes."""
        for attempt in range(len(self.busy)):
            i = self.random.randrange(len(self.busy)) if attempt < 20 else attempt % len(self.busy)
            stream = self.busy[i]
            queue = self.streams[stream]
            box = queue[0][0]
            if box is not None and box.frozen and not box.dead:
                continue
            _, fn, args = queue.popleft()
            if not queue:
                self.busy[i] = self.busy[-1]
                self.busy.pop()
                del self.streams[stream]
            self.events += 1
            fn(*args)
            return True
        return False

    def run(self) -> None:
        steps = self.random.randint(3, 15)
        for _ in range(max(self.min_world, self.random.randint(1, 6 if self.divided else 4))):
            self.join(steps)
        kinds = ["join", "join", "died", "died", "left", "freeze", "freeze", "break link", "drop stopped"]
        kinds += ["restart master"] * self.random.choice([0, 0, 2, 6])
        plan = sorted(
            (self.random.randint(0, 600), self.random.choice(kinds)) for _ in range(self.random.randint(0, 9))
        )
        if self.calm:
            plan.clear()
        if self.guarded:
            plan += [(self.random.randint(0, 600), self.random.choice(["part", "heal"])) for _ in range(4)]
            plan = sorted([*plan, (10**9, "heal")])
        if self.peaceful:
            plan = [(at, "join") for at, _ in plan]
        plan += [(10**9, "drop stopped"), (10**9, "thaw")]
        while True:
            if plan and self.events >= plan[0][0]:
                self.disturb(plan.pop(0)[1], steps)
            elif not self.next_event():
                if self.redial():
                    continue
                if not plan and self.guarded and self.give_up():
                    continue
                if not plan:
                    break
                self.disturb(plan.pop(0)[1], steps)
            assert self.events < MOST_EVENTS, "livelock"
        self.check()

    def check(self) -> None:
        master = self.master
        stuck = [(b.id, b.awaits and b.awaits.kind, b.epoch) for b in self.boxes.values() if not b.dead]
        if not (self.min_world > 1 and len(stuck) < self.min_world):  # too few to form a ring, and rightly so
            assert not stuck, (
                f"deadlock {stuck}; master: epoch {master.epoch}, ring {master.ring}, forming {master.forming}, "
                f"openers {master.openers}, ballots {master.votes.ballots}"
            )
            assert not master.roster.members
        surprised = [b.crash for b in self.boxes.values() if isinstance(b.crash, Mismatch)]
        assert (self.unruly and not self.calm) or not surprised, surprised
        assert not master.votes.ballots
        assert not master.openers
        self.check_outcomes()

    def check_outcomes(self) -> None:
        """Whoever took part saw the same, in the same order, as far as it lived."""
        seen: dict[tuple[int, Any], list[list[Any]]] = {}
        after: dict[int, set[int]] = {}
        for box in self.boxes.values():
            mine: dict[tuple[int, Any], list[Any]] = {}
            # the old master may have told its last view and verdicts to this one alone, before both were gone
            alone = f"peer-{box.id} (didn't come back to the new master)" in self.lost_with_master
            for t in box.trace:
                own = "without this peer" in t[3] or "the group was" in t[3] or t[3] == "no master"
                if t[1] != "join" and not own:
                    if alone and t[4] == box.epoch:
                        continue
                    after.setdefault(t[0], set()).update({t[4]} - {t[0]})
                    epoch, where, result = t[7]
                    if t[1] in ("send", "recv"):
                        continue  # decided by nobody: over when its data is here
                    if self.divided:  # who met a loss in its subgroup doesn't call what would have come next
                        mine.setdefault((epoch, (*where, t[2])), []).append(result)
                    else:
                        mine.setdefault((epoch, where), []).append(t)
            for where, trace in mine.items():
                seen.setdefault(where, []).append(trace)
        if self.unruly or self.forgetful:
            return  # an update_topology outlives epochs, while the others fail in each
        for (epoch, where), traces in seen.items():
            longest = max(traces, key=len)
            for trace in traces:
                assert trace == longest[: len(trace)], f"epoch {epoch}, {where}: outcomes differ\n{trace}\n{longest}"
        assert all(len(epochs) <= 1 for epochs in after.values()), f"epochs differ: {after}"


def replay(seed: int) -> World:
    """Run one seed; the error says how to replay it."""
    world = World(seed)
    try:
        world.run()
    except Exception as error:
        raise AssertionError(f"seed {seed}: {error}\nreplay: python -m tests.group.fuzz {seed}") from error
    return world


def main() -> None:
    first = int(sys.argv[1])
    last = int(sys.argv[2]) if len(sys.argv) > 2 else first + 1
    began, events, epochs, bad = time.perf_counter(), 0, 0, 0
    for seed in range(first, last):
        try:
            world = replay(seed)
        except AssertionError as error:
            bad += 1
            print(str(error)[:1500])
            if last - first == 1:
                raise
            if bad > 4:
                break
            continue
        events += world.events
        epochs += world.master.epoch
    took = time.perf_counter() - began
    print(f"{seed - first + 1} schedules, {bad} bad, {epochs} epochs, {events} events, {events / took:.0f} events/s")


if __name__ == "__main__":
    main()
