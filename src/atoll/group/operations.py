"""Program: the collectives of a group, of all its members or of a subgroup: what they take, refuse and give back.

All a collective does to the program happens inside `wait`. Until then the tensor is neither written nor may be; so one
that failed leaves its input as it was. `out`, where it is another tensor, may be written as the result comes, and is
undefined after an error; so is `lost`.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec
import numpy as np

from atoll import codec as codecs
from atoll.errors import Busy, InvalidTensor, ProtocolError
from atoll.group.api import MOST_OPERATIONS, MOST_TAGS, MOST_VOTES, Algorithm, Kind, Outcome, Ticket
from atoll.group.collectives.choice import block_bytes, choose
from atoll.group.collectives.execution import REDUCE
from atoll.group.collectives.rounds import counts_of_votes, encoded_counts, plan_of, value_of_votes
from atoll.group.membership.ballots import SYNC
from atoll.group.messages import LARGEST_PAYLOAD
from atoll.group.state import SharedState, StateTensors
from atoll.group.tensors import (
    FLOATING,
    REDUCIBLE,
    Array,
    check_writable,
    describe,
    flat_view,
    like,
    name_of,
    read,
    room_in,
    write,
)
from atoll.group.work import Membership, Result, Work

Put = Callable[[Array], Any]
_VOTED: Final = ("all_reduce", "reduce_scatter", "all_gather", "broadcast")
LONGEST_NOTE: Final = 64


class Collectives:
    """What a `Group` can do. Each also as `..._async`, which returns a `Work`."""

    def __init__(self, membership: Membership, scope: int = 0, members: tuple[int, ...] = (), name: str = "") -> None:
        self._membership = membership
        self._scope, self._members, self._name = scope, members, name
        self._state: SharedState | None = None

    @property
    def _ring(self) -> tuple[int, ...]:
        """Ids in rank order."""
        ring = self._membership.view.ring
        return tuple(i for i in self._members if i in ring) if self._scope else ring

    @property
    def world(self) -> int:
        """Number of peers."""
        return len(self._ring)

    @property
    def rank(self) -> int:
        """Our place among them, 0 to world - 1."""
        return self._ring.index(self._membership.port.id)

    # -- everybody's data, combined --------------------------------------------------------------------------------

    def all_reduce(
        self, tensor: Any, op: str = "avg", *, tag: int = 0, codec: str | None = None, down: str | None = None,
        seed: int | None = None, note: bytes = b"", out: Any = None, lost: Any = None,
        algorithm: Algorithm | None = None, timeout_s: float | None = None,
    ) -> Result:  # fmt: skip
        """Combine everybody's `tensor` by sum, avg, prod, max or min; all get the same bits, in place or in `out`.

        `down`: another codec for the way back, "none" for none. `seed`: the codecs round at random, by this peer's own
        seed. `note`: up to 64 bytes, as many on all, that ride in the vote; all get them by rank, as `.notes`.
        `lost`: a tensor of the same type and size for what the codec takes from ours: what it is, less what all decode.
        `algorithm`: "direct", "halving" or "ring"; by default what takes the least time on links as they are.
        """
        return self.all_reduce_async(
            tensor, op, tag=tag, codec=codec, down=down, seed=seed, note=note, out=out, lost=lost, algorithm=algorithm
        ).wait(timeout_s)

    def all_reduce_async(
        self, tensor: Any, op: str = "avg", *, tag: int = 0, codec: str | None = None, down: str | None = None,
        seed: int | None = None, note: bytes = b"", out: Any = None, lost: Any = None,
        algorithm: Algorithm | None = None,
    ) -> Work:  # fmt: skip
        """As `all_reduce`; until the work has been awaited, the tensor must not be written, nor `lost` be read."""
        target = tensor if out is None else out
        return self._launch(
            "all_reduce", tensor, tag, op, codec, target, _into(target), down=down, seed=seed, note=note, lost=lost,
            algorithm=algorithm,
        )  # fmt: skip

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
        put = _into_or_new(tensor, out, lambda values: values.shape)
        return self._launch("reduce_scatter", tensor, tag, op, codec, out, put)

    # -- everybody's data, side by side ----------------------------------------------------------------------------

    def all_gather(
        self, tensor: Any, *, tag: int = 0, codec: str | None = None, out: Any = None, timeout_s: float | None = None
    ) -> Result:
        """Everybody's `tensor` (equal shapes), stacked by rank: shape (world, *shape), as `.value`."""
        return self.all_gather_async(tensor, tag=tag, codec=codec, out=out).wait(timeout_s)

    def all_gather_async(self, tensor: Any, *, tag: int = 0, codec: str | None = None, out: Any = None) -> Work:
        """As `all_gather`."""
        world = self.world  # of now: before it is awaited, some may be lost
        put = _into_or_new(tensor, out, lambda values: (world, *tensor.shape))
        return self._launch("all_gather", tensor, tag, "", codec, out, put)

    def broadcast(
        self, tensor: Any, root: int = 0, *, tag: int = 0, codec: str | None = None, timeout_s: float | None = None
    ) -> Result:
        """Everybody's `tensor` becomes that of rank `root`."""
        return self.broadcast_async(tensor, root, tag=tag, codec=codec).wait(timeout_s)

    def broadcast_async(self, tensor: Any, root: int = 0, *, tag: int = 0, codec: str | None = None) -> Work:
        """As `broadcast`."""
        self._check_rank(root, "root")
        return self._launch("broadcast", tensor, tag, "", codec, tensor, _into(tensor), root)

    def all_to_all(
        self, tensors: Sequence[Any], *, tag: int = 0, codec: str | None = None, timeout_s: float | None = None
    ) -> Result:
        """Rank r gets everybody's `tensors[r]`: `.value` is the list of what came, by rank.

        They may have any number of rows (length of the first dimension), but agree in type and the other dimensions.
        """
        return self.all_to_all_async(tensors, tag=tag, codec=codec).wait(timeout_s)

    def all_to_all_async(self, tensors: Sequence[Any], *, tag: int = 0, codec: str | None = None) -> Work:
        """As `all_to_all`."""
        name = f"all_to_all with tag {tag}:"
        if len(tensors) != self.world:
            raise ValueError(f"{name} one tensor for each of {self.world} ranks, not {len(tensors)}")
        flats = [self._readable(t, name, codec) for t in tensors]
        kinds = {(name_of(flat.dtype), tuple(t.shape[1:])) for flat, t in zip(flats, tensors, strict=True)}
        if len(kinds) > 1 or any(len(t.shape) < 1 for t in tensors):
            raise InvalidTensor(f"{name} tensors differ in type or row: {', '.join(describe(t) for t in tensors)}")
        ((dtype, row),) = kinds
        if 0 in row:
            raise InvalidTensor(f"{name} rows of {list(row)} hold nothing, so nobody could tell how many came")
        what = f"all_to_all {dtype} rows of {list(row)} codec {codec or 'none'}"
        counts = encoded_counts([flat.size for flat in flats])
        ticket = self._ticket("all_to_all", tag, what, counts, tensor=np.concatenate(flats), codec=codec)

        def deliver(outcome: Outcome) -> Any:
            if outcome.value is None:
                return [like(tensors[0], flats[0].copy(), tuple(tensors[0].shape))]
            sizes = counts_of_votes(outcome.payloads, ticket_rank, flats[0].itemsize)
            if sum(sizes) != outcome.value.size:
                raise ProtocolError(f"{name} decided on other sizes than it began with")
            parts = np.split(outcome.value, np.cumsum(sizes)[:-1])
            return [like(t, part.copy(), (-1, *row)) for t, part in zip(tensors, parts, strict=True)]

        ticket_rank = self.rank
        return self._submit(ticket, deliver)

    def gather_bytes(self, payload: bytes, *, tag: int = 0, timeout_s: float | None = None) -> list[bytes]:
        """Everybody's payload (at most 4 KiB) by rank; one round trip to the master, no data phase."""
        value = self.gather_bytes_async(payload, tag=tag).wait(timeout_s).value
        return list(value)

    def gather_bytes_async(self, payload: bytes, *, tag: int = 0) -> Work:
        """As `gather_bytes`; the list is the result's `value`."""
        if len(payload) > LARGEST_PAYLOAD:
            raise ValueError(f"gather_bytes takes at most {LARGEST_PAYLOAD} bytes, not {len(payload)}: use all_gather")
        ticket = self._ticket("gather_bytes", tag, "gather", bytes(payload))
        return self._submit(ticket, lambda outcome: list(outcome.payloads))

    def barrier(self, *, tag: int = 0, timeout_s: float | None = None) -> None:
        """Return when all members have called it."""
        self._submit(self._ticket("gather_bytes", tag, "barrier"), lambda outcome: None).wait(timeout_s)

    # -- between two ------------------------------------------------------------------------------------------------

    def send(
        self, tensor: Any, to: int, *, tag: int = 0, codec: str | None = None, timeout_s: float | None = None
    ) -> Result:
        """Give `tensor` to rank `to`; returns when it has all. No vote: over with the data, or with the epoch."""
        return self.send_async(tensor, to, tag=tag, codec=codec).wait(timeout_s)

    def send_async(self, tensor: Any, to: int, *, tag: int = 0, codec: str | None = None) -> Work:
        """As `send`."""
        self._check_other(to, "to")
        return self._launch("send", tensor, tag, "", codec, None, lambda values: None, to)

    def recv(
        self, tensor: Any, source: int, *, tag: int = 0, codec: str | None = None, timeout_s: float | None = None
    ) -> Result:
        """Fill `tensor` with what rank `source` sends with this tag; type, size and codec must be those it has there.

        Mismatch: another size came. The sender has then no error.
        """
        return self.recv_async(tensor, source, tag=tag, codec=codec).wait(timeout_s)

    def recv_async(self, tensor: Any, source: int, *, tag: int = 0, codec: str | None = None) -> Work:
        """As `recv`."""
        self._check_other(source, "source")
        return self._launch("recv", tensor, tag, "", codec, tensor, _into(tensor), source)

    # -- shared state -----------------------------------------------------------------------------------------------

    def sync(self, state: SharedState, *, timeout_s: float | None = None) -> Result:
        """Make `state` the same bits on all members: the elected holder's, with its revision.

        Only tensors that differ travel; they are staged, checked by digest and committed whole. In steady state nothing
        moves. A peer whose tensors don't fit, or whose revision is ahead of the group's, is expelled. InvalidTensor:
        one is read-only, and may have to be written.
        """
        self._idle("sync")
        self._state = state
        tensors = StateTensors(state.tensors, state.free)
        if state.strategy != "send":
            tensors.check_writable()
        payload = msgspec.msgpack.encode(state.note(tensors))
        ticket = self._ticket("sync", 0, f"{SYNC} {self._name}" if self._scope else SYNC, payload, tensor=tensors)

        world = self.world

        def deliver(outcome: Outcome) -> None:
            plan = plan_of(outcome.payloads[0], world, len(tensors.names))
            came = 0 if outcome.value is None else outcome.value.size
            if came not in (0, tensors.nbytes(plan.dirty)):  # who gives none and lacks none sees none
                raise ProtocolError("sync decided on other tensors than it began with")
            state.adopt(plan, tensors, outcome.value)

        return self._submit(ticket, deliver).wait(timeout_s)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _launch(
        self, kind: Kind, tensor: Any, tag: int, op: str, codec: str | None, out: Any, put: Put, root: int = 0,
        down: str | None = None, seed: int | None = None, note: bytes = b"", lost: Any = None,
        algorithm: Algorithm | None = None,
    ) -> Work:  # fmt: skip
        name = f"{kind} with tag {tag}:"
        flat = self._readable(tensor, name, codec if kind != "recv" else None)
        dtype = name_of(flat.dtype)
        if op and op not in REDUCE:
            raise ValueError(f"op must be one of {', '.join(REDUCE)}, not {op!r}")
        if out is not None:
            check_writable(out, dtype, self._size_of_result(kind, flat.size), name)
        if len(note) > LONGEST_NOTE:
            raise ValueError(f"a note has at most {LONGEST_NOTE} bytes, not {len(note)}")
        codecs.get(down)
        if down is not None and codecs.get(codec) is None:
            raise ValueError(f"down={down!r} is for what travels by a codec: name one")
        if lost is not None:
            if _hops(codec):
                raise ValueError(f"lost is for codecs that are applied only once (int4, e3m0), not {codec}")
            check_writable(lost, dtype, flat.size, f"{name} lost:")
            lost = flat_view(lost, f"{name} lost:")
            lost[:] = 0
        parts = [kind, op, dtype, str(flat.size), f"codec {codec or 'none'}", f"down {down}" if down else ""]
        parts.append(f"note of {len(note)}" if note else "")
        what = " ".join(part for part in parts if part) + (f" root {root}" if kind == "broadcast" else "")
        world, rank = self.world, self.rank
        if algorithm is not None:
            _check_algorithm(algorithm, codec)
            what += f" {algorithm}"
        elif kind in _VOTED:
            algorithm = choose(kind, flat.nbytes + len(note), world, self._membership.view.pace, _hops(codec))
        else:
            algorithm = "direct"
        if algorithm == "votes":
            ticket = self._ticket(kind, tag, what, flat.tobytes() + note, op=op, root=root)
        else:
            ticket = self._ticket(
                kind,
                tag,
                what,
                note,
                tensor=flat,
                out=room_in(out, flat),
                op=op,
                codec=codec,
                down=down,
                seed=seed,
                lost=lost,
                algorithm=algorithm,
                root=root,
                block=block_bytes(self._membership.view.pace, codec),
            )

        def deliver(outcome: Outcome) -> Any:
            if world == 1:
                return put(flat.copy())  # alone, no data moves: the result is what we gave
            if ticket.tensor is None:
                return put(value_of_votes(ticket, outcome.payloads, flat.dtype, flat.nbytes, rank))
            if outcome.value is None and kind != "send":
                raise ProtocolError(f"{name} decided without data")
            return out if outcome.value is ticket.out and ticket.out is not None else put(outcome.value)

        return self._submit(ticket, deliver, len(note))

    def _readable(self, tensor: Any, name: str, codec: str | None) -> Array:
        flat = read(tensor, name)
        if name_of(flat.dtype) not in REDUCIBLE:
            raise InvalidTensor(f"{describe(tensor, name)}: this type can't take part")
        if codecs.get(codec) is not None:
            if name_of(flat.dtype) not in FLOATING:
                raise InvalidTensor(f"{describe(tensor, name)}: codec {codec} takes floating point only")
            if not np.isfinite(flat).all():
                raise InvalidTensor(
                    f"{describe(tensor, name)} holds NaN or infinity; codec {codec} needs finite numbers"
                )
        return flat

    def _size_of_result(self, kind: Kind, size: int) -> int:
        if kind == "all_gather":
            return size * self.world
        if kind == "reduce_scatter":
            return size // self.world + (self.rank < size % self.world)
        return size

    def _check_rank(self, rank: int, name: str) -> None:
        if not 0 <= rank < self.world:
            raise ValueError(f"{name} must be a rank from 0 to {self.world - 1}, not {rank}")

    def _check_other(self, rank: int, name: str) -> None:
        self._check_rank(rank, name)
        if rank == self.rank:
            raise ValueError(f"{name}={rank} is this peer itself")

    def _idle(self, what: str) -> None:
        if unawaited := self._membership.unawaited:
            tags = ", ".join(str(tag) for _, _, tag in sorted(unawaited))
            raise Busy(f"{what}: await the work with tag {tags} first")

    def _ticket(self, kind: Kind, tag: int, what: str, payload: bytes = b"", **more: Any) -> Ticket:
        if not 0 <= tag < MOST_TAGS:
            raise ValueError(f"a tag is a number from 0 to {MOST_TAGS - 1}, not {tag}")
        members = self._ring if self._scope else ()
        revision = self._state.revision if self._state else 0
        return Ticket(
            kind, self._membership.view.epoch, tag, what, payload, scope=self._scope, members=members,
            revision=revision, **more,
        )  # fmt: skip

    def _submit(self, ticket: Ticket, deliver: Callable[[Outcome], Any], note: int = 0) -> Work:
        membership = self._membership
        key = (self._scope, f"{ticket.kind} {ticket.root}" if ticket.between_two else "", ticket.tag)
        if key in membership.unawaited:
            raise Busy(f"tag {ticket.tag} is in use: await its work first")
        if membership.opening is not None:
            raise Busy("an update_topology that timed out is still voted for: call it again first")
        if sum(other[0] == self._scope for other in membership.unawaited) >= MOST_OPERATIONS:
            raise Busy(f"{MOST_OPERATIONS} operations are under way: await one first")
        if len(membership.unawaited) >= MOST_VOTES:
            raise Busy(f"{MOST_VOTES} operations are under way in all subgroups together: await one first")
        work = Work(ticket, key, membership, self.world, deliver, membership.port.now(), note)
        membership.unawaited[key] = work
        membership.port.submit(ticket)
        return work


def _hops(codec: str | None) -> bool:
    encoder = codecs.get(codec)
    return encoder is None or encoder.hops


def _check_algorithm(algorithm: Algorithm, codec: str | None) -> None:
    if algorithm not in ("direct", "halving", "ring"):
        raise ValueError(f"algorithm must be direct, halving or ring, not {algorithm!r}")
    if algorithm != "direct" and not _hops(codec):
        raise ValueError(f"codec {codec} may be applied only once: algorithm must be direct, not {algorithm}")


def _into(target: Any) -> Put:
    """Deliver into a tensor the caller has."""

    def put(values: Array) -> Any:
        write(target, values)
        return target

    return put


def _into_or_new(tensor: Any, out: Any, shape: Callable[[Array], tuple[int, ...]]) -> Put:
    """Deliver into `out`, or into a new tensor like `tensor`."""
    if out is not None:
        return _into(out)
    return lambda values: like(tensor, values, shape(values))
