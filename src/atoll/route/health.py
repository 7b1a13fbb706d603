"""Policy: who is left alone after a failure, and until when.

A circuit breaker: one request may try it then; what is not known to have been answered counts as failed again.
"""

import math
from typing import Final

WAITS_S: Final = (0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0)
"""After the first failure, the second in a row and so on; the last again and again."""


class Health:
    """Of one. Times are seconds by any clock that never runs backwards."""

    def __init__(self) -> None:
        self._failures = 0
        self.until_s = -math.inf
        """It is left alone until then."""

    def asked(self, now_s: float) -> None:
        """A request goes to it: the one that tries, if it had failed."""
        if self._failures:
            self._fail(now_s)

    def answered(self) -> None:
        """It has begun an answer."""
        self._failures, self.until_s = 0, -math.inf

    def failed(self, now_s: float) -> None:
        """It is not there any more. All requests with it may say so; who is left alone already has failed once."""
        if now_s >= self.until_s:
            self._fail(now_s)

    def _fail(self, now_s: float) -> None:
        self.until_s = now_s + WAITS_S[min(self._failures, len(WAITS_S) - 1)]
        self._failures += 1
