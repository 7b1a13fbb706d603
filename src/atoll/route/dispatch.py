"""Policy: where each request goes, and where it goes next: a balance among those who can be asked.

The same object decides for real endpoints (`router`) and for virtual engines.
"""

from collections.abc import Collection, Sequence

from atoll.route.api import Asked, Balance, Choice
from atoll.route.health import Health


class Dispatch:
    """Among those of these names. They have numbers, from 0 on. Times are seconds."""

    def __init__(self, names: Sequence[str], balance: Balance) -> None:
        self.names, self._balance = tuple(names), balance
        self._health = [Health() for _ in names]
        self.open = [0] * len(names)
        """Requests that are with each."""
        self.asked, self.failures = [0] * len(names), [0] * len(names)
        """How many each has had, and how many of them failed there."""

    def choose(self, key: str, ready: Collection[int], tried: Collection[int], now_s: float) -> int | None:
        """Who is asked now: one of `ready` that this request hasn't tried; None: nobody. It ends with `ended`."""
        choices = [
            Choice(number, self.names[number], self.open[number])
            for number in sorted(ready)
            if number not in tried and self.reachable(number, now_s)
        ]
        if not choices:
            return None
        which = self._balance.choose(Asked(key), choices)
        self._health[which].asked(now_s)
        self.open[which] += 1
        self.asked[which] += 1
        return which

    def answered(self, which: int) -> None:
        """The first of an answer has come from there."""
        self._health[which].answered()

    def refused(self, which: int) -> None:
        """It has too many; it is there."""
        self.failures[which] += 1
        self._health[which].answered()

    def failed(self, which: int, now_s: float) -> None:
        """It can't be reached, or died, or takes nothing more: others are asked for a while."""
        self.failures[which] += 1
        self._health[which].failed(now_s)

    def ended(self, which: int) -> None:
        """A request is no longer with it, for whatever reason."""
        self.open[which] -= 1

    def reachable(self, which: int, now_s: float) -> bool:
        """Nothing speaks against asking it."""
        return now_s >= self._health[which].until_s

    def wait_s(self, now_s: float) -> float:
        """Until one may be asked again."""
        return max(0.0, min(health.until_s for health in self._health) - now_s)
