"""Policy: which schedule and buffers an operation gets. The same on all ranks, since it follows from what all agreed
on."""

from functools import partial
from typing import Any, Final

import msgspec
import numpy as np

from atoll import codec
from atoll.errors import Mismatch, ProtocolError
from atoll.group.api import Start, Ticket
from atoll.group.collectives import schedules
from atoll.group.collectives.execution import SHARD_BYTES, Array, Execution, combined, cut
from atoll.group.collectives.memory import Memory
from atoll.group.membership.election import Plan
from atoll.group.state import StateTensors
from atoll.runtime.schedule import Lane, Schedule

MANY: Final = 16
"""Blocks beyond which they are twice as large."""
MOST_BYTES: Final = 1 << 38
"""Of an all-to-all: what others say of theirs must not let us count blocks without end."""


def execution_for(start: Start, memory: Memory, shard_bytes: int = SHARD_BYTES) -> Execution:
    """The data phase that `start` asks for."""
    return _Rounds(start, memory, shard_bytes).execution()


def value_of(ticket: Ticket, run: Execution, rank: int, world: int) -> Array | None:
    """What the program gets of a data phase that is over."""
    if ticket.kind == "send":
        return None
    if ticket.kind == "all_reduce" and ticket.eager:
        size = ticket.tensor.size
        others = [run.result[at : at + size] for at in range(0, run.result.size, size)]
        rows = others if len(others) == world else [*others[:rank], ticket.tensor, *others[rank:]]
        if ticket.lost is not None:
            np.subtract(ticket.tensor, rows[rank], out=ticket.lost)
        out = run.memory.empty(size, run.result.dtype) if ticket.out is None else ticket.out
        return combined(rows, ticket.op, out)
    if ticket.kind == "all_to_all":
        taken: Array = run.result[ticket.tensor.size :]
        return taken
    if ticket.kind == "reduce_scatter":
        own: Array = run.result[cut(0, run.source.size, world)[rank]]
        return own
    return run.result


def value_of_votes(ticket: Ticket, payloads: tuple[bytes, ...], dtype: np.dtype[Any], nbytes: int, rank: int) -> Array:
    """The same for an operation so small that its `nbytes` travelled in the votes, before the notes."""
    if wrong := [r for r, payload in enumerate(payloads) if len(payload) != len(ticket.payload)]:
        raise Mismatch(f"rank {wrong[0]} voted with {len(payloads[wrong[0]])} bytes, not {len(ticket.payload)}")
    rows = [np.frombuffer(payload[:nbytes], dtype) for payload in payloads]
    match ticket.kind:
        case "all_gather":
            return np.concatenate(rows)
        case "broadcast":
            return rows[ticket.root]
        case "reduce_scatter":
            whole = combined(rows, ticket.op)
            own: Array = whole[cut(0, whole.size, len(rows))[rank]]
            return own
        case _:
            return combined(rows, ticket.op)


