"""Driver: a line before some servers in virtual time, and the census that holds every line to Little's law."""

from collections import deque
from collections.abc import Callable

from atoll.errors import InvalidConfig
from atoll.sim.loop import Loop

Done = Callable[[], object]


class Census:
    """Who is inside of something, over time; in whole nanoseconds, so that its laws hold exactly."""

    def __init__(self, loop: Loop) -> None:
        self.inside = 0
        self.left = 0
        self.stays_ns = 0
        """Of those who have left, together."""
        self._loop = loop
        self._area = self._entered_sum = self._changed_ns = 0

    def enter(self) -> int:
        """One more; returns what `leave` wants to be told."""
        self._change(+1)
        self._entered_sum += self._loop.now_ns
        return self._loop.now_ns

    def leave(self, entered_ns: int) -> None:
        """One less."""
        self._change(-1)
        self._entered_sum -= entered_ns
        self.left += 1
        self.stays_ns += self._loop.now_ns - entered_ns

    def mean_stay_s(self) -> float:
        """W of those who have left."""
        return self.stays_ns / self.left / 1e9 if self.left else 0.0

    def mean_inside(self) -> float:
        """L, over all of the time so far."""
        self._change(0)
        return self._area / self._loop.now_ns if self._loop.now_ns else 0.0

    def follows_little(self) -> bool:
        """Is the time integral of the number inside (L t) the sum of all stays (lambda t W; Little, 1961)? If not, the
        model that keeps this census has lost somebody, or let one leave twice."""
        self._change(0)
        staying = self.inside * self._loop.now_ns - self._entered_sum
        return self.inside >= 0 and self._area == self.stays_ns + staying

    def _change(self, by: int) -> None:
        self._area += self.inside * (self._loop.now_ns - self._changed_ns)
        self._changed_ns = self._loop.now_ns
        self.inside += by


class Queue:
    """First come first served by the first of `servers` that is free."""

    def __init__(self, loop: Loop, servers: int = 1) -> None:
        if servers < 1:
            raise InvalidConfig(f"a queue needs 1 server or more, not {servers}")
        self.inside, self.waiting = Census(loop), Census(loop)
        self._loop, self._free = loop, servers
        self._line: deque[tuple[int, Done, int, int]] = deque()
        self._busy: set[int] = set()

    def submit(self, service_ns: int, done: Done) -> None:
        """Call `done` after the wait and the service."""
        self._line.append((service_ns, done, self.inside.enter(), self.waiting.enter()))
        self._serve()

    def abort(self) -> None:
        """Forget all who wait or are served; nobody is told."""
        for token in self._busy:
            self._loop.cancel(token)
        self._free += len(self._busy)
        self._line.clear()
        self._busy.clear()
        self.inside, self.waiting = Census(self._loop), Census(self._loop)

    def _serve(self) -> None:
        while self._free and self._line:
            service_ns, done, entered_ns, waits_since_ns = self._line.popleft()
            self._free -= 1
            self.waiting.leave(waits_since_ns)
            self._start(service_ns, done, entered_ns)

    def _start(self, service_ns: int, done: Done, entered_ns: int) -> None:
        def finish() -> None:
            self._busy.discard(token)
            self._free += 1
            self.inside.leave(entered_ns)
            self._serve()
            done()

        token = self._loop.post(service_ns, finish)
        self._busy.add(token)
