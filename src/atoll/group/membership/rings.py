"""Policy: in which order a ring's members stand, from measured rates, so that its slowest link is as fast as can be.

A ring moves data at the pace of its slowest directed edge; among rings equal in that, the smaller sum of 1 / rate wins.
Exact for small groups (Held and Karp 1962, doi 10.1137/0110015); larger ones are improved in the background by 2-opt
(Croes 1958, doi 10.1287/opre.6.6.791) and or-opt (Or 1976), restarted from the best as by Martin, Otto and Felten
(1991).
"""

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atoll import rng

Pair = tuple[int, int]
"""Source and target, by member id."""
Rate = Callable[[int, int], float]
"""Bytes per second from source to target: 0.0 where it can't be reached, infinite within a machine."""

EXACT: Final = 10
"""Up to so many members `best_ring` is quick: it takes 2**n * n**2 steps."""
_ROUNDING: Final = 1e-9
"""Sums that differ by no more than this part of them are equal."""
_PATIENCE: Final = 4
"""A search has ended after so many moves in vain, times the members squared."""
_KICKS: Final = 3
"""So many pairs of pieces change places in the best ring, and a search starts there."""
_SHOWN: Final = 3
"""So many of the slow pairs are named."""


def quality(ring: Sequence[int], rate: Rate) -> tuple[float, float]:
    """The slowest edge (the higher the better), then the sum of 1 / rate (the lower the better)."""
    found = [rate(*edge) for edge in edges(ring)]
    return min(found, default=math.inf), math.fsum(1 / r if r else math.inf for r in found)


def why(ring: Sequence[int], rate: Rate, names: Callable[[int], str]) -> str:
    """One line for people: this ring's slowest link, and the pairs it avoids because they are slower."""
    around = edges(ring)
    if not around:
        return "nobody else in the ring"
    slowest = min(around, key=lambda edge: rate(*edge))
    avoided = defaultdict(list)
    for a, b in permutations(sorted(ring), 2):
        if rate(a, b) < rate(*slowest):
            avoided[min(a, b), max(a, b)].append((a, b))
    slower = sorted((min(rate(*p) for p in ways), ways) for ways in avoided.values())
    said = [_link(ways[0], "<->" if len(ways) > 1 else "->", worst, names) for worst, ways in slower[:_SHOWN]]
    if len(slower) > _SHOWN:
        said.append(f"{len(slower) - _SHOWN} more")
    line = f"slowest link {_link(slowest, '->', rate(*slowest), names)}"
    return f"{line}; avoids {', '.join(said)}" if said else line


def _link(pair: Pair, arrow: str, bytes_per_s: float, names: Callable[[int], str]) -> str:
    return f"{names(pair[0])} {arrow} {names(pair[1])} {rate_text(bytes_per_s)}"


def rate_text(bytes_per_s: float) -> str:
    """For people: in bits, as links are sold."""
    if bytes_per_s == 0:
        return "unreachable"
    if bytes_per_s == math.inf:
        return "within a machine"
    bits = bytes_per_s * 8
    unit, size = ("Gbit/s", 1e9) if bits >= 1e9 else ("Mbit/s", 1e6) if bits >= 1e6 else ("kbit/s", 1e3)
    return f"{bits / size:.0f} {unit}" if bits >= 100 * size else f"{bits / size:.3g} {unit}"


def best_ring(ids: Sequence[int], rate: Rate) -> tuple[int, ...]:
    """The best order of up to `EXACT` members, from the smallest id on; of equals the lexicographically smallest.

    Where no ring avoids unreachable pairs (all have the quality 0.0, inf), this one has the fewest.
    ValueError: too many members.
    """
    members = sorted(ids)
    if len(members) > EXACT:
        raise ValueError(f"{len(members)} members are too many for an exact search (up to {EXACT}): use an Improver")
    if len(members) < 3:
        return tuple(members)
    rates, n = _matrix(members, rate), len(members)
    rest = (1 << n) - 2  # a set of members as bits: all but the first
    slowest = _held_karp(rates, np.minimum, np.maximum)[rest, 0]
    costs = _costs(np.where(rates >= slowest, rates, 0.0))
    to_go = _held_karp(costs, np.add, np.minimum)
    limit = to_go[rest, 0] * (1 + _ROUNDING)
    order, spent = [0], 0.0
    while rest:
        following = _in(rest, n)
        total = spent + costs[order[-1], following] + to_go[rest ^ (1 << following), following]
        first = following[np.argmax(total <= max(limit, total.min()))]
        spent += costs[order[-1], first]
        order.append(int(first))
        rest ^= 1 << order[-1]
    return tuple(members[i] for i in order)


def _held_karp(edges: NDArray[Any], join: np.ufunc, choose: np.ufunc) -> NDArray[Any]:
    """`[rest, v]`: the best path from v through the set `rest` and home to 0. `join` adds an edge to what follows it,
    `choose` takes the better path."""
    n = len(edges)
    best = np.empty((1 << n, n), edges.dtype)
    best[0] = edges[:, 0]
    for rest in range(2, 1 << n, 2):
        following = _in(rest, n)
        choose.reduce(join(edges[:, following], best[rest ^ (1 << following), following]), axis=1, out=best[rest])
    return best


