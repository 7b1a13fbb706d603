"""Program: the blocking `Group` a training script holds. The same class in both worlds; a `Port` is all it touches.

All a collective does to the program (result, error, new epoch, pending flag) happens inside `wait`. Until then the
tensor is neither written nor may be; so a collective that failed leaves its input as it was.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import msgspec
import numpy as np

from atoll import codec as codecs
from atoll.errors import Busy, DeadlineExceeded, InvalidTensor, ProtocolError
from atoll.group.api import MOST_OPERATIONS, Kind, Outcome, Port, Ticket
from atoll.group.ballots import SYNC
from atoll.group.election import Plan
from atoll.group.execution import REDUCE
from atoll.group.messages import LARGEST_PAYLOAD, View
from atoll.group.state import SharedState, StateTensors
from atoll.group.tensors import FLOATING, REDUCIBLE, Array, check_writable, describe, like, read, write


@dataclass(frozen=True, slots=True)
class Result:
    """What a collective came to."""

    world: int
    """Peers that took part."""
    bytes_sent: int
    bytes_received: int
    seconds: float
    """From launch to the end of `wait`."""
    value: Any = None
    """The tensor that came out; for `gather_bytes` the list of payloads."""


@dataclass(eq=False)
class Work:
    """A collective on its way."""

    group: "Group"
    ticket: Ticket
    _deliver: Callable[[Outcome], Any]
    _launched_s: float = field(default=0.0)
    _result: Result | None = field(default=None, init=False)

    def done(self) -> bool:
        """Would `wait` return at once?"""
        return self.ticket.outcome is not None

    def wait(self, timeout_s: float | None = None) -> Result:
        """Block until the group has decided, then take the effects: the result, or the error raised here.

        DeadlineExceeded: not within `timeout_s`; nothing has changed and the call may be repeated. Waiting once more
        gives the same again, without effects.
        """
        if self._result is not None:
            return self._result
        ticket, group = self.ticket, self.group
        if not group._port.wait(ticket, timeout_s):
            raise DeadlineExceeded(f"{ticket.kind} with tag {ticket.tag}: no verdict within {timeout_s} s")
        outcome = ticket.outcome
        assert outcome is not None
        if group._unawaited.get(ticket.tag) is self:
            del group._unawaited[ticket.tag]
            group._adopt(outcome)
        if outcome.error is not None:
            raise outcome.error
        value = self._deliver(outcome)
        seconds = group._port.now() - self._launched_s
        self._result = Result(group.world, outcome.sent, outcome.received, seconds, value)
        return self._result


class Group:
    """Many computers acting as one. Made by `atoll.join`; a context manager that leaves at its end.

    One thread uses it at a time. Errors: `PeerLost` (retry), `Mismatch`, `Expelled`, `MasterLost`, `Busy`; see
    `docs/guide/errors.md`.
    """

    def __init__(
        self,
        port: Port,
        *,
        min_world: int = 1,
        name: str = "",
        labels: Mapping[str, str] | None = None,
        timeout_s: float | None = 30.0,
    ) -> None:
        self._port = port
        self._view = View(0, (), opened=True)
        self._flag = False
        self._unawaited: dict[int, Work] = {}
        self._state: SharedState | None = None
        self._opening: Ticket | None = Ticket("join", 0, min_world=min_world, name=name, labels=labels or {})
        port.submit(self._opening)
        try:
            self._opened(timeout_s)
        except BaseException:
            port.close()
            raise

    # -- who is in ----------------------------------------------------------------------------------------------------

    @property
    def world(self) -> int:
        """Number of peers."""
        return len(self._view.ring)

    @property
    def rank(self) -> int:
        """Our place among them, 0 to world - 1."""
        return self._view.ring.index(self._port.id)

    @property
    def id(self) -> int:
        """Our number for as long as we are in; never given twice."""
        return self._port.id

    @property
    def epoch(self) -> int:
        """Number of the ring we live in; grows with every change, not always by one."""
        return self._view.epoch

    def peers_pending(self) -> bool:
        """Does somebody wait to be let in? Local and free; all members read the same value after the same outcome."""
        return self._flag

    def update_topology(self, timeout_s: float | None = None) -> None:
        """Let newcomers in. All members must call it. Absorbs losses. Busy: a `Work` has not been awaited."""
        self._idle("update_topology")
        if self._opening is None:  # else an earlier call gave up waiting: its vote still stands
            self._opening = Ticket("topology", self.epoch)
            self._port.submit(self._opening)
        self._opened(timeout_s)

    def _opened(self, timeout_s: float | None) -> None:
        ticket = self._opening
        assert ticket is not None
        if not self._port.wait(ticket, timeout_s):
            raise DeadlineExceeded(
                f"no ring within {timeout_s} s: peers are missing (min_world), or the others compute"
            )
        self._opening = None
        outcome = ticket.outcome
        assert outcome is not None
        self._adopt(outcome)
        if outcome.error is not None:
            raise outcome.error

    def _adopt(self, outcome: Outcome) -> None:
        self._flag = outcome.pending
        if outcome.view is not None and outcome.view.epoch > self._view.epoch:
            self._view = outcome.view
            self._flag = outcome.view.pending

    def _idle(self, what: str) -> None:
        if self._unawaited:
            tags = ", ".join(map(str, sorted(self._unawaited)))
            raise Busy(f"{what}: await the work with tag {tags} first")

    # -- collectives --------------------------------------------------------------------------------------------------

    def all_reduce(
        self, tensor: Any, op: str = "avg", *, tag: int = 0, codec: str | None = None, out: Any = None,
        timeout_s: float | None = None,
    ) -> Result:  # fmt: skip
        """Combine everybody's `tensor` by sum, avg, prod, max or min; all get the same bits, in place or in `out`."""
        return self.all_reduce_async(tensor, op, tag=tag, codec=codec, out=out).wait(timeout_s)

    def all_reduce_async(
        self, tensor: Any, op: str = "avg", *, tag: int = 0, codec: str | None = None, out: Any = None
    ) -> Work:
        """As `all_reduce`; the tensor must not be written until the work has been awaited."""
        target = tensor if out is None else out
        return self._launch("all_reduce", tensor, tag, op, codec, target, _into(target))

    def reduce_scatter(
        self, tensor: Any, op: str = "avg", *, tag: int = 0, codec: str | None = None, out: Any = None,
        timeout_s: float | None = None,
    ) -> Result:  # fmt: skip
        """As `all_reduce`, but rank r gets chunk r only: `numpy.array_split(tensor.ravel(), world)[r]`, as `.value`."""
        return self.reduce_scatter_async(tensor, op, tag=tag, codec=codec, out=out).wait(timeout_s)

    def reduce_scatter_async(
        self, tensor: Any, op: str = "avg", *, tag: int = 0, codec: str | None = None, out: Any = None
    ) -> Work:
        """As `reduce_scatter`."""
        return self._launch(
            "reduce_scatter", tensor, tag, op, codec, out, _into_or_new(tensor, out, lambda values: values.shape)
        )

    def all_gather(
        self, tensor: Any, *, tag: int = 0, codec: str | None = None, out: Any = None, timeout_s: float | None = None
    ) -> Result:
        """Everybody's `tensor` (equal shapes), stacked by rank: shape (world, *shape), as `.value`."""
        return self.all_gather_async(tensor, tag=tag, codec=codec, out=out).wait(timeout_s)

    def all_gather_async(self, tensor: Any, *, tag: int = 0, codec: str | None = None, out: Any = None) -> Work:
        """As `all_gather`."""
        put = _into_or_new(tensor, out, lambda values: (self.world, *tensor.shape))
        return self._launch("all_gather", tensor, tag, "", codec, out, put)

    def broadcast(
        self, tensor: Any, root: int = 0, *, tag: int = 0, codec: str | None = None, timeout_s: float | None = None
    ) -> Result:
        """Everybody's `tensor` becomes that of rank `root`."""
        return self.broadcast_async(tensor, root, tag=tag, codec=codec).wait(timeout_s)

    def broadcast_async(self, tensor: Any, root: int = 0, *, tag: int = 0, codec: str | None = None) -> Work:
        """As `broadcast`."""
        if not 0 <= root < self.world:
            raise ValueError(f"root must be a rank from 0 to {self.world - 1}, not {root}")
        return self._launch("broadcast", tensor, tag, "", codec, tensor, _into(tensor), root)

    def gather_bytes(self, payload: bytes, *, tag: int = 0, timeout_s: float | None = None) -> list[bytes]:
        """Everybody's payload (at most 4 KiB) by rank; one round trip to the master, no data phase."""
        value = self.gather_bytes_async(payload, tag=tag).wait(timeout_s).value
        return list(value)

    def gather_bytes_async(self, payload: bytes, *, tag: int = 0) -> Work:
        """As `gather_bytes`; the list is the result's `value`."""
        if len(payload) > LARGEST_PAYLOAD:
            raise ValueError(f"gather_bytes takes at most {LARGEST_PAYLOAD} bytes, not {len(payload)}: use all_gather")
        ticket = Ticket("gather_bytes", self.epoch, tag, "gather_bytes", bytes(payload))
        return self._submit(ticket, lambda outcome: list(outcome.payloads))

    def barrier(self, *, tag: int = 0, timeout_s: float | None = None) -> None:
        """Return when all members have called it."""
        self._submit(Ticket("gather_bytes", self.epoch, tag, "barrier"), lambda outcome: None).wait(timeout_s)

    def sync(self, state: SharedState, *, timeout_s: float | None = None) -> Result:
        """Make `state` the same bits on all members: the elected holder's, with its revision.

        Only tensors that differ travel; they are staged, checked by digest and committed whole. In steady state nothing
        moves. A peer whose tensors don't fit, or whose revision is ahead of the group's, is expelled.
        """
        self._idle("sync")
        self._state = state
        tensors = StateTensors(state.tensors, state.free)
        payload = msgspec.msgpack.encode(state.note(tensors))
        ticket = Ticket("sync", self.epoch, 0, SYNC, payload, tensors, revision=state.revision)

        def deliver(outcome: Outcome) -> None:
            state.adopt(msgspec.msgpack.decode(outcome.payloads[0], type=Plan), tensors, outcome.value)

        return self._submit(ticket, deliver).wait(timeout_s)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _launch(
        self, kind: Kind, tensor: Any, tag: int, op: str, codec: str | None, out: Any, put: Callable[[Array], Any],
        root: int = 0,
    ) -> Work:  # fmt: skip
        name = f"{kind} with tag {tag}:"
        flat = read(tensor, name)
        dtype = str(flat.dtype)
        if dtype not in REDUCIBLE:
            raise InvalidTensor(f"{describe(tensor, name)}: this type can't take part")
        if op and op not in REDUCE:
            raise ValueError(f"op must be one of {', '.join(REDUCE)}, not {op!r}")
        if out is not None:
            check_writable(out, dtype, self._size_of_result(kind, flat.size), name)
        codecs.get(codec)
        if codec and codec != "none":
            _codable(flat, tensor, name, codec)
        words = [
            kind,
            op,
            dtype,
            str(flat.size),
            f"codec {codec or 'none'}",
            f"root {root}" if kind == "broadcast" else "",
        ]
        what = " ".join(w for w in words if w)
        ticket = Ticket(kind, self.epoch, tag, what, tensor=flat, op=op, codec=codec, root=root)

        def deliver(outcome: Outcome) -> Any:
            if outcome.value is not None:
                return put(outcome.value)
            if self.world > 1:
                raise ProtocolError(f"{name} decided without data")
            return put(flat.copy())  # alone, no data moves: the result is what we gave

        return self._submit(ticket, deliver)

    def _size_of_result(self, kind: Kind, size: int) -> int:
        if kind == "all_gather":
            return size * self.world
        if kind == "reduce_scatter":
            return size // self.world + (self.rank < size % self.world)
        return size

    def _submit(self, ticket: Ticket, deliver: Callable[[Outcome], Any]) -> Work:
        if not 0 <= ticket.tag < 1 << 16:
            raise ValueError(f"a tag is a number from 0 to 65535, not {ticket.tag}")
        if ticket.tag in self._unawaited:
            raise Busy(f"tag {ticket.tag} is in use: await its work first")
        if self._opening is not None:
            raise Busy("an update_topology that timed out is still voted for: call it again first")
        if len(self._unawaited) >= MOST_OPERATIONS:
            raise Busy(f"{MOST_OPERATIONS} operations are under way: await one first")
        if self._state is not None and not ticket.revision:
            ticket.revision = self._state.revision
        work = Work(self, ticket, deliver, self._port.now())
        self._unawaited[ticket.tag] = work
        self._port.submit(ticket)
        return work

    def close(self) -> None:
        """Leave. To the others this is a loss with the reason `left`; finish with a `barrier`. May be called again."""
        self._port.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Group(id {self.id}, epoch {self.epoch}, ring {list(self._view.ring)})"


def wait_all(works: Iterable[Work], timeout_s: float | None = None) -> list[Result]:
    """Await all, whatever becomes of each, then raise the first error or return all results, in order."""
    results: list[Result] = []
    first: Exception | None = None
    for work in works:
        try:
            results.append(work.wait(timeout_s))
        except Exception as error:
            first = first or error
    if first is not None:
        raise first
    return results


def _into(target: Any) -> Callable[[Array], Any]:
    """Deliver into a tensor the caller has."""

    def put(values: Array) -> Any:
        write(target, values)
        return target

    return put


def _into_or_new(tensor: Any, out: Any, shape: Callable[[Array], tuple[int, ...]]) -> Callable[[Array], Any]:
    """Deliver into `out`, or into a new tensor like `tensor`."""
    if out is not None:
        return _into(out)
    return lambda values: like(tensor, values, shape(values))


def _codable(flat: Array, tensor: Any, name: str, codec: str) -> None:
    if str(flat.dtype) not in FLOATING:
        raise InvalidTensor(f"{describe(tensor, name)}: codec {codec} takes floating point only")
    if not np.isfinite(flat).all():
        raise InvalidTensor(f"{describe(tensor, name)} holds NaN or infinity; codec {codec} needs finite numbers")
