"""Policy: how long steps take, by how many tokens pass in them, as far as has been seen: for deadlines that are vain.

A line through what was measured, least squares, in which what is long past counts little.
"""

from dataclasses import dataclass
from typing import Final

_FADES: Final = 0.95
"""What a step counts for, one step later."""


@dataclass(slots=True)
class Pace:
    """Told of steps; knows nothing before the first."""

    _n: float = 0.0
    _tokens: float = 0.0
    _seconds: float = 0.0
    _squares: float = 0.0
    _products: float = 0.0

    def passed(self, tokens: int, seconds: float) -> None:
        """A step has been taken."""
        self._n = self._n * _FADES + 1
        self._tokens = self._tokens * _FADES + tokens
        self._seconds = self._seconds * _FADES + seconds
        self._squares = self._squares * _FADES + tokens * tokens
        self._products = self._products * _FADES + tokens * seconds

    def seconds(self, steps: int, tokens: int) -> float:
        """What so many steps with so many tokens in all will take; 0 where nothing is known."""
        if not self._n:
            return 0.0
        spread = self._n * self._squares - self._tokens**2
        each = 0.0
        if spread > 1e-9 * self._squares * self._n:
            each = max(0.0, (self._n * self._products - self._tokens * self._seconds) / spread)
        step = (self._seconds - each * self._tokens) / self._n
        if step < 0:
            step, each = 0.0, self._products / self._squares
        return steps * step + tokens * each
