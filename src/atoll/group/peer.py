"""Policy: one peer's side. Turns the program's tickets, the master's messages and news of links into actions.

The program may be behind: it computes while epochs come and go. It learns of them one at a time, each as the outcome
of an operation that failed, so that all survivors see the same sequence of outcomes.
"""

from collections import Counter
from dataclasses import dataclass

from atoll.errors import AtollError, Expelled, MasterLost, Mismatch, PeerLost, Refused, Unfit
from atoll.group.api import (
    DataDone,
    Finish,
    LinkDown,
    LinkUp,
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
    Probe,
    Probed,
    Refuse,
    Seat,
    ToMaster,
    Topology,
    Verdict,
    View,
    Welcome,
)


@dataclass
class Running:
    """An operation not yet decided."""

    ticket: Ticket
    run: RunKey | None = None
    reported: bool = False


class Peer:
    """`handle` takes one event and returns actions, to be carried out in order. `seat`: where others dial us."""

    def __init__(self, seat: Seat) -> None:
        self.seat = seat
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
        self._broken: LinkDown | None = None
        """A link of the present epoch that is gone."""
        self._launched: Counter[Series] = Counter()
        """Operations of the present epoch."""
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
            case Crossed():
                self._on_crossed(event)
            case Expel():
                kind = Unfit if event.unfit else Expelled
                self._end(kind(f"the group went on without this peer: {event.reason}"))
            case Refuse():
                self._end(Refused(event.reason))
            case LinkUp():
                if self.forming and event.epoch == self.forming.epoch:
                    self._tell(Linked(event.epoch, (), event.round_trip_s, event.lane))
            case LinkDown():
                self._on_link_down(event)
            case Probe():
                if self.forming and event.epoch == self.forming.epoch:
                    self._out.append(Measure(event.to))
            case Measured():
                if self.forming and event.epoch == self.forming.epoch:
                    self._tell(Probed(event.epoch, event.id, event.bytes_per_s, event.round_trip_s))
            case DataDone():
                self._on_data_done(event)
            case MasterGone():
                self._end(Refused(event.why) if event.refused else MasterLost(event.why))
        return self._out

    # -- from the program ------------------------------------------------------------------------------------------

    def _on_ticket(self, ticket: Ticket) -> None:
        if self.over:
            self._finish(ticket, Outcome(error=self.over))
        elif ticket.kind == "join":
            self.opening = ticket
            seat = self.seat
            labels = dict(ticket.labels)
            self._tell(Hello(seat.host, seat.port, ticket.name, labels, ticket.min_world, seat.machine, seat.door))
        elif ticket.kind == "topology":
            self.opening = ticket
            self._tell(Topology())
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
        if self.forming:
            return  # it fails when the new View comes
        self._launched[series] += 1
        nth = self._launched[series]
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
        self.forming, self._broken = message, None
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
        if view.opened:  # the program is inside join or update_topology: it skips what it missed
            self.views.clear()
        self.views.append(view)
        for running in self._take_all():
            self._finish(running.ticket, _failed(view))
        if view.opened and self.opening is not None:
            ticket, self.opening = self.opening, None
            self._finish(ticket, Outcome(view=view))

    def _on_commence(self, message: Commence) -> None:
        self._start(self.running[Series(message.scope, message.tag)], (message.seq, 0), message.plan)

    def _on_verdict(self, message: Verdict) -> None:
        running = self.running.pop(Series(message.scope, message.tag))
        error = Mismatch(message.error) if message.error else None
        pending = None if message.scope else message.pending  # of a subgroup: the others would not know
        self._finish(running.ticket, Outcome(pending, None, error, message.payloads), running.run)

    def _on_crossed(self, message: Crossed) -> None:
        outcome = Outcome(message.pending, error=Mismatch(message.error))
        for operation in message.operations:
            series = Series(*operation)
            if series in self.running:
                running = self.running.pop(series)
                self._finish(running.ticket, outcome, running.run)
            else:
                self._launched[series] += 1  # so that the next one has the same number on all
        if self.opening is not None:
            ticket, self.opening = self.opening, None
            self._finish(ticket, outcome)

    # -- from the driver -------------------------------------------------------------------------------------------

    def _on_link_down(self, event: LinkDown) -> None:
        if self.forming:
            if event.epoch == self.forming.epoch:
                self._broken = event  # the view may be on its way already: then the next operation reports it
                self._tell(Linked(event.epoch, (event.id,)))
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
        self._out.append(Tell(message, patient))

    def _tell_broken(self) -> None:
        assert self._broken
        self._tell(Broken(self._broken.epoch, f"link to peer {self._broken.id}: {self._broken.why}"))

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