def lanes_of(nbytes: int, block: int) -> int:
    """In how many blocks of about `block` so much is cut."""
    return max(1, min(-(-nbytes // block), max(MANY, -(-nbytes // (2 * block)))))


def chunked(size: int, world: int, lanes: int) -> list[slice]:
    """The pieces of a tensor of `size` elements: `world` chunks, each in `lanes`."""
    return [piece for chunk in cut(0, size, world) for piece in cut(chunk.start, chunk.stop, lanes)]


def encoded_counts(counts: list[int]) -> bytes:
    """How many elements we give each rank, as a vote carries it."""
    return msgspec.msgpack.encode(counts)


def counts_of_votes(votes: tuple[bytes, ...], rank: int, itemsize: int) -> list[int]:
    """How many elements each rank gives to `rank`. Mismatch: as `counts_of`."""
    return [row[rank] for row in _counts(list(votes), len(votes), itemsize)]


def counts_of(plan: bytes, world: int, itemsize: int) -> list[list[int]]:
    """Row r: how many elements rank r gives to each. Mismatch: that can't be."""
    return _counts(msgspec.msgpack.decode(plan, type=list[bytes]), world, itemsize)


def _counts(votes: list[bytes], world: int, itemsize: int) -> list[list[int]]:
    try:
        rows = [msgspec.msgpack.decode(row, type=list[int]) for row in votes]
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise Mismatch(f"somebody's vote doesn't say how many there are: {error}") from None
    if len(rows) != world or any(len(row) != world or min(row) < 0 for row in rows):
        raise Mismatch("peers disagree on how many there are")
    if sum(map(sum, rows)) * itemsize > MOST_BYTES:
        raise Mismatch(f"together they are more than {MOST_BYTES} bytes")
    return rows


def plan_of(plan: bytes, world: int, tensors: int) -> Plan:
    """An elected plan for a state of so many tensors. ProtocolError: it is none."""
    try:
        found = msgspec.msgpack.decode(plan, type=Plan)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise ProtocolError(f"unreadable plan: {error}") from None
    numbers = all(0 <= i < tensors for i in found.dirty) and len(found.dirty) == len(found.digests)
    once = all(chain and len(set(chain)) == len(chain) for chain in (*found.chains, found.dirty or (0,)))
    ranks = all(0 <= rank < world for chain in found.chains for rank in chain)
    if not (numbers and once and ranks and bool(found.dirty) <= bool(found.chains)):
        raise ProtocolError("a plan for other tensors or peers than there are")
    return found


class _Rounds:
    """One operation's way to its execution, kind by kind."""

    def __init__(self, start: Start, memory: Memory, shard_bytes: int) -> None:
        self.start, self.memory, self.shard_bytes = start, memory, shard_bytes
        self.ticket = start.ticket
        self.rank, self.world = start.rank, len(start.ring)
        self.codec = codec.get(start.ticket.codec)
        self.down = self.codec if start.ticket.down is None else codec.get(start.ticket.down)
        self.once = self.codec is not None and not self.codec.hops
        """May each input be encoded just once?"""

    def execution(self) -> Execution:
        make: dict[str, Any] = {
            "all_reduce": self.all_reduce,
            "reduce_scatter": self.reduce_scatter,
            "all_gather": self.all_gather,
            "broadcast": self.broadcast,
            "all_to_all": self.all_to_all,
            "send": self.send,
            "recv": self.receive,
            "sync": self.sync,
        }
        made: Execution = make[self.ticket.kind]()
        return made

    def all_reduce(self) -> Execution:
        source: Array = self.ticket.tensor
        if self.ticket.eager:  # everybody gets all there is and combines it himself
            self.down = self.codec  # there is no way back
            if self.codec:
                result = self.memory.empty(source.size * self.world, source.dtype)
                return self.gathering(schedules.direct_all_gather, result)
            steps = schedules.direct_all_gather(self.rank, self.world)
            result = self.memory.empty(source.size * (self.world - 1), source.dtype)
            pieces = cut(0, result.size, self.world - 1)
            pieces.insert(self.rank, slice(0, source.size))  # ours stays where it is
            return self.over(steps, source, result, pieces)
        make = {
            "ring": schedules.ring_all_reduce,
            "direct": partial(schedules.direct_all_reduce, once=self.once),
            "halving": schedules.halving_all_reduce,
        }[self.ticket.algorithm]
        return self.reducing(make, self.room(source.size))

    def reduce_scatter(self) -> Execution:
        direct = self.ticket.algorithm != "ring"
        make = partial(schedules.direct_reduce_scatter, once=self.once) if direct else schedules.ring_reduce_scatter
        return self.reducing(make, self.memory.empty(self.ticket.tensor.size, self.ticket.tensor.dtype))

    def all_gather(self) -> Execution:
        direct = self.ticket.algorithm != "ring"
        make = schedules.direct_all_gather if direct else schedules.ring_all_gather
        return self.gathering(make, self.room(self.ticket.tensor.size * self.world))

    def broadcast(self) -> Execution:
        source: Array = self.ticket.tensor
        result = self.memory.empty(source.size, source.dtype)
        pieces = cut(0, source.size, 1 if self.ticket.eager else self.lanes(source.nbytes))
        if self.rank == self.ticket.root:
            result[:] = source
        if self.ticket.eager:
            steps = schedules.direct_broadcast(self.rank, self.world, self.ticket.root)
        else:
            chain = [(self.ticket.root + i) % self.world for i in range(self.world)]
            steps = schedules.broadcast(chain.index(self.rank), chain, range(len(pieces)))
        return self.over(steps, source, result, pieces)

    def all_to_all(self) -> Execution:
        source: Array = self.ticket.tensor
        counts = counts_of(self.start.plan, self.world, source.itemsize)
        given, taken = counts[self.rank], [row[self.rank] for row in counts]
        result = self.memory.empty(source.size + sum(taken), source.dtype)
        result[: source.size] = source
        give_at, take_at = np.cumsum([0, *given]), source.size + np.cumsum([0, *taken])
        pieces: list[slice] = []
        numbers: dict[tuple[int, int], range] = {}
        for a in range(self.world):
            for b in range(self.world):
                lanes = self.lanes(counts[a][b] * source.itemsize) if counts[a][b] and a != b else 0
                numbers[a, b] = range(len(pieces), len(pieces) + lanes)
                at = int(give_at[b]) if a == self.rank else int(take_at[a]) if b == self.rank else 0
                size = counts[a][b] if self.rank in (a, b) else 0
                pieces += cut(at, at + size, lanes) if lanes else []
        own = result[int(take_at[self.rank]) : int(take_at[self.rank + 1])]
        own[:] = source[int(give_at[self.rank]) : int(give_at[self.rank + 1])]
        steps = schedules.all_to_all(self.rank, self.world, lambda a, b: numbers[a, b])
        return self.over(steps, result, result, pieces)

    def send(self) -> Execution:
        source: Array = self.ticket.tensor
        pieces = cut(0, source.size, self.lanes(source.nbytes))
        steps = schedules.send(self.ticket.root, len(pieces))
        return self.over(steps, source, np.empty(0, source.dtype), [*pieces, *[slice(0, 0)] * len(pieces)])

    def receive(self) -> Execution:
        size = self.ticket.tensor.size
        pieces = cut(0, size, self.lanes(self.ticket.tensor.nbytes))
        steps = schedules.receive(self.ticket.root, len(pieces))
        result = self.memory.empty(size, self.ticket.tensor.dtype)
        return self.over(steps, result, result, [*pieces, *[slice(0, 0)] * len(pieces)])

    def sync(self) -> Execution:
        """The dirty tensors as one run of bytes, checked against the elected digests before anybody votes for them."""
        state: StateTensors = self.ticket.tensor
        plan = plan_of(self.start.plan, self.world, len(state.names))
        mine = [chain for chain in plan.chains if self.rank in chain]
        if not mine:
            nothing = np.empty(0, np.uint8)
            return Execution([], nothing, nothing, [], world=self.world)
        gives = any(chain[0] == self.rank for chain in mine)
        nbytes = state.nbytes(plan.dirty)
        buffer = state.pack(plan.dirty) if gives else self.memory.empty(nbytes, np.uint8)
        pieces: list[slice] = []
        steps: list[Lane] = []
        for chain, part in zip(plan.chains, cut(0, nbytes, len(plan.chains)), strict=True):
            few = cut(part.start, part.stop, self.lanes(part.stop - part.start))
            numbers = range(len(pieces), len(pieces) + len(few))
            pieces += few
            if self.rank in chain:
                steps += schedules.broadcast(chain.index(self.rank), chain, numbers)

        def check(received: Array) -> str:
            return "" if gives else state.check(plan.dirty, plan.digests, received)

        return Execution(steps, buffer, buffer, pieces, world=self.world, check=check, memory=self.memory)

    def lanes(self, nbytes: int) -> int:
        """In how many blocks so much is cut."""
        return lanes_of(nbytes, self.ticket.block)

    # -- parts ------------------------------------------------------------------------------------------------------

    def room(self, size: int) -> Array:
        """For the result: where the program wants it, if it may be written as it comes."""
        out: Array | None = self.ticket.out
        if out is not None:
            return out
        return self.memory.empty(size, self.ticket.tensor.dtype)

    def reducing(self, make: Any, result: Array) -> Execution:
        source: Array = self.ticket.tensor
        lanes = self.lanes(-(-source.nbytes // self.world))
        return self.over(make(self.rank, self.world, lanes), source, result, chunked(source.size, self.world, lanes))

    def gathering(self, make: Any, result: Array) -> Execution:
        source: Array = self.ticket.tensor
        result[self.rank * source.size : (self.rank + 1) * source.size] = source
        lanes = self.lanes(source.nbytes)
        pieces = chunked(source.size * self.world, self.world, lanes)
        return self.over(make(self.rank, self.world, lanes), result, result, pieces, op="")

    def over(
        self, steps: Schedule, source: Array, result: Array, pieces: list[slice], op: str | None = None
    ) -> Execution:
        op = self.ticket.op if op is None else op
        return Execution(
            steps, source, result, pieces, world=self.world, op=op or "sum", codec=self.codec, down=self.down,
            seed=self.ticket.seed, lost=None if self.ticket.eager else self.ticket.lost, memory=self.memory,
            shard_bytes=self.shard_bytes,
        )  # fmt: skip
