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
    Outcome,
    PeerAction,
    PeerEvent,
    Relink,
    Start,
    Tell,
    Ticket,
    eager_seq,
)
from atoll.group.messages import (
    Commence,
    Complete,
    Crossed,
    Establish,
    Expel,
    Hello,
    Initiate,
    Linked,
    Refuse,
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
    seq: int = 0
    reported: bool = False


class Peer:
    """`handle` takes one event and returns actions, to be carried out in order. `host`, `port`: where others dial
    us."""

    def __init__(self, host: str, port: int) -> None:
        self.host, self.port = host, port
        self.id = 0
        self.secret = b""
        self.views: list[View] = []
        """The one the program lives in, then those it has not learnt of."""
        self.forming: Establish | None = None
        self.running: dict[int, Running] = {}
        """By tag."""
        self.opening: Ticket | None = None
        """A `join` or `update_topology` under way."""
        self.over: AtollError | None = None
        """What ended it all."""
        self._broken: LinkDown | None = None
        """A link of the present epoch that is gone."""
        self._launched: Counter[int] = Counter()
        """Operations of the present epoch by tag."""
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
                    self._tell(Linked(event.epoch))
            case LinkDown():
                self._on_link_down(event)
            case DataDone():
                for running in self.running.values():
                    if running.seq == event.seq:
                        self._report(running, fault=event.fault)
            case MasterGone():
                self._end(Refused(event.why) if event.refused else MasterLost(event.why))
        return self._out

    # -- from the program ------------------------------------------------------------------------------------------

    def _on_ticket(self, ticket: Ticket) -> None:
        if self.over:
            self._finish(ticket, Outcome(error=self.over))
        elif ticket.kind == "join":
            self.opening = ticket
            self._tell(Hello(self.host, self.port, ticket.name, dict(ticket.labels), ticket.min_world))
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
        running = self.running[ticket.tag] = Running(ticket)
        if self.forming:
            return  # it fails when the new View comes
        self._launched[ticket.tag] += 1
        t, alone = ticket, len(self.views[0].ring) == 1
        if t.eager and not alone:
            running.seq = eager_seq(t.tag, self._launched[t.tag])
        self._tell(Initiate(t.epoch, t.tag, t.what, t.payload, t.moves_data, running.seq, t.revision))
        if running.seq:
            self._start(running)

    # -- from the master -------------------------------------------------------------------------------------------

    def _on_establish(self, message: Establish) -> None:
        self.forming, self._broken = message, None
        for running in self.running.values():
            running.seq = 0
        ids = [seat.id for seat in message.ring]
        if len(ids) == 1:
            self._out.append(Relink(message.epoch))
            self._tell(Linked(message.epoch))
        else:
            self._out.append(Relink(message.epoch, message.ring[(ids.index(self.id) + 1) % len(ids)]))

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
        running = self.running[message.tag]
        running.seq = message.seq
        self._start(running, message.plan)

    def _on_verdict(self, message: Verdict) -> None:
        running = self.running.pop(message.tag)
        error = Mismatch(message.error) if message.error else None
        self._finish(running.ticket, Outcome(message.pending, None, error, message.payloads), running.seq)

    def _on_crossed(self, message: Crossed) -> None:
        outcome = Outcome(message.pending, error=Mismatch(message.error))
        for tag in message.tags:
            if tag in self.running:
                self._finish(self.running.pop(tag).ticket, outcome)
            else:
                self._launched[tag] += 1  # so that the next one has the same number on all
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
            for running in self.running.values():
                self._report(running, why=f"link to peer {event.id}: {event.why}")

    # -- inside ----------------------------------------------------------------------------------------------------

    def _tell(self, message: ToMaster) -> None:
        self._out.append(Tell(message))

    def _finish(self, ticket: Ticket, outcome: Outcome, seq: int = 0) -> None:
        self._out.append(Finish(ticket, outcome, seq))

    def _take_all(self) -> list[Running]:
        taken = list(self.running.values())
        self.running.clear()
        return taken

    def _start(self, running: Running, plan: bytes = b"") -> None:
        if self._broken:
            self._report(running, why=f"link to peer {self._broken.id}: {self._broken.why}")
        else:
            ring = self.views[-1].ring
            self._out.append(Start(running.seq, running.ticket, ring, ring.index(self.id), plan))

    def _report(self, running: Running, why: str = "", fault: str = "") -> None:
        if running.seq and not running.reported:
            running.reported = True
            self._tell(Complete(running.seq, why, fault))

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
