"""Schedule: who sends what to whom in a collective, for one rank.

Data is cut into `world` chunks, one per rank, each into `lanes` pieces (number = chunk * lanes + lane): each lane runs
the whole algorithm on its pieces, so that one piece goes on while the next is still on its way.
"""

from collections.abc import Callable, Iterator, Sequence

from atoll.runtime.schedule import Compute, Lane, Recv, Schedule, Send, Step

FINAL = "final"
OWN = "own"
Piece = Callable[[int], int]
"""The piece of a lane in a chunk."""


def _in_lanes(world: int, lanes: int, lane_of: Callable[[Piece], Lane]) -> Schedule:
    def piece_in(lane: int) -> Piece:
        return lambda chunk: chunk % world * lanes + lane

    return [lane_of(piece_in(lane)) for lane in range(lanes)] if world > 1 else []


# -- rings, after Patarasuk and Yuan (2009) ----------------------------------------------------------------------------


def ring_all_reduce(rank: int, world: int, lanes: int = 1) -> Schedule:
    """Reduce-scatter, then all-gather: each peer sends 2 (world - 1) / world of the data."""

    def lane(piece: Piece) -> Lane:
        yield from _ring_reduce(rank, world, piece, rank + 1)
        yield from _ring_gather(rank, world, piece, rank + 1)

    return _in_lanes(world, lanes, lane)


def ring_reduce_scatter(rank: int, world: int, lanes: int = 1) -> Schedule:
    """Afterwards rank r holds the sum of chunk r."""
    return _in_lanes(world, lanes, lambda piece: _ring_reduce(rank, world, piece, rank))


def ring_all_gather(rank: int, world: int, lanes: int = 1) -> Schedule:
    """Chunk r comes from rank r."""

    def lane(piece: Piece) -> Lane:
        yield Compute(FINAL, piece(rank))
        yield from _ring_gather(rank, world, piece, rank)

    return _in_lanes(world, lanes, lane)


def _ring_reduce(rank: int, world: int, piece: Piece, own: int) -> Iterator[Step]:
    """Afterwards we hold the whole sum of chunk `own`."""
    after, before = (rank + 1) % world, (rank - 1) % world
    for hop in range(1, world):
        yield Send(after, piece(own - hop), reduce=True)
        yield Recv(before, piece(own - hop - 1), reduce=True)
    yield Compute(FINAL, piece(own))


def _ring_gather(rank: int, world: int, piece: Piece, own: int) -> Iterator[Step]:
    """Chunk `own` is ours; afterwards all have every chunk, byte for byte as its owner made it."""
    after, before = (rank + 1) % world, (rank - 1) % world
    for hop in range(world - 1):
        yield Send(after, piece(own - hop))
        yield Recv(before, piece(own - hop - 1))


def broadcast(place: int, chain: Sequence[int], pieces: range) -> Schedule:
    """Pieces travel along a chain of ranks, one behind the other; `place`: ours in it, 0 for the root."""

    def lane(piece: int) -> Lane:
        if place:
            yield Recv(chain[place - 1], piece)
        else:
            yield Compute(FINAL, piece)
        if place + 1 < len(chain):
            yield Send(chain[place + 1], piece)

    return [lane(piece) for piece in pieces]


def direct_broadcast(rank: int, world: int, root: int) -> Schedule:
    """The root gives its only piece to each."""

    def give() -> Lane:
        yield Compute(FINAL, 0)
        for other in _others(root, world):
            yield Send(other, 0)

    def take() -> Lane:
        yield Recv(root, 0)

    return [give() if rank == root else take()]


# -- everybody with everybody: two rounds, however many there are ------------------------------------------------------


def direct_all_reduce(rank: int, world: int, lanes: int = 1, once: bool = False) -> Schedule:
    """Rank r combines chunk r of all and gives it to all. `once`: as all decode it, its own too, in the order of
    ranks."""
    return [*_direct_reduce(rank, world, lanes, once, then=_give), *_direct_take(rank, world, lanes)]


def direct_reduce_scatter(rank: int, world: int, lanes: int = 1, once: bool = False) -> Schedule:
    """Afterwards rank r holds the sum of chunk r."""
    return _direct_reduce(rank, world, lanes, once)


def direct_all_gather(rank: int, world: int, lanes: int = 1) -> Schedule:
    """Chunk r comes from rank r."""

    def lane(piece: Piece) -> Lane:
        yield Compute(FINAL, piece(rank))
        yield from _give(rank, world, piece)

    return [*_in_lanes(world, lanes, lane), *_direct_take(rank, world, lanes)]


def _others(rank: int, world: int) -> Iterator[int]:
    """Each begins with another one, so that nobody is asked by all at once."""
    return ((rank + i) % world for i in range(1, world))


def _nothing(rank: int, world: int, piece: Piece) -> Iterator[Step]:
    return iter(())


