"""Policy: one peer's side. Turns the program's tickets, the master's messages and news of links into actions.

The program may be behind: it computes while epochs come and go. It learns of them one at a time, each as the outcome
of an operation that failed, so that all survivors see the same sequence of outcomes.
"""

from collections import Counter
from dataclasses import dataclass
from typing import Final

import msgspec

from atoll.errors import AtollError, Expelled, MasterLost, Mismatch, PeerLost, Refused, Unfit
from atoll.group.api import (
    DataDone,
    DataOverdue,
    Finish,
    LinkDown,
    LinkUp,
    MasterAway,
    MasterBack,
    MasterGone,
    Measure,
    Measured,
    Outcome,
    PeerAction,
    PeerEvent,
    Relink,
    RunKey,
    Series,
    Start,
    Tell,
    Ticket,
    unvoted_seq,
)
from atoll.group.membership.ballots import is_sync, revision_of
from atoll.group.messages import (
    Agreed,
    Broken,
    Commence,
    Complete,
    Crossed,
    Establish,
    Expel,
    Hello,
    Initiate,
    Kept,
    Linked,
    Over,
    Probe,
    Probed,
    Refuse,
    Retold,
    Return,
    Seat,
    Stalled,
    ToMaster,
    Topology,
    Verdict,
    View,
    Welcome,
)

MOST_KEPT: Final = 1024
"""Verdicts remembered for a new master, one per series; no member can lack more than it has operations under way."""


@dataclass
class Running:
    """An operation not yet decided."""

    ticket: Ticket
    nth: int = 0
    """Of its series in this epoch; 0: never told to anybody."""
    run: RunKey | None = None
    reported: bool = False


