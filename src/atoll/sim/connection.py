"""Driver: connections in virtual time: what is sent over one arrives in the order of sending, whatever jitter and luck.

Messages leave one after the other, the next when the last byte of the one before has left; their latencies overlap.
Small ones are computed when they are given, so that they cost one event each.
"""

from collections import deque
from collections.abc import Callable
from typing import Any

from atoll.errors import InvalidData
from atoll.sim.net import SMALL_BYTES, Flow, Network, Sink

Message = tuple[int, Callable[..., object], tuple[Any, ...]]


class Connection(Sink):
    """One direction of a connection, or of `streams` side by side, which have as many shares of a link.

    `jitter()` is extra latency in units of the way's own. `ready()` is called whenever a large message, and all that
    waited for it, has left. `post`: as the loop's, for arrivals.
    """

    __slots__ = (
        "_cap", "_flow", "_free_ns", "_grows_ns", "_jitter", "_last_ns", "_leaving", "_left", "_network", "_post",
        "_ready", "_start", "_waiting", "_way", "source", "target",
    )  # fmt: skip

    def __init__(
        self,
        network: Network,
        source: str,
        target: str,
        *,
        streams: int = 1,
        jitter: Callable[[], float] | None = None,
        ready: Callable[[], object] | None = None,
        post: Callable[..., object] | None = None,
    ) -> None:
        self.source, self.target = source, target
        self._post = post or network.loop.post
        self._network, self._jitter, self._ready = network, jitter, ready
        self._way = network.way(source, target, streams)
        self._waiting: deque[Message] = deque()
        self._leaving: Message | None = None
        """A large one; or a small one, where the way is down."""
        self._flow: Flow | None = None
        self._start: int | None = None  # the token of its start, while small ones are still leaving
        self._left = 0
        self._free_ns = 0  # when the small ones have left
        self._last_ns = -1  # the last arrival
        self._cap, self._grows_ns = self._way.first_cap, network.loop.now_ns + self._way.rtt_ns

    @property
    def latency_s(self) -> float:
        """Of its way."""
        return self._way.latency_ns / 1e9

    @property
    def busy(self) -> bool:
        """Does something wait until something else has left?"""
        return self._leaving is not None

    def carry(self, nbytes: int, fn: Callable[..., object], *args: Any) -> None:
        """Call `fn(*args)` when `nbytes` have arrived, and all that was sent before. InvalidData: less than none."""
        if nbytes < 0:
            raise InvalidData(f"a message of {nbytes} bytes from {self.source!r}: it must have at least 0")
        if self._leaving is None:
            self._begin((nbytes, fn, args))
        else:
            self._waiting.append((nbytes, fn, args))

    def abort(self) -> None:
        """Forget what has not left; what has left still arrives."""
        self._waiting.clear()
        if self._flow is not None:
            self._network.abort(self._flow)
        if self._start is not None:
            self._network.loop.cancel(self._start)
        self._leaving = self._flow = self._start = None

    def left(self) -> int:
        """Bytes that have left so far."""
        flow = self._flow
        if flow is None or flow._activity is None:
            return self._left
        return self._left + flow.nbytes - self._network.fluid.remaining(flow._activity)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _begin(self, message: Message) -> None:
        loop, way = self._network.loop, self._way
        nbytes = message[0]
        free_ns = self._free_ns if self._free_ns > loop.now_ns else loop.now_ns
        if nbytes < SMALL_BYTES or not way.shared:
            bottleneck = way.bottleneck()
            if bottleneck:
                self._free_ns = free_ns + round(nbytes / bottleneck * 1e9)
                self._left += nbytes
                for resource in way.resources:
                    self._network.fluid.credit(resource, nbytes)
                self._arrive(self._free_ns, message)
                return
        self._leaving = message
        if free_ns > loop.now_ns:
            self._start = loop.post(free_ns - loop.now_ns, self._launch)
        else:
            self._launch()

    def _launch(self) -> None:
        assert self._leaving is not None
        self._start = None
        flow = self._flow = Flow(self._network, self._way, self.source, self.target, self._leaving[0], self)
        flow._cap, flow._grows_ns = self._cap, self._grows_ns
        self._network.launch(flow)

    def sent(self, latency_ns: int) -> None:
        """The last byte of what is leaving has left."""
        flow, message = self._flow, self._leaving
        assert flow is not None
        assert message is not None
        self._flow = self._leaving = None
        self._cap, self._grows_ns = flow._cap, flow._grows_ns
        self._left += flow.nbytes
        self._arrive(self._network.loop.now_ns, message)
        while self._waiting and self._leaving is None:
            self._begin(self._waiting.popleft())
        if self._leaving is None and self._ready is not None:
            self._ready()

    def _arrive(self, left_ns: int, message: Message) -> None:
        """Post the arrival, after all others."""
        _, fn, args = message
        arrival_ns = left_ns + self._way.latency_ns
        if self._jitter is not None:
            arrival_ns += int(self._way.latency_ns * self._jitter())
        if arrival_ns <= self._last_ns:
            arrival_ns = self._last_ns + 1
        self._last_ns = arrival_ns
        self._post(arrival_ns - self._network.loop.now_ns, fn, *args)
