"""Policy: a token bucket: how many bytes may leave now, so that on average it is no more than a rate."""

import math
from typing import Final

_BURST_S: Final = 0.02
_SMALLEST_BURST: Final = 4096


class TokenBucket:
    """Holds up to 20 ms' worth of tokens, one a byte; full at first."""

    def __init__(self, bytes_per_s: float) -> None:
        if not 0 < bytes_per_s < math.inf:
            raise ValueError(f"a rate must be above 0 and finite, not {bytes_per_s} bytes/s")
        self.bytes_per_s = bytes_per_s
        self.burst = max(_SMALLEST_BURST, int(bytes_per_s * _BURST_S))
        self._tokens = float(self.burst)
        self._seen: float | None = None

    def room(self, now: float) -> int:
        """How many bytes may leave."""
        if self._seen is not None:
            self._tokens = min(float(self.burst), self._tokens + (now - self._seen) * self.bytes_per_s)
        self._seen = now
        return max(0, int(self._tokens))

    def take(self, nbytes: int) -> None:
        """So many have left."""
        self._tokens -= nbytes

    def wait_s(self) -> float:
        """Until half a burst may leave: to come back for every byte would be busy work."""
        return max(0.0, (self.burst / 2 - self._tokens) / self.bytes_per_s)