def _in(members: int, n: int) -> NDArray[np.int64]:
    return np.flatnonzero(members >> np.arange(n) & 1)


def edges(ring: Sequence[int]) -> list[Pair]:
    """Each member and the next."""
    return list(zip(ring, [*ring[1:], ring[0]], strict=True)) if len(ring) > 1 else []


def _matrix(members: Sequence[int], rate: Rate) -> NDArray[np.float64]:
    rates = [rate(a, b) if a != b else 0.0 for a in members for b in members]
    return np.array(rates, np.float64).reshape(len(members), len(members))


def _costs(rates: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 / rate, where that of the slowest edge is 1; one that can't be used costs more than any ring without it."""
    unit = np.min(rates, where=(rates > 0) & (rates < math.inf), initial=math.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        costs = np.where(rates < math.inf, unit / rates, 0.0)
    return np.where(rates > 0, costs, 2.0 * len(rates))


class Improver:
    """Looks for a better ring of a larger group, a few moves at a time, from the nearest neighbour's order on."""

    best: tuple[int, ...]
    """The best order so far, from the smallest id on."""

    def __init__(self, ids: Sequence[int], rate: Rate, seed: int = 0) -> None:
        self._members, self._rate = sorted(ids), rate
        self._rates = _matrix(self._members, rate)
        self._costs = _costs(self._rates)
        self._rng = rng.stream(seed, "topology")
        self._ring = self._top = self._nearest_neighbours()
        self._value = self._top_value = self._best_of(self._ring[None])[1]
        self._fruitless = 0
        self.best = self._named(self._top)

    def step(self, moves: int = 200) -> bool:
        """Try so many moves, at least one, and make the best. True: `best` got better."""
        if len(self._members) < 3:
            return False
        ring, value = self._best_of(self._ring[self._moves(moves)])
        self._fruitless += moves
        if _better(value, self._value):
            self._fruitless = 0
        if not _better(self._value, value):  # sideways too: where rates are equal, the way up leads along a plateau
            self._ring, self._value = ring, value
        if _better(self._value, self._top_value):
            self._top, self._top_value, self.best = self._ring, self._value, self._named(self._ring)
            return True
        if self._fruitless > _PATIENCE * len(ring) ** 2:
            self._restart()
        return False

    def quality(self, ring: Sequence[int]) -> tuple[float, float]:
        """`quality` by the rate given at the start."""
        return quality(ring, self._rate)

    def _nearest_neighbours(self) -> NDArray[np.int64]:
        """Always on to the nearest that is left."""
        order, left = [0][: len(self._members)], np.arange(1, len(self._members))
        while len(left):
            order.append(int(left[np.argmin(self._costs[order[-1], left])]))
            left = left[left != order[-1]]
        return np.array(order, np.int64)

    def _restart(self) -> None:
        """From the best ring, with pieces of it exchanged: near a good one there are better ones."""
        self._ring, self._fruitless = self._top, 0
        for _ in range(_KICKS):
            self._ring = self._ring[_exchange(len(self._ring), self._cuts(1))[0]]
        self._value = self._best_of(self._ring[None])[1]

    def _moves(self, number: int) -> NDArray[np.int64]:
        """A row for each: which place's member comes here. Half of them 2-opt, half or-opt."""
        n, half = len(self._members), number // 2
        return np.concatenate([_reverse(n, self._cuts(half)), _exchange(n, self._cuts(number - half))])

    def _cuts(self, number: int) -> NDArray[np.int64]:
        """Three places per row, in order; the first member stays."""
        return np.sort(self._rng.integers(1, len(self._members) + 1, (number, 3)), axis=1)

    def _best_of(self, rings: NDArray[np.int64]) -> tuple[NDArray[np.int64], tuple[float, float]]:
        edges = rings, np.roll(rings, -1, axis=1)
        slowest, cost = self._rates[edges].min(axis=1, initial=math.inf), self._costs[edges].sum(axis=1)
        best = np.lexsort((cost, -slowest))[0]
        return rings[best], (float(slowest[best]), float(cost[best]))

    def _named(self, ring: NDArray[np.int64]) -> tuple[int, ...]:
        return tuple(self._members[i] for i in ring)


def _better(one: tuple[float, float], other: tuple[float, float]) -> bool:
    return one[0] > other[0] or (one[0] == other[0] and one[1] < other[1] * (1 - _ROUNDING))


def _reverse(n: int, cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """2-opt: what lies between two cuts, backwards."""
    place, (i, _, k) = np.arange(n), cuts.T[:, :, None]
    return np.where((i <= place) & (place < k), i + k - 1 - place, place)


def _exchange(n: int, cuts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Or-opt, with pieces of any length: two neighbouring ones change places, both forwards."""
    place, (i, j, k) = np.arange(n), cuts.T[:, :, None]
    exchanged = np.where(place < i + k - j, place + j - i, place + j - k)
    return np.where((i <= place) & (place < k), exchanged, place)
