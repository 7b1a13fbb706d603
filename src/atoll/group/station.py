"""Policy: where the peer policy meets bytes: carries its actions out on whatever moves them, a wire thread or virtual
links.

Owns the executions under way and which epoch they belong to. The world it is given only tells, dials, sends and wakes.
A frame is known by the number of its data phase and a word that names its piece in it.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import msgspec

from atoll.errors import AtollError, ProtocolError
from atoll.group.api import (
    EAGER_BYTES,
    EAGER_BYTES_SENT,
    LARGEST_FRAME,
    MOST_VOTES,
    DataDone,
    Finish,
    Measure,
    PeerEvent,
    Relink,
    RunKey,
    Series,
    Start,
    Tell,
    Ticket,
    unvoted_parts,
)
from atoll.group.collectives.execution import SHARD_BYTES, Data, Execution, Key, copy
from atoll.group.collectives.memory import Memory
from atoll.group.collectives.rounds import execution_for, value_of
from atoll.group.messages import LARGEST_TEXT, ToMaster
from atoll.group.peer import Peer
from atoll.runtime.schedule import Send

_LARGEST_EARLY: Final = 2 * EAGER_BYTES  # a codec may need more than the elements
_MOST_EARLY_BYTES: Final = 2 * MOST_VOTES * EAGER_BYTES_SENT
_MOST_EARLY_RUNS: Final = 2 * MOST_VOTES  # per member: each may be ahead of us with all it has under way
_MOST_EARLY_FRAMES: Final = 4096
_FAULTS: Final = (ValueError, MemoryError, AtollError)
"""What is wrong with one data phase, and no reason to end the others."""

Take = Callable[[], "memoryview | None"]
"""Makes the bytes of a frame when they can leave. None: nobody wants them any more."""


class Carrier(Protocol):
    """What moves the bytes."""

    def tell(self, message: ToMaster, patient: bool = False) -> None:
        """To the master. `patient`: may wait a little for the next one."""

    def relink(self, to: Relink) -> None:
        """Close links of older epochs, dial the successor; a LinkUp or LinkDown follows."""

    def measure(self, to: int) -> None:
        """Find out how fast data gets to the member `to`; a Measured follows."""

    def send(self, to: int, seq: int, word: int, take: Take) -> None:
        """To the member `to`, over a link of this epoch, which is made if there is none."""

    def resume(self) -> None:
        """Frames that were held may have a place now."""

    def wake(self, ticket: Ticket) -> None:
        """The ticket has its outcome."""


@dataclass
class Run:
    """A data phase under way."""

    execution: Execution
    start: Start
    lent: list[memoryview] = field(default_factory=list)
    """What others may still read where it is."""
    early: list[tuple[int, int, memoryview]] = field(default_factory=list)
    """Frames (source, word, bytes) whose turn has not come, of a schedule in which such can't be held on their link."""
    early_bytes: int = 0
    value: Any = None
    """What the program gets, made while the verdict is on its way."""
    succeeded: bool = False
    """It is over, but the other of two may still wait for our last word."""


def waits_apart(run: Run) -> bool:
    """Does each step wait for another link? Then frames of several operations, held on their links, could wait for each
    other in a circle. A ring has one link to wait for, and in direct exchanges all wait for their next one first."""
    return run.start.ticket.algorithm == "halving"


