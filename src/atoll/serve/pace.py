"""Policy: how long steps take at the very least, by the fastest of late: for deadlines that can't be met."""

from collections import deque
from dataclasses import dataclass, field
from typing import Final

_LATELY: Final = 128
"""Steps."""


@dataclass(slots=True)
class Pace:
    """Told of steps; knows nothing before the first."""

    _steps: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=_LATELY))
    """Seconds, and seconds for each token."""

    def passed(self, tokens: int, seconds: float) -> None:
        """A step has been taken."""
        self._steps.append((seconds, seconds / tokens))

    def seconds(self, steps: int, tokens: int) -> float:
        """What so many steps with so many tokens in all will take at least; 0 where nothing is known."""
        if not self._steps:
            return 0.0
        step_s, token_s = min(step for step, _ in self._steps), min(token for _, token in self._steps)
        return max(steps * step_s, tokens * token_s)
