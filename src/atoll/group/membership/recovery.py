"""Policy: how a new master takes over from one that is gone: it gathers the members and puts together what they know.

A decision of the old master may have reached some and not others. Whoever has it says it again, so that no agreement
is lost; what nobody has heard of was never decided. A member can be one verdict of each series and one view behind the
others, never more: what comes after needs its own vote. Two masters never go on with parts of one group where a second
one may exist: then a majority of the newest view must come, or half of it with its lowest member.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

from atoll.group.membership.ballots import Agreement, Operation
from atoll.group.messages import Agreed, Hello, Kept, Return, View

GATHER_S: Final = 2.5
"""So long after the first has come back, those still missing are lost: as a silent member is."""
PATIENCE_S: Final = 10.0
"""Members look for a master every second or so; if none has come by then, none will."""


@dataclass(frozen=True)
class Remembered:
    """What a master writes down for its successor: whom to expect, and which numbers have been used."""

    ring: tuple[int, ...] = ()
    """Who was in."""
    view: int = 0
    """Epoch of the last view."""
    viewed: tuple[int, ...] = ()
    """Its ring. Whoever knows only older ones and isn't in it was left behind."""
    epoch: int = 0
    seq: int = 0
    last_id: int = 0
    guarded: bool = False
    """Members know of another master, where they may be by now."""
    names: Mapping[int, str] = field(default_factory=dict)
    """Of those who were in; for people."""

    def left_behind(self, who: Return) -> bool:
        """Has the group gone on without this one?"""
        return who.view.epoch < self.view and who.id not in self.viewed


Key = tuple[int, Operation]
"""What verdicts follow on each other: those on the operations of one series in one epoch."""


@dataclass
class Returning:
    """One who has come back."""

    said: Return
    opening: bool
    """It waits in `update_topology`."""
    kept: dict[Key, Kept] = field(default_factory=dict)

    @property
    def epoch(self) -> int:
        """Of the newest view it was told."""
        return self.said.view.epoch

    @property
    def whole(self) -> bool:
        """Has it said all it knows?"""
        return len(self.kept) >= self.said.kept


def majority(part: Iterable[int], ring: Sequence[int]) -> bool:
    """May these members of a view go on without the others, who might do the same?"""
    there = set(part) & set(ring)
    return 2 * len(there) > len(ring) or (2 * len(there) == len(ring) and bool(ring) and min(ring) in there)


class Recovery:
    """`standby`: never begins a group, only takes one over."""

    def __init__(self, now: float, remembered: Remembered | None = None, standby: bool = False) -> None:
        self.remembered, self.standby = remembered or Remembered(), standby
        self.returned: dict[int, Returning] = {}
        self.newcomers: dict[int, Hello] = {}
        """By connection: they wait until it is over."""
        self._began = now
        self._gathering_since: float | None = None

    def take(self, event: Return, now: float) -> None:
        """A member has come back. Its connection must be known by its id."""
        self.returned[event.id] = Returning(event, event.opening)
        if self._gathering_since is None:
            self._gathering_since = now

    def keep(self, who: int, kept: Kept) -> None:
        """One more of the verdicts it knows."""
        one = self.returned[who]
        if not one.whole:
            operation = Operation(kept.verdict.scope, kept.members, kept.verdict.tag)
            one.kept[kept.epoch, operation] = kept

    def lose(self, who: int) -> None:
        """A connection broke again."""
        self.newcomers.pop(who, None)
        self.returned.pop(who, None)
        if not self.returned:
            self._gathering_since = None

    @property
    def view(self) -> View | None:
        """The newest that anybody was told who has said all he knows."""
        whole = [one for one in self.returned.values() if one.whole]
        return max(whole, key=lambda one: one.epoch).said.view if whole else None

    @property
    def guarded(self) -> bool:
        """May there be another master?"""
        return (
            self.standby or self.remembered.guarded or any(one.said.hello.masters > 1 for one in self.returned.values())
        )

    @property
    def note(self) -> str:
        """For people: what it waits for."""
        view = self.view
        if view is None:
            return "stands by" if self.standby else "waits for the members of the group of before"
        need = ", most of them are needed" if self.guarded else ""
        return f"takes over a group: {len(self.returned)} of {len(view.ring)} have come back{need}"

    def complete(self, now: float) -> bool:
        """Can the group go on?"""
        there = {i for i, one in self.returned.items() if one.whole}
        view = self.view
        if view is None:
            return False
        all_there = there >= {*view.ring, *self.remembered.ring}
        return (all_there or self._gathered(now)) and (not self.guarded or self._majority(there, view))

    def _majority(self, there: set[int], view: View) -> bool:
        """Of the newest view, and of those that may have been said since: one was attempted, and we don't know. Who was
        to be in it and comes as a newcomer is here, and can't go on with it elsewhere."""
        new = {(hello.host, hello.port) for hello in self.newcomers.values()}
        attempted = [r.said.attempted for r in self.returned.values() if r.said.attempt > view.epoch]
        return majority(there, view.ring) and all(
            majority(there | {s.id for s in seats if (s.host, s.port) in new}, [s.id for s in seats])
            for seats in attempted
        )

    def hopeless(self, now: float) -> bool:
        """Are those here too few, and can they only hope that another master gathers more?"""
        return self.guarded and self._gathered(now, 2 * GATHER_S)

    def forsaken(self, now: float) -> bool:
        """Has nobody come for so long that the group is gone?"""
        return not self.guarded and not self.returned and now - self._began >= PATIENCE_S

    def _gathered(self, now: float, within_s: float = GATHER_S) -> bool:
        return self._gathering_since is not None and now - self._gathering_since >= within_s

    def links(self) -> Iterable[tuple[int, int, float, float]]:
        """Source, target, bytes per second and round trip, as those of the view have measured."""
        ring = self.view.ring if self.view else ()
        for source, one in self.returned.items():
            if source in ring:
                yield from ((source, *link) for link in one.said.links if link[0] in ring and link[0] != source)

    # -- what they know, together -------------------------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """The last number used."""
        return max([self.remembered.epoch, *(max(r.epoch, r.said.attempt) for r in self.returned.values())])

    @property
    def seq(self) -> int:
        """The last number of a data phase."""
        return max([self.remembered.seq, *(r.said.seq for r in self.returned.values())])

    @property
    def last_id(self) -> int:
        """The last one given to a member, as far as anybody knows."""
        view = self.view
        told = [one.said.last_id for one in self.returned.values()]
        return max([self.remembered.last_id, *told, *self.returned, *(view.ring if view else ())])

    def lacked(self, who: int) -> list[Kept]:
        """Verdicts that this member may not have heard."""
        mine, newest = self.returned[who].kept, self._newest()
        return [kept for key, kept in newest.items() if key not in mine or mine[key].nth < kept.nth]

    def _newest(self) -> dict[Key, Kept]:
        newest: dict[Key, Kept] = {}
        for one in self.returned.values():
            for key, kept in one.kept.items():
                if key not in newest or newest[key].nth < kept.nth:
                    newest[key] = kept
        return newest

    def agreements(self) -> dict[str, Agreement]:
        """On shared states: the last one on each."""
        last: dict[str, Agreed] = {}
        for one in self.returned.values():
            for said in one.said.agreements:
                known = last.get(said.what)
                if known is None or (known.epoch, known.scope, known.nth) < (said.epoch, said.scope, said.nth):
                    last[said.what] = said
        return {what: Agreement(set(said.members) & set(self.returned), said.revision) for what, said in last.items()}
