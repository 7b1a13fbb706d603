"""Policy: where the peer policy meets bytes: carries its actions out on whatever moves them, a wire thread or
virtual links.

Owns the executions under way and which epoch they belong to. The world it is given only tells, dials, sends and wakes.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Final, Protocol

from atoll.errors import AtollError, ProtocolError
from atoll.group.api import (
    EAGER_BYTES,
    MOST_OPERATIONS,
    DataDone,
    Finish,
    Outcome,
    PeerEvent,
    Relink,
    Start,
    Tell,
    Ticket,
    eager_parts,
)
from atoll.group.execution import Execution
from atoll.group.messages import Seat, ToMaster
from atoll.group.peer import Peer
from atoll.group.rounds import LARGEST_FRAME, execution_for, value_of

_MOST_EARLY_FRAMES: Final = 64


class Carrier(Protocol):
    """What moves the bytes."""

    def tell(self, message: ToMaster) -> None:
        """To the master."""

    def relink(self, epoch: int, successor: Seat | None) -> None:
        """Close links of older epochs, dial the successor; a LinkUp or LinkDown follows."""

    def send(self, to: int, seq: int, data: memoryview) -> None:
        """To the member `to`, over the link of this epoch."""

    def resume(self, source: int) -> None:
        """A frame of the member `source` that was held may have a place now."""

    def wake(self, ticket: Ticket) -> None:
        """The ticket has its outcome."""


@dataclass
class Run:
    """A data phase under way."""

    execution: Execution
    start: Start


class Station:
    """One peer policy and its data phases."""

    def __init__(self, peer: Peer, carrier: Carrier) -> None:
        self.peer, self.carrier = peer, carrier
        self.epoch = 0
        self.runs: dict[int, Run] = {}
        self.frames = 0
        """Data frames landed so far; while operations run and this stands still, nothing moves."""
        self._newest_seq = 0
        self._eager: Counter[int] = Counter()
        """How many operations have started in this epoch, by tag."""
        self._early: dict[int, list[tuple[int, memoryview]]] = {}
        """Frames (source, bytes) of eager operations that have not started here, by number."""

    def feed(self, event: PeerEvent) -> None:
        """Let the peer decide, then do it."""
        for action in self.peer.handle(event):
            match action:
                case Tell(message):
                    self.carrier.tell(message)
                case Relink(epoch, successor):
                    self.epoch = epoch
                    self.runs.clear()
                    self._eager.clear()
                    self._early.clear()
                    self.carrier.relink(epoch, successor)
                case Start():
                    self._start(action)
                case Finish():
                    self._finish(action)

    def place(self, source: int, seq: int, nbytes: int) -> memoryview | None:
        """Where a frame of member `source` goes. None: its operation has not commenced here, hold it."""
        run = self.runs.get(seq)
        if run is not None:
            if source not in run.start.ring:
                raise ProtocolError(f"peer {source} is not in the ring")
            try:
                return run.execution.target(run.start.ring.index(source), nbytes)
            except ProtocolError as error:
                if not eager_parts(seq):  # all agreed before it began, so this is no mistake
                    raise
                self._fail(seq, error)
        if nbytes > LARGEST_FRAME:
            raise ProtocolError(f"a data frame of {nbytes} bytes; at most {LARGEST_FRAME} are allowed")
        if not eager_parts(seq) and seq > self._newest_seq:
            return None
        return memoryview(bytearray(nbytes))  # early, or of an operation that ended in error

    def landed(self, source: int, seq: int, data: memoryview) -> None:
        """A frame of member `source` is where `place` said."""
        self.frames += 1
        run = self.runs.get(seq)
        if run is not None:
            self._go(seq, run, run.execution.landed)
        elif (parts := eager_parts(seq)) and parts[1] > self._eager[parts[0]]:
            self._keep_early(source, seq, data)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _keep_early(self, source: int, seq: int, data: memoryview) -> None:
        """Held back in the link it could block one that is awaited first, so it waits here; there can't be many."""
        frames = self._early.setdefault(seq, [])
        if len(data) > EAGER_BYTES + 64 or len(frames) >= _MOST_EARLY_FRAMES:
            raise ProtocolError(f"peer {source} sent more of a small operation than there is")
        frames.append((source, data))
        if len(self._early) > MOST_OPERATIONS:  # leftovers of operations that ended in a mismatch
            del self._early[next(iter(self._early))]

    def _start(self, start: Start) -> None:
        parts = eager_parts(start.seq)
        if parts is None:
            self._newest_seq = start.seq
        else:
            self._eager[parts[0]] = parts[1]
        try:
            run = self.runs[start.seq] = Run(execution_for(start), start)
        except (ValueError, AtollError) as error:
            self._fail(start.seq, error)
            return
        self._go(start.seq, run, run.execution.advance)
        for source, data in self._early.pop(start.seq, ()):
            self._take_early(start.seq, source, data)
        for source in start.ring:
            self.carrier.resume(source)

    def _take_early(self, seq: int, source: int, data: memoryview) -> None:
        place = self.place(source, seq, len(data))
        assert place is not None
        place[:] = data
        self.landed(source, seq, place)

    def _go(self, seq: int, run: Run, move: Callable[[], list[tuple[int, memoryview]]]) -> None:
        try:
            leaving = move()
        except ValueError as error:
            self._fail(seq, error)
            return
        for rank, data in leaving:
            self.carrier.send(run.start.ring[rank], seq, data)
        if run.execution.done:
            self.feed(DataDone(seq))

    def _fail(self, seq: int, error: Exception) -> None:
        """Give the data phase up; what still comes for it is read and forgotten."""
        self.runs.pop(seq, None)
        self.feed(DataDone(seq, str(error)))

    def _finish(self, action: Finish) -> None:
        assert action.ticket.outcome is None, "a ticket was answered twice"
        run = self.runs.pop(action.seq, None)
        outcome: Outcome = action.outcome
        if run is not None and outcome.error is None:
            ran, start = run.execution, run.start
            value = value_of(action.ticket, ran, start.rank, len(start.ring))
            outcome = replace(outcome, value=value, sent=ran.sent, received=ran.received)
        action.ticket.outcome = outcome
        self.carrier.wake(action.ticket)