def _give(rank: int, world: int, piece: Piece) -> Iterator[Step]:
    for other in _others(rank, world):
        yield Send(other, piece(rank))


def _direct_reduce(
    rank: int, world: int, lanes: int, once: bool, then: Callable[[int, int, Piece], Iterator[Step]] = _nothing
) -> Schedule:
    def lane(piece: Piece) -> Lane:
        for other in _others(rank, world):
            yield Send(other, piece(other), reduce=True)
        for source in range(world) if once else _others(rank, world):
            yield Compute(OWN, piece(rank)) if source == rank else Recv(source, piece(rank), reduce=True)
        yield Compute(FINAL, piece(rank))
        yield from then(rank, world, piece)

    return _in_lanes(world, lanes, lane)


def _direct_take(rank: int, world: int, lanes: int) -> Schedule:
    """A lane for each piece of the others: they may come in any order."""

    def lane(source: int, number: int) -> Lane:
        yield Recv(source, source * lanes + number)

    return [lane(source, number) for number in range(lanes) for source in _others(rank, world)]


# -- recursive halving and doubling, after Rabenseifner (2004) and Thakur, Rabenseifner and Gropp (2005) ---------------


def halving_all_reduce(rank: int, world: int, lanes: int = 1) -> Schedule:
    """Partners at half the distance each round: 2 log2(world) rounds, as many bytes as a ring.

    Where the world is no power of two, the last ranks first give all they have to a partner and get the result back.
    """
    inner = 1 << world.bit_length() - 1
    extra = world - inner
    chunks = range(world)

    def folded(piece: Piece) -> Lane:
        partner = rank - inner
        for chunk in chunks:
            yield Send(partner, piece(chunk), reduce=True)
        for chunk in chunks:
            yield Recv(partner, piece(chunk))

    def lane(piece: Piece) -> Lane:
        partner = rank + inner if rank < extra else None
        if partner is not None:
            for chunk in chunks:
                yield Recv(partner, piece(chunk), reduce=True)
        low, high = 0, inner
        while high - low > 1:  # give the other half away, keep the sum of ours
            middle = (low + high) // 2
            distance = middle - low
            mine, theirs = ((low, middle), (middle, high)) if rank < middle else ((middle, high), (low, middle))
            other = rank + distance if rank < middle else rank - distance
            for chunk in _chunks_of(*theirs, inner, world):
                yield Send(other, piece(chunk), reduce=True)
            for chunk in _chunks_of(*mine, inner, world):
                yield Recv(other, piece(chunk), reduce=True)
            low, high = mine
        for chunk in _chunks_of(low, high, inner, world):
            yield Compute(FINAL, piece(chunk))
        distance = 1
        while distance < inner:  # and back: double what we have
            other = rank ^ distance
            low = rank // distance * distance
            theirs_low = other // distance * distance
            for chunk in _chunks_of(low, low + distance, inner, world):
                yield Send(other, piece(chunk))
            for chunk in _chunks_of(theirs_low, theirs_low + distance, inner, world):
                yield Recv(other, piece(chunk))
            distance *= 2
        if partner is not None:
            for chunk in chunks:
                yield Send(partner, piece(chunk))

    return _in_lanes(world, lanes, lane if rank < inner else folded)


def _chunks_of(low: int, high: int, inner: int, world: int) -> range:
    """Chunks of the inner ranks low to high - 1: all `world` chunks dealt to `inner` ranks, in order."""
    return range(low * world // inner, high * world // inner)


# -- unequal sizes, and two alone ------------------------------------------------------------------------------------


def all_to_all(rank: int, world: int, pieces_from_to: Callable[[int, int], range]) -> Schedule:
    """Piece numbers say who gives what to whom; our own stay here."""

    def give() -> Lane:
        for other in _others(rank, world):
            for piece in pieces_from_to(rank, other):
                yield Compute(FINAL, piece)
                yield Send(other, piece)

    def take(source: int, piece: int) -> Lane:
        yield Recv(source, piece)

    taken = [take(source, p) for source in _others(rank, world) for p in pieces_from_to(source, rank)]
    return [give(), *taken]


def send(to: int, pieces: int) -> Schedule:
    """Data for one other rank, once it is ready for it; over when it has all. Behind the pieces there are as many empty
    ones, which it answers with; each piece has a lane of its own, for the connections of a link to overtake each other.
    """

    def lane(piece: int) -> Lane:
        yield Recv(to, pieces + piece)
        yield Send(to, piece)
        yield Recv(to, pieces + piece, reduce=True)

    return [lane(piece) for piece in range(pieces)]


def receive(source: int, pieces: int) -> Schedule:
    """The other side of `send`."""

    def lane(piece: int) -> Lane:
        yield Send(source, pieces + piece)
        yield Recv(source, piece)
        yield Send(source, pieces + piece, reduce=True)

    return [lane(piece) for piece in range(pieces)]
