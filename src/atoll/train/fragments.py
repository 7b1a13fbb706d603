"""Policy: when a strategy exchanges what. Pure: the step's number in, what to finish and to start out.

Data-parallel training is `every=1`; Local SGD and DiLoCo exchange every H steps; `delay` takes the result that many
exchanges later, so that it travels while the next steps compute.
"""

from dataclasses import dataclass

from atoll.errors import InvalidConfig
from atoll.train.api import Finish, Start


@dataclass(frozen=True)
class FragmentSchedule:
    """One fragment: the whole model. `every`: steps between exchanges. `delay`: exchanges a result may be late, 0 or 1.

    `steps`: length of the run, which ends in an exchange even where its last round is short; None: no end.
    """

    every: int = 1
    delay: int = 0
    steps: int | None = None

    def __post_init__(self) -> None:
        if self.every < 1:
            raise InvalidConfig(f"steps between exchanges must be at least 1, not {self.every}")
        if self.delay not in (0, 1):
            raise InvalidConfig(f"delay must be 0 (wait for each exchange) or 1 (one late), not {self.delay}")

    def at(self, step: int) -> list[Start | Finish]:
        """What to do after the local part of step number `step` (from 0), in order."""
        if (step + 1) % self.every and step + 1 != self.steps:
            return []
        return [Finish(0), Start(0)] if self.delay else [Start(0), Finish(0)]
