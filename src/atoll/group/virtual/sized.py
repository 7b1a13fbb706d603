"""Driver: collectives of more ranks than there can be programs: the very schedules of the group, over flows, for a
tensor that nobody holds.

size, n = Sized(1 << 30), 1024
took = simulate(lambda rank: ring_all_reduce(rank, n), size.pieces(n), network.fabric.hosts, network)
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from atoll.errors import Deadlock
from atoll.group.collectives.rounds import chunked
from atoll.net.channel import HEADER
from atoll.runtime.schedule import Compute, Lane, Recv, Schedule, Send
from atoll.sim.connection import Connection
from atoll.sim.net import Network

Key = tuple[int, int, bool]
"""(source, piece, reduce): by it a frame finds the step that waits for it."""


@dataclass(frozen=True)
class Sized:
    """Stands for a tensor of `nbytes`, in elements of `itemsize`."""

    nbytes: int
    itemsize: int = 4

    def pieces(self, chunks: int, lanes: int = 1) -> list[int]:
        """Bytes of each piece, by its number, where it is cut as the group cuts: `chunks`, each in `lanes` pieces."""
        parts = chunked(self.nbytes // self.itemsize, chunks, lanes)
        return [(part.stop - part.start) * self.itemsize for part in parts]


class Took(NamedTuple):
    """What a collective came to."""

    seconds: float
    sent: list[int]
    """Bytes of the tensor that each rank has sent."""


def simulate(
    schedule: Callable[[int], Schedule], pieces: Sequence[int], hosts: Sequence[str], network: Network
) -> Took:
    """Walk the schedule of each rank r on `hosts[r]`, from now on; steps of computing take no time, and there are no
    votes. Deadlock: a link has no capacity, or ranks wait for what nobody sends; the message says which."""
    walk = _Walk(schedule, pieces, hosts, network)
    walk.begin()
    while walk.unfinished and network.loop.step():
        pass
    if walk.unfinished:
        network.fluid.check_stall()
        raise Deadlock(f"nothing is left to happen at {network.loop.now_s:.6f} s, but {walk.who_waits()}")
    return Took((network.loop.now_ns - walk.began_ns) / 1e9, walk.sent)


class _Walk:
    """All ranks of one collective."""

    def __init__(
        self, schedule: Callable[[int], Schedule], pieces: Sequence[int], hosts: Sequence[str], network: Network
    ) -> None:
        self._network, self._hosts, self._pieces = network, hosts, pieces
        self._lanes = [schedule(rank) for rank in range(len(hosts))]
        self.began_ns = network.loop.now_ns
        self.unfinished = sum(map(len, self._lanes))
        """Lanes that have steps left."""
        self.sent = [0] * len(hosts)
        self._waiting: list[dict[Key, Lane]] = [{} for _ in hosts]
        self._early: list[set[Key]] = [set() for _ in hosts]
        """Frames whose turn has not come."""
        self._streams: dict[tuple[int, int], Connection] = {}
        self._due: dict[int, list[tuple[Callable[..., object], tuple[Any, ...]]]] = {}
        """Arrivals by their moment."""

    def begin(self) -> None:
        """Go on in every lane until something must be received."""
        for rank, lanes in enumerate(self._lanes):
            for lane in lanes:
                self._advance(rank, lane)

    def who_waits(self) -> str:
        """For people."""
        waiting = [f"rank {rank} waits for {source}" for rank, w in enumerate(self._waiting) for source, _, _ in w]
        return "; ".join([*waiting[:10], *([f"{len(waiting) - 10} more"] if len(waiting) > 10 else [])])

    def _advance(self, rank: int, lane: Lane) -> None:
        for step in lane:
            if isinstance(step, Send):
                self._send(rank, step)
            elif isinstance(step, Recv):
                key = step.source, step.piece, step.reduce
                if key not in self._early[rank]:
                    self._waiting[rank][key] = lane
                    return
                self._early[rank].remove(key)
            else:
                assert isinstance(step, Compute)
        self.unfinished -= 1

    def _send(self, rank: int, step: Send) -> None:
        nbytes = self._pieces[step.piece]
        self.sent[rank] += nbytes
        ends = rank, step.to
        stream = self._streams.get(ends)
        if stream is None:
            source, target = self._hosts[rank], self._hosts[step.to]
            stream = self._streams[ends] = Connection(self._network, source, target, post=self._post)
        stream.carry(nbytes + HEADER.size, self._arrived, step.to, (rank, step.piece, step.reduce))

    def _post(self, delay_ns: int, fn: Callable[..., object], *args: Any) -> None:
        """One event for all that arrives at one moment: in a large ring, for a frame of each rank."""
        at_ns = self._network.loop.now_ns + delay_ns
        due = self._due.get(at_ns)
        if due is None:
            due = self._due[at_ns] = []
            self._network.loop.post(delay_ns, self._deliver, at_ns)
        due.append((fn, args))

    def _deliver(self, at_ns: int) -> None:
        for fn, args in self._due.pop(at_ns):
            fn(*args)

    def _arrived(self, rank: int, key: Key) -> None:
        lane = self._waiting[rank].pop(key, None)
        if lane is None:
            self._early[rank].add(key)
        else:
            self._advance(rank, lane)
