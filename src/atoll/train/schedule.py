"""Policy: when a strategy exchanges what. Pure: the step's number in, what to start and to finish out.

    fragment   0: exchanged after steps H, 2H, ...; fragment p of P: p H / P later, so that the link is used evenly
    result     taken `delay` steps after it was asked for; they are what it has to travel. Each peer may have its own
               delay, by its link

Data-parallel training is H = 1, DiLoCo one fragment without delay (Douillard et al. 2023, arXiv 2311.08105), Streaming
DiLoCo all of it (2025, arXiv 2501.18512). A run ends with all fragments exchanged once more.
"""

from dataclasses import dataclass
from typing import Final

from atoll.errors import InvalidConfig

AT_ONCE: Final = 16
"""So many exchanges are under way at most."""


@dataclass(frozen=True, slots=True)
class Start:
    """Begin to exchange fragment `fragment`."""

    fragment: int


@dataclass(frozen=True, slots=True)
class Finish:
    """Take what came of the exchange of fragment `fragment` begun last. Nothing, if that was taken early."""

    fragment: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Finish what is under way of fragment `fragment`, if anything, and start what was learnt until then."""

    fragment: int


@dataclass(frozen=True, slots=True)
class Await:
    """Wait for the exchange of fragment `fragment` and go to the mean as it is; it stays under way, and is taken again
    when it is finished."""

    fragment: int


@dataclass(frozen=True, slots=True)
class Advance:
    """Of fragment `fragment`, wait for the stage that is under way and begin the next one."""

    fragment: int


Action = Start | Finish | Swap | Await | Advance


@dataclass(frozen=True)
class FragmentSchedule:
    """`every`: steps from one exchange of a fragment to its next. `steps`: length of the run; None: no end. `longest`:
    the `delay` of the peer with the slowest link, where each has its own. `since`: steps after which rounds were given
    this length, where they are `late`.

    `late`: take each result when the next exchange begins, a whole round late; with all others, every `consensus`
    rounds wait for the newest one too (0: only at the end). `first_waits`: the first round is waited for and taken as
    it is, so that the second has something to go on from. `stages`: of an exchange, between which half a round lies at
    most. InvalidConfig names a field that can't be.
    """

    every: int = 1
    fragments: int = 1
    delay: int = 0
    steps: int | None = None
    late: bool = False
    consensus: int = 0
    first_waits: bool = False
    stages: int = 1
    longest: int = 0
    since: int = 0

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InvalidConfig(f"every must be at least 1 step, not {self.every}")
        if self.fragments < 1:
            raise InvalidConfig(f"fragments must be at least 1, not {self.fragments}")
        if self.every % self.fragments:
            raise InvalidConfig(f"every must be a multiple of fragments ({self.fragments}), not {self.every}")
        if not 0 <= self.delay < self.apart:
            raise InvalidConfig(
                f"delay must be from 0 to {self.apart - 1} steps, less than every / fragments = "
                f"{self.every} / {self.fragments}, not {self.delay}"
            )
        if self.consensus < 0:
            raise InvalidConfig(f"consensus must be at least 0 rounds, not {self.consensus}")
        if self.late and (self.fragments > 1 or self.delay):
            raise InvalidConfig("late is for one fragment, and leaves no other delay")
        if self.first_waits and not self.late:
            raise InvalidConfig("first_waits is for what is late")

    @property
    def apart(self) -> int:
        """Steps between the exchanges of one fragment and the next."""
        return self.every // self.fragments

    def at(self, step: int) -> list[Action]:
        """What to do after the local part of step number `step` (from 0), in order."""
        taken = step + 1
        if self.late:
            return self._late(taken)
        everything = range(self.fragments)
        if taken == self.steps:
            travelling = [p for past in range(taken - self.delay, taken) for p in everything if self._begins(p, past)]
            some = [everything[first : first + AT_ONCE] for first in range(0, self.fragments, AT_ONCE)]
            return [*map(Finish, travelling), *(act(p) for few in some for act in (Start, Finish) for p in few)]
        return [
            *(Start(p) for p in everything if self._begins(p, taken)),
            *(Finish(p) for p in everything if self._begins(p, taken - self.delay)),
        ]

    def settles(self, step: int) -> bool:
        """Have all peers, after that step, what has been exchanged last?"""
        taken = step + 1
        if self.late:
            return any(not isinstance(action, Advance) for action in self._late(taken))
        slowest = max(self.delay, self.longest)
        return taken == self.steps or any(self._begins(p, taken - slowest) for p in range(self.fragments))

    def _begins(self, fragment: int, taken: int) -> bool:
        return taken > 0 and (taken - fragment * self.apart) % self.every == 0

    def _late(self, taken: int) -> list[Action]:
        rounds, more = divmod(taken - self.since, self.every)
        if more and taken != self.steps:
            first = self.every // 2
            return [Advance(0)] if taken > self.every and first <= more < first + self.stages - 1 else []
        if self.first_waits and taken == self.every and not self.since and taken != self.steps:
            return [Swap(0), Await(0)]
        waits = taken == self.steps or (self.consensus and rounds % self.consensus == 0)
        return [Swap(0), *([Finish(0)] if waits else [])]
