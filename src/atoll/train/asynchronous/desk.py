"""Policy: the server's decisions: who works, on which windows and for how long; which pushes count, and when.

A run of `steps` steps is over when the workers have taken so many each, of whatever speed they are: a step of one of N
is an N-th of one. What a lost worker was at is given to others. (Liu et al. 2024, arXiv 2401.09135.)
"""

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from math import ceil, floor, inf
from typing import Any, Final

from atoll.group.membership.roster import Gone, Joined, Roster, Tick
from atoll.group.messages import Beat, Bye, Hello
from atoll.group.messages import Loss as Lost

SAME: Final = 1e-6
"""Speeds that differ by less are equal: what clocks read is rounded."""


@dataclass(frozen=True, slots=True)
class Came:
    """Event: a worker is here. `used`, `epoch`, `holds`: as in `messages.Enter`."""

    name: str
    min_world: int = 1
    used: int = 0
    epoch: int = 0
    holds: bool = False


@dataclass(frozen=True, slots=True)
class Pushed:
    """Event: a push has come. `gradient`: an opaque handle; None: it was no number."""

    version: int
    steps: int
    seconds: float
    gradient: Any
    loss: float = 0.0
    """For people."""


Event = Came | Pushed | Beat | Bye | Gone | Tick


@dataclass(frozen=True, slots=True)
class Accepted:
    """Action: apply this push, with so many `workers` there; then the parameters are of `version`. Its worker, `name`,
    may be gone."""

    name: str
    gradient: Any
    workers: int
    version: int
    staleness: int
    """Versions that were made since it was pulled."""
    steps: int
    step: int
    """Of the run, with these."""
    loss: float


@dataclass(frozen=True, slots=True)
class Dropped:
    """Action: say that a push doesn't count; `refused`: for it was no number, else it was too old."""

    name: str
    staleness: int
    refused: bool


