"""Policy: what the master knows of the links between members, and the ring that follows from it.

Small groups get the best ring there is, at once; larger ones a good one, which improves in the background and is taken
when the group opens again.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from typing import Final

from atoll.group.membership.rings import EXACT, Improver, Pair, best_ring, why
from atoll.group.messages import LinkStatus, Pace

_MOVES_A_TICK: Final = 400
_WORTH_IT: Final = 1.1
"""How much faster a ring's slowest link must be for the group to be opened for it."""
_NONE_BYTES_PER_S: Final = 1.0
"""Said of a pair that can't reach each other."""


class Rates:
    """What has been measured."""

    def __init__(self) -> None:
        self._measured: dict[Pair, float] = {}

    def note(self, source: int, target: int, bytes_per_s: float) -> None:
        """The newest counts. 0.0: unreachable; so is what makes no sense, as it comes from others."""
        self._measured[source, target] = bytes_per_s if bytes_per_s > 0 else 0.0

    def forget(self, ids: set[int]) -> None:
        """These members are gone."""
        self._measured = {pair: rate for pair, rate in self._measured.items() if ids.isdisjoint(pair)}

    def get(self, source: int, target: int) -> float | None:
        """None: not measured."""
        return self._measured.get((source, target))

    @property
    def known(self) -> bool:
        """Has anything been measured?"""
        return bool(self._measured)

    def unmeasured(self, ring: Sequence[int], local: Callable[[int, int], bool]) -> list[Pair]:
        """What is still to be measured between these members; pairs on the same machine never are."""
        return [pair for pair in permutations(ring, 2) if pair not in self._measured and not local(*pair)]


def rounds(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Every pair once, and nobody twice in a round, so that probes don't disturb each other.

    Pairs come in the order of a round-robin tournament and go into the first round that has room: never more rounds
    than the tournament, twice (each way), and for few pairs fewer.
    """
    todo = set(pairs)
    place = {member: i for i, member in enumerate(sorted({member for pair in todo for member in pair}))}
    odd = len(place) - 1 | 1  # an even one out is the last: it plays whom the others leave idle

    def turn(pair: Pair) -> tuple[int, Pair]:
        low, high = sorted(place[member] for member in pair)
        return (low + (high if high < odd else low)) % odd, pair

    made: list[list[Pair]] = []
    busy: list[set[int]] = []
    for pair in sorted(todo, key=turn):
        free = next((i for i, members in enumerate(busy) if members.isdisjoint(pair)), len(made))
        if free == len(made):
            made.append([])
            busy.append(set())
        made[free].append(pair)
        busy[free].update(pair)
    return made


class LinkMap:
    """`local(a, b)`: are these two on one machine? Such links are never measured, and taken for endless."""

    def __init__(self, local: Callable[[int, int], bool]) -> None:
        self._local = local
        self.rates = Rates()
        self.trips: dict[Pair, float] = {}
        self._order: dict[frozenset[int], tuple[int, ...]] = {}
        """The ring of these members, as long as nothing new is known."""
        self._improver: Improver | None = None

    def note(self, source: int, target: int, bytes_per_s: float, round_trip_s: float) -> None:
        """Somebody has measured that."""
        self.rates.note(source, target, bytes_per_s)
        self.trips[source, target] = round_trip_s
        self._order.clear()
        self._improver = None

    def forget(self, ids: set[int]) -> None:
        """These are gone."""
        self.rates.forget(ids)
        self.trips = {pair: trip for pair, trip in self.trips.items() if not ids & set(pair)}
        self._order = {members: ring for members, ring in self._order.items() if not ids & members}
        if self._improver is not None and ids & set(self._improver.best):
            self._improver = None

    def to_measure(self, ring: Sequence[int]) -> list[list[Pair]]:
        """Rounds in which everybody gives once and takes once at most."""
        return rounds(self.rates.unmeasured(ring, self._local))

    def order(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The ring of these members."""
        members = tuple(sorted(ids))
        key = frozenset(members)
        if key not in self._order:
            self._order[key] = self._best(members)
        return self._order[key]

    def _best(self, members: tuple[int, ...]) -> tuple[int, ...]:
        if len(members) < 3 or not self.rates.known:
            return members
        rate = self._rate(members)
        if len(members) <= EXACT:
            return best_ring(members, rate)
        self._improver = Improver(members, rate)
        return self._improver.best

    def improve(self) -> None:
        """Look a little for a better ring."""
        improver = self._improver
        if improver is not None and improver.step(_MOVES_A_TICK):
            self._order[frozenset(improver.best)] = improver.best

    def better(self, ring: tuple[int, ...]) -> bool:
        """Is a ring known that is clearly better than this one?"""
        improver = self._improver
        if improver is None or set(improver.best) != set(ring) or improver.best == ring:
            return False
        return improver.quality(improver.best)[0] > _WORTH_IT * improver.quality(ring)[0]

    def pace(self, ring: Sequence[int], ring_trip_s: float) -> Pace:
        """What all members may know of their links."""
        rate = self._rate(ring)
        edges = [(a, ring[(i + 1) % len(ring)]) for i, a in enumerate(ring)] if len(ring) > 1 else []
        pairs = [(a, b) for a in ring for b in ring if a != b]
        return Pace(
            ring_trip_s,
            max([self.trips.get(pair, 0.0) for pair in pairs], default=0.0),
            self._slowest(edges, rate),
            self._slowest(pairs, rate),
        )

    def even(self, ring: Sequence[int]) -> bool:
        """Are all pairs about as quick as the ring is, as far as anybody knows?"""
        pace = self.pace(ring, 0.0)
        return pace.any_bytes_per_s >= pace.ring_bytes_per_s / 2

    def _slowest(self, pairs: list[Pair], rate: Callable[[int, int], float]) -> float:
        """0: not measured."""
        if any(self.rates.get(*pair) is None and not self._local(*pair) for pair in pairs):
            return 0.0
        slowest = min((rate(*pair) for pair in pairs), default=math.inf)
        return 0.0 if slowest == math.inf else max(slowest, _NONE_BYTES_PER_S)

    def _rate(self, ids: Sequence[int]) -> Callable[[int, int], float]:
        """Of these members' links; what nobody has measured counts as the slowest that works."""
        known = [r for a in ids for b in ids if (r := self.rates.get(a, b))]
        guess = min(known, default=1.0)

        def rate(source: int, target: int) -> float:
            if self._local(source, target):
                return math.inf
            measured = self.rates.get(source, target)
            return guess if measured is None else measured

        return rate

    def links(self, ids: Sequence[int]) -> tuple[LinkStatus, ...]:
        """What has been measured between these members."""
        pairs = [(a, b) for a in ids for b in ids]
        return tuple(
            LinkStatus(*pair, rate, self.trips[pair]) for pair in pairs if (rate := self.rates.get(*pair)) is not None
        )

    def why(self, ring: Sequence[int], name: Callable[[int], str]) -> str:
        """For people: why the ring is as it is."""
        if len(ring) < 3 or not self.rates.known:
            return ""
        return why(ring, self._rate(ring), name)
