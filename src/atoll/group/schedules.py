"""Schedule: who sends what to whom in a collective, for one rank.

Data is cut into `world` chunks, one per rank, each of `blocks` pieces (number = chunk * blocks + block), so that a
block goes on as soon as it has been reduced. Ring algorithms after Patarasuk and Yuan (2009).
"""

from collections.abc import Iterator

from atoll.runtime.schedule import Compute, Recv, Schedule, Send, Step

FINAL = "final"


def _reduce_half(rank: int, world: int, blocks: int, shift: int) -> Iterator[Step]:
    """Afterwards rank r holds the whole sum of chunk (r + 1 - shift) % world. Alone, there is nothing to do."""
    if world == 1:
        return
    after, before = (rank + 1) % world, (rank - 1) % world
    for b in range(blocks):
        yield Send(after, (rank - shift) % world * blocks + b)
    for s in range(world - 1):
        chunk = (rank - shift - s - 1) % world
        for b in range(blocks):
            piece = chunk * blocks + b
            yield Recv(before, piece, reduce=True)
            if s == world - 2:
                yield Compute(FINAL, piece)
            else:
                yield Send(after, piece)


def _gather_half(rank: int, world: int, blocks: int, first: int) -> Iterator[Step]:
    """Chunk `first` is ours; afterwards everybody has every chunk, byte for byte as its owner made it."""
    after, before = (rank + 1) % world, (rank - 1) % world
    for s in range(world - 1):
        chunk = (first - s - 1) % world
        for b in range(blocks):
            yield Recv(before, chunk * blocks + b)
            if s < world - 2:
                yield Send(after, chunk * blocks + b)


def ring_all_reduce(rank: int, world: int, blocks: int = 1) -> Schedule:
    """Reduce-scatter, then all-gather: each peer sends 2 (world - 1) / world of the data."""
    own = (rank + 1) % world
    for step in _reduce_half(rank, world, blocks, shift=0):
        yield step
        if isinstance(step, Compute):
            yield Send((rank + 1) % world, step.piece)
    yield from _gather_half(rank, world, blocks, own)


def exchange_all_reduce(rank: int) -> Schedule:
    """Two peers give each other all they have, in one piece: as many bytes as a ring of two, half the way."""
    yield Send(1 - rank, 0)
    yield Recv(1 - rank, 0, reduce=True)
    yield Compute(FINAL, 0)


def ring_reduce_scatter(rank: int, world: int, blocks: int = 1) -> Schedule:
    """Afterwards rank r holds the sum of chunk r."""
    return _reduce_half(rank, world, blocks, shift=1)


def ring_all_gather(rank: int, world: int, blocks: int = 1) -> Schedule:
    """Chunk r comes from rank r."""
    if world == 1:
        return
    for b in range(blocks):
        yield Compute(FINAL, rank * blocks + b)
        yield Send((rank + 1) % world, rank * blocks + b)
    yield from _gather_half(rank, world, blocks, rank)


def ring_broadcast(rank: int, world: int, root: int, pieces: int, hops: int) -> Schedule:
    """The root's pieces travel `hops` links along the ring, one behind the other; who is further away has no part."""
    place = (rank - root) % world
    if place > hops:
        return
    for piece in range(pieces):
        if place:
            yield Recv((rank - 1) % world, piece)
        else:
            yield Compute(FINAL, piece)
        if place < hops:
            yield Send((rank + 1) % world, piece)