@dataclass(frozen=True, slots=True)
class Work:
    """Action: give the worker the parameters as they are now, and this to do."""

    who: int
    version: int
    steps: int
    first: int
    position: int
    rank: int
    world: int
    epoch: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Action: tell the worker that all is done."""

    who: int


@dataclass(frozen=True, slots=True)
class Save:
    """Action: keep all as it is now."""

    about: dict[str, Any]
    """`Desk.remembered`."""


@dataclass(frozen=True, slots=True)
class Changed:
    """Action: say who came, came back or went."""

    name: str
    what: str
    """In words."""
    went: bool
    world: int
    epoch: int


Action = Accepted | Dropped | Work | Finish | Save | Changed


@dataclass(slots=True)
class _Worker:
    name: str
    min_world: int
    busy: bool
    """It is to push."""
    speed: float | None = None
    """Steps per second of its last push."""
    share: Fraction = Fraction(0)
    """Of the run, that it is at; 0: not known."""


class Desk:
    """`handle(who, event, now)` takes one event and returns what is to be done, in that order.

    `every`: steps between a pull and its push of the fastest worker; slower ones take as many as they can meanwhile.
    `batch`: windows of a step. `grace_s`: pushes that come within so long of a first one are applied with it, before
    anybody pulls. `max_staleness`: in rounds, of N versions each; older pushes are dropped. `save_every`: steps; 0:
    never.
    """

    def __init__(
        self, *, steps: int, every: int, batch: int, grace_s: float = 0.0, max_staleness: int = 10, save_every: int = 0
    ) -> None:
        self.steps, self.every, self.batch = steps, every, batch
        self.grace_s, self.max_staleness, self.save_every = grace_s, max_staleness, save_every
        self.version = self.epoch = self.cursor = 0
        self.taken = Fraction(0)
        """Steps of the run, as each worker's share."""
        self.saved_at = 0
        self._began = False
        self._roster = Roster(lambda: b"")
        self._known: dict[int, _Worker] = {}
        """Whoever is connected, those who are lost by their silence too."""
        self._waiting: list[int] = []
        """Members without work, in the order in which they came."""
        self._batch: list[tuple[int, str, Pushed, Fraction]] = []
        """Pushes that have come: whose, and their shares of the run."""
        self.due: float | None = None
        """When the pushes that have come are applied; None: there are none. Tick then."""

    @property
    def world(self) -> int:
        """Workers that are here."""
        return len(self._roster.members)

    @property
    def over(self) -> bool:
        """Are all steps taken?"""
        return self.taken >= self.steps

    def handle(self, who: int, event: Event, now: float) -> list[Action]:
        """See above."""
        match event:
            case Came():
                actions = self._came(who, event, now)
            case Pushed():
                actions = self._pushed(who, event, now)
            case Tick():
                actions = self._lost(self._roster.handle(who, event, now))
            case Beat():
                actions = self._back(who, now)
                self._roster.handle(who, Beat(who, b"", event.state, event.progress), now)
            case Bye() | Gone():
                actions = self._lost(self._roster.handle(who, event, now))
                self._forget(who)
        if self.due is not None and now >= self.due:
            actions += self._apply()
        return actions + self._give()

    def remembered(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {
            "version": self.version, "epoch": self.epoch, "cursor": self.cursor, "taken": str(self.taken)
        }  # fmt: skip

    def restore(self, about: Mapping[str, Any]) -> None:
        """The reverse. KeyError, ValueError, TypeError: it is none."""
        self.version, self.epoch, self.cursor = (int(about[name]) for name in ("version", "epoch", "cursor"))
        self.taken = Fraction(str(about["taken"]))
        self.saved_at = floor(self.taken)

    @staticmethod
    def taken_of(about: Mapping[str, Any]) -> int:
        """Steps that were taken when that was remembered."""
        return floor(Fraction(str(about["taken"])))

    # -- who is here --------------------------------------------------------------------------------------------------

    def _came(self, who: int, event: Came, now: float) -> list[Action]:
        self.cursor = max(self.cursor, event.used)
        self.epoch = max(self.epoch, event.epoch)
        self._known[who] = _Worker(event.name, event.min_world, event.holds)
        return self._enter(who, now, "joined")

    def _back(self, who: int, now: float) -> list[Action]:
        """It is heard; was it lost?"""
        if who in self._roster.members or who not in self._known:
            return []
        return self._enter(who, now, "is back")

    def _enter(self, who: int, now: float, how: str) -> list[Action]:
        worker = self._known[who]
        self._roster.handle(who, Hello("", 0, worker.name, min_world=worker.min_world), now)
        self.epoch += 1
        if not worker.busy:
            self._waiting.append(who)
        return [Changed(worker.name, f"{worker.name} {how}", False, self.world, self.epoch)]

    def _lost(self, changes: "list[Joined | Lost]") -> list[Action]:
        actions: list[Action] = []
        for change in changes:
            if isinstance(change, Lost):
                self.epoch += 1
                if change.id in self._waiting:
                    self._waiting.remove(change.id)
                actions.append(Changed(change.name, str(change), True, self.world, self.epoch))
        return actions

    def _forget(self, who: int) -> None:
        """Its connection is over; what it has pushed still counts."""
        self._known.pop(who, None)

    # -- pushes -------------------------------------------------------------------------------------------------------

    def _pushed(self, who: int, push: Pushed, now: float) -> list[Action]:
        worker = self._known.get(who)
        if worker is None or not worker.busy:
            return []
        actions = self._back(who, now)
        worker.busy, share, worker.share = False, worker.share, Fraction(0)
        if push.seconds > 0 and 0 < (speed := push.steps / push.seconds) < inf:
            worker.speed = speed
        gap = self._gap(push)
        if self.over:
            self._waiting.append(who)
            return actions
        if push.gradient is None or gap > self.max_staleness * self.world:
            self._waiting.append(who)
            return [*actions, Dropped(worker.name, gap, push.gradient is None)]
        self._batch.append((who, worker.name, push, share or Fraction(push.steps, self.world)))
        if self.due is None:
            self.due = now + self.grace_s
        return actions

    def _gap(self, push: Pushed) -> int:
        """A version that a killed server took with it is as far away as one of the past."""
        return abs(self.version - push.version)

    def _apply(self) -> list[Action]:
        """All that have come, as one version."""
        batch, self._batch, self.due = self._batch, [], None
        actions: list[Action] = []
        world = max(1, self.world)
        for who, name, push, share in batch:
            self.taken += share
            about = self.version + 1, self._gap(push), push.steps, floor(self.taken), push.loss
            actions.append(Accepted(name, push.gradient, world, *about))
            if who in self._roster.members and who not in self._waiting and not self._known[who].busy:
                self._waiting.append(who)
        self.version += 1
        if self.save_every and self.taken - self.saved_at >= self.save_every and not self.over:
            self.saved_at = floor(self.taken)
            actions.append(Save(self.remembered()))
        return actions

    # -- work ---------------------------------------------------------------------------------------------------------

    def _give(self) -> list[Action]:
        """Work to who waits, while there is some; to all at first only once they are enough."""
        members = self._roster.members
        if not self._began and self.world < max((m.min_world for m in members.values()), default=1):
            return []
        actions: list[Action] = []
        for who in list(self._waiting):
            if self.over:
                actions.append(Finish(who))
            elif (steps := self._steps(who)) > 0:
                actions.append(self._work(who, steps))
            else:
                continue
            self._waiting.remove(who)
        return actions

    def _work(self, who: int, steps: int) -> Work:
        self._began = True
        self._known[who].busy, self._known[who].share = True, Fraction(steps, self.world)
        first, self.cursor = self.cursor, self.cursor + steps * self.batch
        rank = sorted(self._roster.members).index(who)
        return Work(who, self.version, steps, first, floor(self.taken), rank, self.world, self.epoch)

    def _steps(self, who: int) -> int:
        """As many as it can while the fastest takes `every`, of those that are left."""
        there = [self._known[member] for member in self._roster.members]
        at_work = sum(worker.share for worker in there) + sum(share for *_, share in self._batch)
        left = self.steps - self.taken - at_work
        fastest = max((worker.speed for worker in there if worker.speed is not None), default=None)
        speed, steps = self._known[who].speed, self.every
        if speed is not None and fastest is not None:
            steps = max(1, floor(self.every * (speed / fastest) * (1 + SAME)))
        return min(steps, max(0, ceil(left * self.world)))
