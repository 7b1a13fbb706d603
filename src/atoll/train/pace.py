"""Policy: how many steps a round should have: as few as hide the exchange that travels meanwhile.

Each peer proposes by what it saw; all take the largest proposal, at the same step. A round grows as soon as somebody
has waited, and shrinks seldom, for rounds of unequal length cost more than waits that come now and then.
(Sun et al. 2024, CO2, arXiv 2401.16265, leave the choice open.)
"""

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import Final

from atoll.train.schedule import FragmentSchedule

ROOM: Final = 1.1
"""Times what the exchange took."""
ROUNDS: Final = 50
"""Before a round may shrink; the first measured one may at once."""
NOTE_BYTES: Final = 4


class Pace:
    """What this peer sees. `most`: steps of a round at most."""

    def __init__(self, most: int) -> None:
        self.most = most
        self._began: int | None = None
        self._needs = 0.0

    def started(self, taken: int) -> None:
        """An exchange, after so many steps of the run."""
        self._began = taken

    def landed(self, taken: int) -> None:
        """It is there by now, if not before."""
        if self._began is not None:
            self._needs, self._began = taken - self._began, None

    def waited(self, taken: int, seconds: float, step_s: float) -> None:
        """It was not there, and has been waited for, where a step takes `step_s`."""
        if self._began is not None:
            self._needs, self._began = taken - self._began + seconds / max(step_s, 1e-9), None

    @property
    def proposal(self) -> int:
        """Steps of a round; 0: nothing has been seen yet."""
        return min(ceil(ROOM * self._needs), self.most)

    def note(self) -> bytes:
        """To tell the others."""
        return self.proposal.to_bytes(NOTE_BYTES)


def agreed(schedule: FragmentSchedule, taken: int, notes: Sequence[bytes], most: int) -> FragmentSchedule:
    """How all go on after so many steps, where a round has ended: as these told."""
    every = min(max(int.from_bytes(note[:NOTE_BYTES]) for note in notes), most)
    rounds = (taken - schedule.since) // schedule.every
    may_shrink = rounds >= ROUNDS or not schedule.since
    if every > schedule.every or (0 < every < schedule.every and may_shrink):
        return replace(schedule, every=every, since=taken)
    return schedule