class Station:
    """One peer policy and its data phases."""

    def __init__(self, peer: Peer, carrier: Carrier, shard_bytes: int = SHARD_BYTES) -> None:
        self.peer, self.carrier, self._shard_bytes = peer, carrier, shard_bytes
        self.epoch = 0
        self.runs: dict[RunKey, Run] = {}
        self.progress = 0
        """Data phases begun and frames landed so far; while operations run and this stands still, nothing moves."""
        self.memory = Memory()
        self._newest_seq = 0
        self._started: Counter[Series] = Counter()
        """How many data phases of this epoch have started that waited for no vote."""
        self._early: dict[RunKey, list[tuple[int, int, memoryview]]] = {}
        """Frames (source, word, bytes) of such as have not started here."""
        self._early_bytes = 0
        self._most_early_runs = _MOST_EARLY_RUNS
        self._resuming = self._again = False

    def feed(self, event: PeerEvent) -> None:
        """Let the peer decide, then do it."""
        for action in self.peer.handle(event):
            match action:
                case Tell(message, patient):
                    self.carrier.tell(message, patient)
                case Relink():
                    self.epoch = action.epoch
                    self.runs.clear()
                    self._started.clear()
                    self._early.clear()
                    self._early_bytes = 0
                    self._most_early_runs = _MOST_EARLY_RUNS * max(1, len(action.ring))
                    self.carrier.relink(action)
                case Measure():
                    self.carrier.measure(action.id)
                case Start():
                    self._start(action)
                case Finish():
                    self._finish(action)

    def resume(self) -> None:
        """Let the carrier offer what it holds, until nothing more finds its place."""
        self._again = True
        if self._resuming:
            return
        self._resuming = True
        try:
            while self._again:
                self._again = False
                for run_key in [run_key for run_key in self._early if run_key in self.runs]:
                    self._offer_early(run_key)
                for run_key, run in [(run_key, run) for run_key, run in self.runs.items() if run.early]:
                    self._offer_in_run(run_key, run)
                self.carrier.resume()
        finally:
            self._resuming = False

    def awaited(self) -> set[int]:
        """Members whose data is waited for."""
        return {run.start.ring[rank] for run in self.runs.values() for rank in run.execution.sources()}

    def received(self) -> int:
        """Bytes of the data phases under way that are here."""
        return sum(run.execution.received for run in self.runs.values())

    # -- frames that come ------------------------------------------------------------------------------------------

    def place(self, source: int, seq: int, word: int, nbytes: int) -> memoryview | None:
        """Where a frame of member `source` goes. None: its turn has not come, hold it."""
        _check_size(nbytes)
        unvoted = unvoted_parts(seq, source)
        run_key = _run_key(seq, unvoted)
        run = self.runs.get(run_key)
        if run is None:
            if not unvoted and not self._begun(seq, unvoted):
                return None
            return memoryview(bytearray(nbytes))  # early, or of an operation that ended in error
        key = _frame_key(run, source, word)
        try:
            if run.execution.awaits(key):
                return run.execution.place(key, nbytes)
            return memoryview(bytearray(nbytes)) if waits_apart(run) else None
        except ProtocolError as error:
            if not unvoted:  # all agreed before it began, so this is no mistake
                raise
            self._fail(run_key, error)
            return memoryview(bytearray(nbytes))

    def landed(self, source: int, seq: int, word: int, data: memoryview) -> None:
        """A frame of member `source` is where `place` said."""
        self.progress += 1
        unvoted = unvoted_parts(seq, source)
        run_key = _run_key(seq, unvoted)
        run = self.runs.get(run_key)
        if run is not None:
            key = _frame_key(run, source, word)
            if run.execution.placed(key, data):
                self._go(run_key, run, lambda: run.execution.landed(key, data))
            elif waits_apart(run):
                self._keep_in_run(run, source, word, data)
                self.resume()
            else:  # it began to come before the run started
                self._keep_early(run_key, source, word, data)
                self.resume()
        elif unvoted and not self._begun(seq, unvoted):
            self._keep_early(run_key, source, word, data)

    def arrived(self, source: int, seq: int, word: int, data: Data) -> bool:
        """A frame is here as a whole, in memory that is ours only until this returns. False: hold it."""
        unvoted = unvoted_parts(seq, source)
        run_key = _run_key(seq, unvoted)
        run = self.runs.get(run_key)
        if run is not None and self._arrived(run_key, run, source, word, data):
            return True
        if run is None and not isinstance(data, memoryview):  # no need to bring it here before its turn
            _check_size(len(data))
            return self._begun(seq, unvoted)
        place = self.place(source, seq, word, len(data))
        if place is None:
            return False
        copy(data, place)
        self.landed(source, seq, word, place)
        return True

    def _begun(self, seq: int, unvoted: tuple[Series, int] | None) -> bool:
        """Has this data phase started here? It may be over."""
        return unvoted[1] <= self._started[unvoted[0]] if unvoted else seq <= self._newest_seq

    def _arrived(self, run_key: RunKey, run: Run, source: int, word: int, data: Data) -> bool:
        key = _frame_key(run, source, word)
        if not run.execution.fits(key, len(data)):
            return False
        self.progress += 1
        self._go(run_key, run, lambda: run.execution.landed(key, data))
        return True

    def _keep_in_run(self, run: Run, source: int, word: int, data: memoryview) -> None:
        """No more than a whole operation brings."""
        run.early.append((source, word, data))
        run.early_bytes += len(data)
        most = 4 * run.start.ticket.tensor.nbytes + LARGEST_FRAME
        if run.early_bytes > most or len(run.early) > _MOST_EARLY_FRAMES:
            raise ProtocolError(f"peer {source} sent more of an operation than there is")

    def _offer_in_run(self, run_key: RunKey, run: Run) -> None:
        frames, run.early, run.early_bytes = run.early, [], 0
        for frame in frames:
            if self.runs.get(run_key) is not run:
                return
            source, word, data = frame
            if not self._arrived(run_key, run, source, word, data):
                run.early.append(frame)
                run.early_bytes += len(data)

    def _keep_early(self, run_key: RunKey, source: int, word: int, data: memoryview) -> None:
        """Held back in the link it could block one that is awaited first, so it waits here; there can't be many."""
        if len(data) > _LARGEST_EARLY or len(self._early.get(run_key, ())) >= _MOST_EARLY_FRAMES:
            raise ProtocolError(f"peer {source} sent more of a small operation than there is")
        self._early.setdefault(run_key, []).append((source, word, data))
        self._early_bytes += len(data)
        while self._early_bytes > _MOST_EARLY_BYTES or len(self._early) > self._most_early_runs:
            self._take_early(next(iter(self._early)))  # leftovers of operations that ended in a mismatch

    def _offer_early(self, run_key: RunKey) -> None:
        for source, word, data in self._take_early(run_key):
            run = self.runs.get(run_key)
            if run is None or source not in run.start.ring:
                continue
            if not self._arrived(run_key, run, source, word, data):
                self._keep_early(run_key, source, word, data)

    def _take_early(self, run_key: RunKey) -> list[tuple[int, int, memoryview]]:
        frames = self._early.pop(run_key, [])
        self._early_bytes -= sum(len(data) for _, _, data in frames)
        return frames

    # -- data phases ----------------------------------------------------------------------------------------------

    def _start(self, start: Start) -> None:
        seq, other = start.run
        unvoted = unvoted_parts(seq, other)
        if unvoted is None:
            self._newest_seq = max(self._newest_seq, seq)
        else:
            self._started[unvoted[0]] = unvoted[1]
        self.progress += 1
        try:
            run = self.runs[start.run] = Run(execution_for(start, self.memory, self._shard_bytes), start)
        except _FAULTS as error:
            self._fail(start.run, error)
            return
        self._go(start.run, run, run.execution.begin)
        self.resume()

    def _go(self, run_key: RunKey, run: Run, move: Callable[[], list[Send]]) -> None:
        try:
            leaving = move()
        except _FAULTS as error:
            self._fail(run_key, error)
            return
        for step in leaving:
            self._send(run_key, run, step)
        if run.execution.done:
            self.feed(DataDone(run_key, run.execution.fault))
            if run_key in self.runs and not run.execution.fault:
                run.value = self._value(run)
        else:
            self.resume()

    def _send(self, run_key: RunKey, run: Run, step: Send) -> None:
        def take() -> memoryview | None:
            if self.runs.get(run_key) is not run and not run.succeeded:
                return None
            try:
                data = run.execution.outgoing(step.piece, step.reduce)
                run.lent.append(data)
                return data
            except _FAULTS as error:
                self._fail(run_key, error)
                return None

        self.carrier.send(run.start.ring[step.to], run_key[0], step.piece << 1 | step.reduce, take)

    def _fail(self, run_key: RunKey, error: Exception) -> None:
        """Give the data phase up; what still comes for it is read and forgotten."""
        self.runs.pop(run_key, None)
        self.feed(DataDone(run_key, (str(error) or type(error).__name__)[:LARGEST_TEXT]))
        self.resume()

    def _value(self, run: Run) -> Any:
        return value_of(run.start.ticket, run.execution, run.start.rank, len(run.start.ring))

    def _finish(self, action: Finish) -> None:
        assert action.ticket.outcome is None, "a ticket was answered twice"
        run = self.runs.pop(action.run, None) if action.run else None
        outcome = action.outcome
        if run is not None and outcome.error is None:
            ran, run.succeeded = run.execution, True
            value = self._value(run) if run.value is None else run.value
            outcome = msgspec.structs.replace(outcome, value=value, sent=ran.sent, received=ran.received)
        action.ticket.outcome = outcome
        self.carrier.wake(action.ticket)
        if run is not None:
            self.resume()


def _check_size(nbytes: int) -> None:
    if nbytes > LARGEST_FRAME:
        raise ProtocolError(f"a data frame of {nbytes} bytes; at most {LARGEST_FRAME} are allowed")


def _run_key(seq: int, unvoted: tuple[Series, int] | None) -> RunKey:
    return seq, unvoted[0].other if unvoted else 0


def _frame_key(run: Run, source: int, word: int) -> Key:
    if source not in run.start.ring:
        raise ProtocolError(f"peer {source} takes no part in this operation")
    return run.start.ring.index(source), word >> 1, bool(word & 1)
