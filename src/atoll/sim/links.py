"""Driver: a first link model: one direction, latency plus bytes over bandwidth, first come first served."""

from collections.abc import Callable
from typing import Any

from atoll.sim.loop import Loop


class Outlet:
    """A computer's way out, of so many bytes per second, which all its links share."""

    def __init__(self, bytes_per_s: float) -> None:
        if bytes_per_s <= 0:
            raise ValueError(f"a link needs a rate > 0, not {bytes_per_s} bytes/s")
        self.bytes_per_s = bytes_per_s
        self.free_ns = 0


class Link:
    """Carries messages in order, whatever the tie-break and the jitter."""

    def __init__(self, loop: Loop, latency_s: float, outlet: Outlet, jitter: Callable[[], float] = lambda: 0.0) -> None:
        if latency_s < 0:
            raise ValueError(f"a link needs latency >= 0, not {latency_s} s")
        self.loop, self.latency_s, self.outlet, self.jitter = loop, latency_s, outlet, jitter
        self._last_arrival_ns = -1

    def carry(self, nbytes: int, fn: Callable[..., object], *args: Any) -> None:
        """Call `fn(*args)` when `nbytes` have arrived; `jitter()` is the extra latency in units of the link's own."""
        outlet = self.outlet
        outlet.free_ns = max(self.loop.now_ns, outlet.free_ns) + int(nbytes / outlet.bytes_per_s * 1e9)
        latency_ns = int(self.latency_s * (1 + self.jitter()) * 1e9)
        arrival_ns = self._last_arrival_ns = max(outlet.free_ns + latency_ns, self._last_arrival_ns + 1)
        self.loop.post(arrival_ns - self.loop.now_ns, fn, *args)
