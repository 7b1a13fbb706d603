"""Policy: how long to wait before an engine that ended is started again, real or virtual."""

from typing import Final

AGAIN_S: Final = (0.1, 1.0, 5.0)
"""Waits before it is started again; the last again and again."""
STEADY_S: Final = 30.0
"""An engine that lived so long is started again at once."""


class Restarts:
    """Of one engine."""

    def __init__(self) -> None:
        self._failures = 0

    def wait_s(self, lived_s: float) -> float:
        """It ended, `lived_s` after it was started."""
        self._failures = 0 if lived_s > STEADY_S else self._failures + 1
        return AGAIN_S[min(self._failures, len(AGAIN_S) - 1)]
