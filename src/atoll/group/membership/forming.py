"""Policy: an attempt to establish a ring: who has made its link, and, while the group is open anyway, which links are
to be measured. Nobody may hold it up for ever.
"""

from dataclasses import dataclass, field
from typing import Final

from atoll.group.membership.rings import Pair
from atoll.group.membership.topology import LinkMap
from atoll.group.messages import Linked

PROBING_S: Final = 8.0
"""A link on which nothing has come for so long while it was measured is none."""
MEASURING_S: Final = 20.0
"""Spent on it in one attempt; the rest is measured when the group opens again."""
FORMING_S: Final = 15.0
SUSPECTED_S: Final = 0.4
"""A process that ends breaks its links a moment before its connection here: who can't be reached may only be dead."""


@dataclass
class Forming:
    """`opened`: it answers `join` and `update_topology`. `since`: the last sign of progress that all waited for."""

    epoch: int
    ring: tuple[int, ...]
    opened: bool
    since: float
    linked: set[int] = field(default_factory=set)
    round_trip_s: float = 0.0
    """The longest to a successor."""
    lanes: dict[int, str] = field(default_factory=dict)
    """What each member's link to its successor is made of."""
    probed: set[Pair] = field(default_factory=set)
    """Links that are being measured."""
    _suspected: float | None = None
    """Since when somebody seems to be out of reach."""
    _rounds: list[list[Pair]] | None = None
    """What is still to be measured; None: nobody has looked yet."""
    _until: float = 0.0

    @property
    def complete(self) -> bool:
        """Has every member made its link, and is nobody out of reach?"""
        return self._suspected is None and self.linked >= set(self.ring)

    def link(self, who: int, said: Linked, lane: str) -> None:
        """One more has."""
        self.linked.add(who)
        self.round_trip_s = max(self.round_trip_s, said.round_trip_s)
        self.lanes[who] = lane

    def measure(self, links: LinkMap, now: float) -> list[Pair]:
        """Links to be measured now, which nobody knows yet: round by round, as programs wait and links are idle."""
        if self.probed or not self.opened:
            return []
        if self._rounds is None:
            self._rounds, self._until = links.to_measure(self.ring), now + MEASURING_S
        if self._rounds and now <= self._until:
            self.probed, self.since = set(self._rounds.pop(0)), now
        return sorted(self.probed)

    def unanswered(self, now: float) -> list[Pair]:
        """Links whose measurement takes too long: none are waited for any more."""
        if not self.probed or now - self.since < PROBING_S:
            return []
        overdue, self.probed = sorted(self.probed), set()
        return overdue

    def suspect(self, now: float) -> None:
        """Somebody has to go, unless he is gone anyway."""
        if self._suspected is None:
            self._suspected = now

    def unreachable(self, now: float) -> bool:
        """Is one suspected who would be known to be dead by now?"""
        return self._suspected is not None and now - self._suspected >= SUSPECTED_S

    def late(self, now: float) -> list[int]:
        """Members who hold it up."""
        overdue = not self.probed and now - self.since >= FORMING_S
        return [i for i in self.ring if i not in self.linked] if overdue else []
