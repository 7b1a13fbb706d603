"""Policy: links that broke or could not be made, as members say; which of them to avoid, and who goes where that is no
way out.

A link that breaks is made again at once. One that could not be made, or breaks time and again while no data moves, is
avoided for a while: each time twice as long as the time before. Where every ring needs such a link, or a program does,
the member that has trouble with most others goes; of equals the newest, as nobody can tell whose fault it is and the
others were content.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from atoll.group.membership.rings import Pair

QUIET_S: Final = 20.0
"""So long without another, and a pair's troubles are forgotten."""
AVOIDED_S: Final = 30.0
LONGEST_S: Final = 3600.0
_AVOID: Final = 3
_HOPELESS: Final = 9
_HOPELESS_DIALS: Final = 3


@dataclass
class _Trouble:
    """Of one pair."""

    breaks: int = 0
    dials: int = 0
    """In vain."""
    last: float = 0.0
    times: int = 0
    """How often it has been avoided."""
    until: float = 0.0
    """It is avoided until then."""

    @property
    def hopeless(self) -> bool:
        return self.breaks >= _HOPELESS or self.dials >= _HOPELESS_DIALS


class Breaks:
    """By (source, target): who dials, and whom."""

    def __init__(self) -> None:
        self._troubles: dict[Pair, _Trouble] = {}
        self._avoided: set[Pair] = set()

    def note(self, source: int, target: int, made: bool, now: float) -> None:
        """This link broke; or it was never `made`."""
        trouble = self._troubles.setdefault((source, target), _Trouble())
        if now - trouble.last > QUIET_S:
            trouble.breaks = trouble.dials = 0
        if made:
            trouble.breaks += 1
        else:
            trouble.dials += 1
        trouble.last = now
        if (trouble.dials or trouble.breaks >= _AVOID) and (source, target) not in self._avoided:
            trouble.until = now + min(AVOIDED_S * 2**trouble.times, LONGEST_S)
            trouble.times += 1
            self._avoided.add((source, target))

    def data_moved(self) -> None:
        """An operation was done: links that broke have been made again."""
        for trouble in self._troubles.values():
            trouble.breaks = 0

    def lapse(self, now: float) -> bool:
        """Has a pair been avoided for long enough? Then it may be tried again."""
        over = {pair for pair in self._avoided if now >= self._troubles[pair].until}
        self._avoided -= over
        return bool(over)

    def forget(self, ids: set[int]) -> None:
        """These members are gone."""
        self._troubles = {pair: trouble for pair, trouble in self._troubles.items() if ids.isdisjoint(pair)}
        self._avoided &= self._troubles.keys()

    def avoided(self, source: int, target: int) -> bool:
        """Is there no way, as far as anybody knows?"""
        return (source, target) in self._avoided

    def among(self, ids: Iterable[int]) -> set[Pair]:
        """Which pairs of these are avoided?"""
        members = set(ids)
        return {pair for pair in self._avoided if members.issuperset(pair)}

    def of(self, member: int) -> tuple[list[int], list[int]]:
        """Who can't reach it, and whom it can't reach."""
        into = sorted(source for source, target in self._avoided if target == member)
        return into, sorted(target for source, target in self._avoided if source == member)

    def culprit(self, ring: Sequence[int], edges: Iterable[Pair]) -> int | None:
        """Who of the ring has to go. `edges`: of the best way round there is."""
        avoided = self.among(ring)
        others = {i: {i, *(j for pair in avoided if i in pair for j in pair)} for i in ring}

        def worst(ids: Iterable[int]) -> int:
            return max(ids, key=lambda i: (len(others[i]), i))

        if hopeless := {i for pair in avoided if self._troubles[pair].hopeless for i in pair}:
            return worst(hopeless)
        found = worst(ring)
        alone = len(others[found]) > 2  # trouble with two of the others: not one's word against another's
        return found if alone and not avoided.isdisjoint(edges) else None
