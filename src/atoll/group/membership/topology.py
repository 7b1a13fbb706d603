"""Policy: what the master knows of the links between members, and the ring that follows from it.

Small groups get the best ring there is, at once; larger ones a good one, which improves in the background and is taken
when the group opens again.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from itertools import permutations
from typing import Final

from atoll.group.membership.breaks import Breaks
from atoll.group.membership.rings import EXACT, Improver, Pair, best_ring, edges, why
from atoll.group.messages import LinkStatus, Pace

_MOVES_A_TICK: Final = 400
_MOST_SHOWN: Final = 100
"""Of more members, only the links of the ring are shown."""
_WORTH_IT: Final = 1.1
"""How much faster a ring's slowest link must be for the group to be opened for it."""


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
        self._rates: dict[Pair, float] = {}
        self._trips: dict[Pair, float] = {}
        self.breaks = Breaks()
        self._order: dict[frozenset[int], tuple[int, ...]] = {}
        """The ring of these members, as long as nothing new is known."""
        self._improver: Improver | None = None

    # -- what is known -------------------------------------------------------------------------------------------------

    def note(self, source: int, target: int, bytes_per_s: float, round_trip_s: float, now: float) -> None:
        """Somebody has measured that; the newest counts. No rate: there is no way."""
        if not 0 < bytes_per_s < math.inf:
            self.broke(source, target, made=False, now=now)
            return
        self._rates[source, target] = bytes_per_s
        self._trips[source, target] = round_trip_s if 0 <= round_trip_s < math.inf else 0.0
        self._unsettle()

    def broke(self, source: int, target: int, made: bool, now: float) -> None:
        """A link broke, or was never `made`."""
        self.breaks.note(source, target, made, now)
        self._unsettle()

    def forget(self, ids: set[int]) -> None:
        """These are gone."""
        self._rates = {pair: rate for pair, rate in self._rates.items() if ids.isdisjoint(pair)}
        self._trips = {pair: trip for pair, trip in self._trips.items() if ids.isdisjoint(pair)}
        self.breaks.forget(ids)
        self._order = {members: ring for members, ring in self._order.items() if not ids & members}
        if self._improver is not None and ids & set(self._improver.best):
            self._improver = None

    def rate(self, source: int, target: int) -> float | None:
        """As measured; None: not yet."""
        return self._rates.get((source, target))

    def to_measure(self, ring: Sequence[int]) -> list[list[Pair]]:
        """Rounds in which everybody gives once and takes once at most."""
        return rounds(
            pair
            for pair in permutations(ring, 2)
            if pair not in self._rates and not self.breaks.avoided(*pair) and not self._local(*pair)
        )

    def tick(self, now: float) -> None:
        """Look a little for a better ring."""
        if self.breaks.lapse(now):
            self._unsettle()
        improver = self._improver
        if improver is not None and improver.step(_MOVES_A_TICK):
            self._order[frozenset(improver.best)] = improver.best

    def _unsettle(self) -> None:
        self._order.clear()
        self._improver = None

    # -- what follows --------------------------------------------------------------------------------------------------

    def order(self, ids: Iterable[int]) -> tuple[int, ...]:
        """The ring of these members."""
        members = tuple(sorted(ids))
        key = frozenset(members)
        if key not in self._order:
            self._order[key] = self._best(members)
        return self._order[key]

    def _best(self, members: tuple[int, ...]) -> tuple[int, ...]:
        if len(members) < 3 or not (self._rates or self.breaks.among(members)):
            return members
        rate = self._rate(members)
        if len(members) <= EXACT:
            return best_ring(members, rate)
        self._improver = Improver(members, rate)
        return self._improver.best

    def better(self, ring: tuple[int, ...]) -> bool:
        """Is a ring known that is clearly better than this one?"""
        improver = self._improver
        if improver is None or set(improver.best) != set(ring) or improver.best == ring:
            return False
        return improver.quality(improver.best)[0] > _WORTH_IT * improver.quality(ring)[0]

    def culprit(self, ring: Sequence[int]) -> int | None:
        """Who of these has to go, since links to or from it can't be made and can't be avoided."""
        return self.breaks.culprit(ring, edges(self.order(ring)))

    def pace(self, ring: Sequence[int], ring_trip_s: float) -> Pace:
        """What all members may know of their links."""
        rate = self._rate(ring)
        around = edges(ring)
        avoided = self.breaks.among(ring)
        across = [pair for pair in permutations(ring, 2) if pair not in avoided]
        return Pace(
            ring_trip_s,
            max([self._trips.get(pair, 0.0) for pair in across], default=0.0),
            self._slowest(around, rate),
            self._slowest(across, rate),
            self.mesh(ring),
        )

    def mesh(self, ring: Sequence[int]) -> bool:
        """Can those reach each other, too, that are no neighbours?"""
        return self.breaks.among(ring) <= set(edges(ring))

    def even(self, ring: Sequence[int]) -> bool:
        """Are all pairs about as quick as the ring is, as far as anybody knows?"""
        pace = self.pace(ring, 0.0)
        return pace.mesh and pace.any_bytes_per_s >= pace.ring_bytes_per_s / 2

    def _slowest(self, pairs: list[Pair], rate: Callable[[int, int], float]) -> float:
        """0: not measured."""
        if any(pair not in self._rates and not self._local(*pair) for pair in pairs):
            return 0.0
        slowest = min((rate(*pair) for pair in pairs), default=math.inf)
        return 0.0 if slowest == math.inf else slowest

    def _rate(self, ids: Sequence[int]) -> Callable[[int, int], float]:
        """Of these members' links; what nobody has measured counts as the slowest that works."""
        guess = min((r for pair in permutations(ids, 2) if (r := self._rates.get(pair))), default=1.0)

        def rate(source: int, target: int) -> float:
            if self.breaks.avoided(source, target):
                return 0.0
            return math.inf if self._local(source, target) else self._rates.get((source, target), guess)

        return rate

    # -- for people ----------------------------------------------------------------------------------------------------

    def links(self, ids: Sequence[int]) -> tuple[LinkStatus, ...]:
        """What is known of the links between these members."""
        return tuple(
            LinkStatus(*pair, 0.0 if self.breaks.avoided(*pair) else self._rates[pair], self._trips.get(pair, 0.0))
            for pair in (permutations(ids, 2) if len(ids) <= _MOST_SHOWN else edges(ids))
            if pair in self._rates or self.breaks.avoided(*pair)
        )

    def why(self, ring: Sequence[int], name: Callable[[int], str]) -> str:
        """Why the ring is as it is."""
        if len(ring) < 3 or not (self._rates or self.breaks.among(ring)):
            return ""
        return why(ring, self._rate(ring), name)