class Peer:
    """`handle` takes one event and returns actions, to be carried out in order. `seat`: where others dial us.
    `masters`: at how many addresses one may be looked for."""

    def __init__(self, seat: Seat, masters: int = 1) -> None:
        self.seat, self._masters = seat, masters
        self.id = 0
        self.secret = b""
        self.views: list[View] = []
        """The one the program lives in, then those it has not learnt of."""
        self.forming: Establish | None = None
        self.running: dict[Series, Running] = {}
        self.opening: Ticket | None = None
        """A `join` or `update_topology` under way."""
        self.over: AtollError | None = None
        """What ended it all."""
        self.away = False
        """Between two masters: what is launched fails with the next View."""
        self._silent = False
        """There is nobody to tell anything."""
        self.kept: dict[Series, Kept] = {}
        """The last verdict of each series, of this epoch and the one before. A new master may have to say it again to
        others, who can be one behind."""
        self.agreements: dict[str, Agreed] = {}
        self._measured: dict[int, Measured] = {}
        """Our links to other members: a new master needn't have them measured again."""
        self._hello: Hello | None = None
        self._attempt = self._last_id = self._seq = 0
        self._attempted: tuple[Seat, ...] = ()
        self._broken: LinkDown | None = None
        """A link of the present epoch that is gone."""
        self._launched: Counter[tuple[Series, tuple[int, ...]]] = Counter()
        """Operations of the present epoch, by series and members of the subgroup."""
        self._out: list[PeerAction] = []

    def handle(self, event: PeerEvent) -> list[PeerAction]:
        """One event in, actions out."""
        self._out = []
        match event:
            case Ticket():
                self._on_ticket(event)
            case Welcome():
                self.id, self.secret = event.id, event.secret
            case Establish():
                self._on_establish(event)
            case View():
                self._on_view(event)
            case Commence():
                self._on_commence(event)
            case Verdict():
                self._on_verdict(event)
            case Retold():
                self._on_retold(event.kept)
            case Crossed():
                self._on_crossed(event)
            case Expel():
                kind = Unfit if event.unfit else Expelled
                self._end(kind(f"the group went on without this peer: {event.reason}"))
            case Refuse():
                self._end(Refused(event.reason))
            case LinkUp():
                if self.forming and event.epoch == self.forming.epoch:
                    self._tell(Linked(event.epoch, event.round_trip_s, event.lane))
            case LinkDown():
                self._on_link_down(event)
            case DataOverdue():
                if not self.forming and self.views and event.epoch == self.views[-1].epoch:
                    self._tell(Stalled(event.epoch, event.why, event.awaited, event.received))
            case Probe():
                if self.forming and event.epoch == self.forming.epoch:
                    self._out.append(Measure(event.to))
            case Measured():
                if self.forming and event.epoch == self.forming.epoch:
                    self._measured[event.id] = event
                    self._tell(Probed(event.epoch, event.id, event.bytes_per_s, event.round_trip_s))
            case DataDone():
                self._on_data_done(event)
            case MasterAway():
                self.away = self._silent = True
            case MasterBack():
                self._on_back()
            case Over():
                self._end(MasterLost(event.reason))
            case MasterGone():
                self._end(Refused(event.why) if event.refused else MasterLost(event.why))
        return self._out

    # -- from the program ------------------------------------------------------------------------------------------

    def _on_ticket(self, ticket: Ticket) -> None:
        if self.over:
            self._finish(ticket, Outcome(error=self.over))
        elif ticket.kind == "join":
            self.opening = ticket
            seat, labels = self.seat, dict(ticket.labels)
            self._hello = Hello(
                seat.host, seat.port, ticket.name, labels, ticket.min_world, seat.machine, seat.door, self._masters
            )
            if not self._silent:
                self._out.append(Tell(self._hello))
        elif ticket.kind == "topology":
            self.opening = ticket
            if not self._silent:
                self._out.append(Tell(Topology()))
        else:
            self._on_operation(ticket)

    def _on_operation(self, ticket: Ticket) -> None:
        self.views = [v for v in self.views if v.epoch > ticket.epoch] or self.views[-1:]
        if self.views[0].epoch > ticket.epoch:
            self._finish(ticket, _failed(self.views[0]))  # the program learns of one successor at a time
            return
        ring = self._ring_of(ticket)
        series = self._series_of(ticket, ring)
        running = self.running[series] = Running(ticket)
        if self.forming or self.away:
            return  # it fails when the new View comes
        self._launched[series, ticket.members] += 1
        nth = running.nth = self._launched[series, ticket.members]
        eager = ticket.eager and len(ring) > 1
        seq = unvoted_seq(series, nth) if eager else 0
        if not ticket.between_two:
            t = ticket
            vote = Initiate(
                t.epoch, t.tag, t.what, t.payload, t.moves_data, seq, t.revision, t.scope, ring if t.scope else ()
            )
            self._tell(vote, patient=eager)
        if eager:
            self._start(running, (seq, series.other))

    # -- from the master -------------------------------------------------------------------------------------------

    def _on_establish(self, message: Establish) -> None:
        self.forming, self._broken, self.away = message, None, False
        self._attempt, self._attempted = message.epoch, message.ring
        self._last_id = max(self._last_id, *(seat.id for seat in message.ring))
        for running in self.running.values():
            running.run = None
        ring = message.ring
        if len(ring) == 1:
            self._out.append(Relink(message.epoch, ring, None, message.key))
            self._tell(Linked(message.epoch))
        else:
            place = [seat.id for seat in ring].index(self.id)
            self._out.append(Relink(message.epoch, ring, ring[(place + 1) % len(ring)], message.key))

    def _on_view(self, view: View) -> None:
        self.forming = None
        self._launched.clear()
        before = self.views[-1].epoch if self.views else view.epoch
        self.kept = {series: kept for series, kept in self.kept.items() if kept.epoch >= before}
        self._measured = {i: found for i, found in self._measured.items() if i in view.ring}
        if view.opened:  # the program is inside join or update_topology: it skips what it missed
            self.views.clear()
        self.views.append(view)
        for running in self._take_all():
            self._finish(running.ticket, _failed(view))
        if view.opened and self.opening is not None:
            ticket, self.opening = self.opening, None
            self._finish(ticket, Outcome(view=view))

    def _on_commence(self, message: Commence) -> None:
        self._seq = max(self._seq, message.seq)
        self._start(self.running[Series(message.scope, message.tag)], (message.seq, 0), message.plan)

    def _on_verdict(self, message: Verdict) -> None:
        series = Series(message.scope, message.tag)
        running = self.running.pop(series)
        self._keep(series, running, message)
        self._agree(running, message)
        error = Mismatch(message.error) if message.error else None
        pending = None if message.scope else message.pending  # of a subgroup: the others would not know
        self._finish(running.ticket, Outcome(pending, None, error, message.payloads), running.run)

    def _on_crossed(self, message: Crossed) -> None:
        outcome = Outcome(message.pending, error=Mismatch(message.error))
        for scope, tag, members in message.operations:
            series = Series(scope, tag)
            if series in self.running:
                running = self.running.pop(series)
                verdict = Verdict(series.tag, message.pending, error=message.error, scope=series.scope)
                self._keep(series, running, verdict)
                self._finish(running.ticket, outcome, running.run)
            else:
                self._launched[series, members] += 1  # so that the next one has the same number on all
        if self.opening is not None:
            ticket, self.opening = self.opening, None
            self._finish(ticket, outcome)

    # -- from one master to the next --------------------------------------------------------------------------------

    def _on_back(self) -> None:
        """Tell the new master all we know of the group; it answers as if it were the old one."""
        self._silent = False
        if not self.views:  # never let in: a newcomer to this one
            self.id, self.away, self.forming = 0, False, None
            if self._hello is not None:
                self._tell(self._hello)
            return
        assert self._hello is not None
        opening = self.opening is not None and self.opening.kind == "topology"
        known = Return(
            self.id, self.secret, self._hello, self.views[-1], self._attempt, self._attempted, self._last_id, self._seq,
            opening, tuple(self.agreements.values()), len(self.kept),
            tuple((m.id, m.bytes_per_s, m.round_trip_s) for m in self._measured.values()),
        )  # fmt: skip
        self._out.append(Tell(known))
        self._out += [Tell(kept) for kept in self.kept.values()]

    def _on_retold(self, message: Kept) -> None:
        """A verdict that others heard of the old master."""
        if self.asked(message):
            self._on_verdict(message.verdict)

    def asked(self, kept: Kept) -> bool:
        """Is it the verdict on an operation that is under way here?"""
        running = self.running.get(Series(kept.verdict.scope, kept.verdict.tag))
        if running is None:
            return False
        return (running.ticket.epoch, running.ticket.members, running.nth) == (kept.epoch, kept.members, kept.nth)

    def _keep(self, series: Series, running: Running, verdict: Verdict) -> None:
        self.kept.pop(series, None)  # so that the oldest stand first
        self.kept[series] = Kept(running.ticket.epoch, running.ticket.members, running.nth, verdict)
        while len(self.kept) > MOST_KEPT:
            del self.kept[next(iter(self.kept))]

    def _agree(self, running: Running, verdict: Verdict) -> None:
        ticket = running.ticket
        if is_sync(ticket.what) and not verdict.error and verdict.payloads:
            try:
                revision = revision_of(verdict.payloads[0])
            except (msgspec.MsgspecError, UnicodeDecodeError):
                return  # the program, which has to read it too, will say so
            ring = self._ring_of(ticket)
            self.agreements[ticket.what] = Agreed(ticket.what, ticket.epoch, ticket.scope, running.nth, ring, revision)

    # -- from the driver -------------------------------------------------------------------------------------------

    def _on_link_down(self, event: LinkDown) -> None:
        if self.forming:
            if event.epoch == self.forming.epoch:
                self._broken = event  # the view may be on its way already: then the next operation reports it
                self._tell_broken()
        elif self.views and event.epoch == self.views[-1].epoch:
            self._broken = event
            if any(running.run for running in self.running.values()):
                self._tell_broken()

    def _on_data_done(self, event: DataDone) -> None:
        found = [(series, running) for series, running in self.running.items() if running.run == event.run]
        for series, running in found:
            if series.way:
                del self.running[series]
                error = Mismatch(event.fault) if event.fault else None
                self._finish(running.ticket, Outcome(None, error=error), running.run)
            elif not running.reported:
                running.reported = True
                self._tell(Complete(event.run[0], event.fault))

    # -- inside ----------------------------------------------------------------------------------------------------

    def _tell(self, message: ToMaster, patient: bool = False) -> None:
        if not self.away:  # a new master has no use for what concerns epochs of the old one
            self._out.append(Tell(message, patient))

    def _tell_broken(self) -> None:
        assert self._broken
        broken = self._broken
        self._tell(Broken(broken.epoch, broken.source, broken.target, broken.why, broken.made))

    def _finish(self, ticket: Ticket, outcome: Outcome, run: RunKey | None = None) -> None:
        self._out.append(Finish(ticket, outcome, run))

    def _ring_of(self, ticket: Ticket) -> tuple[int, ...]:
        """Who takes part, in rank order."""
        return ticket.members or self.views[-1].ring

    def _series_of(self, ticket: Ticket, ring: tuple[int, ...]) -> Series:
        if not ticket.between_two:
            return Series(ticket.scope, ticket.tag)
        other = ring[ticket.root]
        upwards = (self.id < other) == (ticket.kind == "send")
        return Series(ticket.scope, ticket.tag, 1 if upwards else 2, other)

    def _take_all(self) -> list[Running]:
        taken = list(self.running.values())
        self.running.clear()
        return taken

    def _start(self, running: Running, run: RunKey, plan: bytes = b"") -> None:
        running.run = run
        if self._broken:
            self._tell_broken()
        else:
            ring = self._ring_of(running.ticket)
            self._out.append(Start(run, running.ticket, ring, ring.index(self.id), plan))

    def _end(self, error: AtollError) -> None:
        if self.over:
            return
        self.over = error
        for running in self._take_all():
            self._finish(running.ticket, Outcome(error=error))
        if self.opening is not None:
            ticket, self.opening = self.opening, None
            self._finish(ticket, Outcome(error=error))
        self._out.append(Relink(-1))


def _failed(view: View) -> Outcome:
    """What an operation of an older epoch comes to."""
    cause = f"lost {', '.join(map(str, view.lost))}" if view.lost else f"links made anew ({view.reason or 'loss'})"
    error = PeerLost(f"{cause}; now epoch {view.epoch}, world {len(view.ring)}: retry")
    return Outcome(view.pending, view, error)
