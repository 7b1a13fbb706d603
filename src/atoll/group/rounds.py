"""Policy: which schedule and buffers an operation gets. The same on all ranks, since it follows from what all agreed
on."""

from typing import Any, Final

import msgspec
import numpy as np

from atoll import codec
from atoll.group.api import Start, Ticket
from atoll.group.election import Plan
from atoll.group.execution import Array, Execution, cut
from atoll.group.schedules import (
    exchange_all_reduce,
    ring_all_gather,
    ring_all_reduce,
    ring_broadcast,
    ring_reduce_scatter,
)
from atoll.group.state import StateTensors

EXCHANGED: Final = ("sum", "avg", "prod")
"""Reductions that two machines compute to the same bits, whatever their vector units: not so the sign of max(-0, 0)."""
BLOCK: Final = 1 << 20
"""Bytes that travel as one frame: smaller ones cost a turn each, larger ones leave links idle."""
LARGEST_FRAME: Final = BLOCK + 64
"""A block and what a codec puts before it."""


def _blocks(nbytes: int) -> int:
    return max(1, -(-nbytes // BLOCK))


def _pieces(chunks: list[slice], blocks: int) -> list[slice]:
    return [piece for chunk in chunks for piece in cut(chunk.start, chunk.stop, blocks)]


def execution_for(start: Start) -> Execution:
    """The data phase that `start` asks for."""
    if start.ticket.kind == "sync":
        return _sync(start)
    t, rank, world = start.ticket, start.rank, len(start.ring)
    source: Array = t.tensor
    how: dict[str, Any] = {"world": world, "rank": rank, "op": t.op, "codec": codec.get(t.codec)}
    if t.kind == "broadcast":
        result = np.empty_like(source)
        pieces = cut(0, source.size, _blocks(source.nbytes))
        schedule = ring_broadcast(rank, world, t.root, len(pieces), world - 1)
        if rank == t.root:
            result[:] = source
        return Execution(schedule, source, result, pieces, **how)
    if t.kind == "all_gather":
        result = np.empty(source.size * world, source.dtype)
        result[rank * source.size : (rank + 1) * source.size] = source
        blocks = _blocks(source.nbytes)
        chunks = [slice(r * source.size, (r + 1) * source.size) for r in range(world)]
        return Execution(ring_all_gather(rank, world, blocks), result, result, _pieces(chunks, blocks), **how)
    if t.kind == "all_reduce" and world == 2 and t.eager and t.codec in (None, "none") and t.op in EXCHANGED:
        return Execution(exchange_all_reduce(rank), source, np.empty_like(source), [slice(0, source.size)], **how)
    chunks = cut(0, source.size, world)
    blocks = _blocks(source.nbytes // world)
    schedule = (ring_all_reduce if t.kind == "all_reduce" else ring_reduce_scatter)(rank, world, blocks)
    return Execution(schedule, source, np.empty_like(source), _pieces(chunks, blocks), **how)


def value_of(ticket: Ticket, run: Execution, rank: int, world: int) -> Array:
    """What the program gets of a data phase that is over."""
    if ticket.kind == "reduce_scatter":
        own: Array = run.result[cut(0, run.source.size, world)[rank]]
        return own
    return run.result


def _sync(start: Start) -> Execution:
    """The dirty tensors as one run of bytes, checked against the elected digests before anybody votes for them."""
    plan = msgspec.msgpack.decode(start.plan, type=Plan)
    state: StateTensors = start.ticket.tensor
    rank, world = start.rank, len(start.ring)
    place = (rank - plan.root) % world
    takes_part = place <= plan.hops
    nbytes = state.nbytes(plan.dirty) if takes_part else 0
    buffer = state.pack(plan.dirty) if place == 0 else np.empty(nbytes, np.uint8)
    pieces = cut(0, nbytes, _blocks(nbytes))
    schedule = ring_broadcast(rank, world, plan.root, len(pieces), plan.hops)

    def check(received: Array) -> str:
        return state.check(plan.dirty, plan.digests, received) if takes_part and place else ""

    return Execution(schedule, buffer, buffer, pieces, world=world, rank=rank, check=check)
