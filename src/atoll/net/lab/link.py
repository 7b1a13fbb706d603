"""Policy: when what enters one direction of a link comes out, if it does."""

from collections.abc import Callable

from atoll.net.lab.api import Shape


class Link:
    """A queue that drains at the link's rate and drops what doesn't fit, then random loss, then the delay.

    `random()` is from 0 to 1; times are seconds of any one clock.
    """

    def __init__(self, shape: Shape, random: Callable[[], float]) -> None:
        self._random = random
        self._free_at = 0.0
        self._last = 0.0
        self.set(shape)

    def set(self, shape: Shape) -> None:
        """Another shape, for what is to come."""
        self.shape = shape
        self._byte_s = 8 / shape.rate_bits_per_s
        self._room_s = shape.room_bytes * self._byte_s
        self._delay_s, self._jitter_s, self._loss = shape.delay_s, shape.jitter_s, shape.loss

    def arrival(self, nbytes: int, now: float) -> float | None:
        """When a packet that enters now comes out, or None."""
        if self._free_at - now > self._room_s:
            return None
        moment = self._pass(nbytes, now)
        if self._loss and self._random() < self._loss:
            return None
        return self._travel(moment)

    def arrival_of_stream(self, nbytes: int, now: float) -> float:
        """The same for bytes of a stream: nothing gets lost, and who feeds it minds the queue."""
        return self._travel(self._pass(nbytes, now))

    def _pass(self, nbytes: int, now: float) -> float:
        begins = self._free_at if self._free_at > now else now
        self._free_at = begins + nbytes * self._byte_s
        return self._free_at

    def _travel(self, moment: float) -> float:
        if not self._jitter_s:
            return moment + self._delay_s
        self._last = max(self._last, moment + self._delay_s + self._random() * self._jitter_s)
        return self._last
