"""Driver: messages over a fabric in virtual time: the latency of the way, once, plus bytes at the rate the links give.

What TCP adds is a bound on the rate: window per round trip, losses (Mathis et al., 1997), slow start (RFC 6928).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import inf, prod, sqrt

from atoll.errors import InvalidConfig, InvalidData
from atoll.fabric import Fabric, Link, Route
from atoll.sim.fluid import Activity, Demand, Fluid, Resource, Usage
from atoll.sim.loop import Loop

SMALL_BYTES = 16 * 1024
"""Messages below this take no part in sharing: over before rates would settle, and by far the most of all."""

MATHIS = 1.22  # sqrt(3 / 2)
INITIAL_WINDOW = 10  # segments


@dataclass(frozen=True)
class Tcp:
    """What one stream can do. InvalidConfig: a number out of range."""

    window_bytes: float = 4 << 20  # the most Linux takes by default
    segment_bytes: int = 1460
    efficiency: float = 0.96  # payload among all bytes on a link
    slow_start: bool = False

    def __post_init__(self) -> None:
        if not (self.window_bytes > 0 and self.segment_bytes > 0 and 0 < self.efficiency <= 1):
            raise InvalidConfig(f"{self} needs a window and segments above 0, and an efficiency above 0 and up to 1")

    def bound(self, rtt_s: float, loss: float) -> float:
        """Bytes per second in the long run."""
        if not rtt_s:
            return inf
        by_loss = MATHIS * self.segment_bytes / (rtt_s * sqrt(loss)) if loss else inf
        return min(self.window_bytes / rtt_s, by_loss)


IDEAL = Tcp(window_bytes=inf, efficiency=1.0)
"""Bounded by the capacities of the links alone, as a good RDMA network is; their losses count for nothing."""


class _Way:
    """All that messages of one source, target, flow number and count of streams have in common."""

    __slots__ = ("_demand", "final_cap", "first_cap", "fluid", "full", "latency_ns", "resources", "rtt_ns", "streams")

    def __init__(self, network: "Network", route: Route, rtt_s: float, streams: int) -> None:
        tcp = network.tcp
        loss = 1 - prod(1 - link.loss for link in route)
        self.latency_ns = round(_latency_s(route) * 1e9)
        self.resources = [network.resource(link) for link in route]
        self.rtt_ns = round(rtt_s * 1e9)
        self.final_cap = streams * tcp.bound(rtt_s, loss)
        self.first_cap = inf
        if tcp.slow_start and rtt_s:
            self.first_cap = streams * INITIAL_WINDOW * tcp.segment_bytes / rtt_s
        self.full = min((link.bytes_per_s for link in route), default=inf)
        self.fluid, self.streams = network.fluid, streams
        self._demand: Demand | None = None

    @property
    def shared(self) -> bool:
        """Does it lead anywhere? To oneself nothing takes any time."""
        return bool(self.resources)

    def demand(self) -> Demand:
        """Of a large message; many ways carry small ones only."""
        if self._demand is None:
            cap = min(self.first_cap, self.final_cap)
            self._demand = self.fluid.demand(dict.fromkeys(self.resources, 1.0), weight=self.streams, cap=cap)
        return self._demand

    def bottleneck(self) -> float:
        """Bytes per second that its narrowest link has now; 0: one is down."""
        return min([resource.capacity for resource in self.resources], default=inf)


class Sink:
    """What hears of a message before it arrives."""

    __slots__ = ()

    def sent(self, latency_ns: int) -> None:
        """The last byte has left, and arrives so much later."""
        raise NotImplementedError


class Flow:
    """A message on its way."""

    __slots__ = (
        "_activity",
        "_cap",
        "_done",
        "_grows_ns",
        "_growth",
        "_network",
        "_token",
        "_way",
        "nbytes",
        "source",
        "target",
    )  # fmt: skip

    def __init__(
        self, network: "Network", way: _Way, source: str, target: str, nbytes: int, done: Callable[[], object] | Sink
    ) -> None:
        self.source, self.target, self.nbytes = source, target, nbytes
        self._network, self._way, self._done = network, way, done
        self._activity: Activity | None = None
        self._token: int | None = None  # of its arrival
        self._growth: int | None = None  # of its next step in slow start
        self._cap = way.first_cap
        self._grows_ns = network.loop.now_ns + way.rtt_ns

    def _sent(self) -> None:
        """The last byte has left."""
        self._activity = None
        network = self._network
        if self._growth is not None:
            network.loop.cancel(self._growth)
            self._growth = None
        if isinstance(self._done, Sink):
            del network._live[self]
            self._done.sent(self._way.latency_ns)
        else:
            self._token = network.loop.post(self._way.latency_ns, self._arrived)

    def _arrived(self) -> None:
        del self._network._live[self]
        if isinstance(self._done, Sink):
            self._done.sent(0)
        else:
            self._done()

    def _grow(self) -> None:
        """One round trip of slow start is over."""
        assert self._activity is not None
        self._growth = None
        self._cap *= 2
        way, network = self._way, self._network
        self._grows_ns = network.loop.now_ns + way.rtt_ns
        if self._cap < min(way.full, way.final_cap):
            self._growth = network.loop.post(way.rtt_ns, self._grow)
            network.fluid.set_cap(self._activity, self._cap)
        else:
            network.fluid.set_cap(self._activity, way.final_cap)


class _Batch(Sink):
    """Messages of which only the last arrival matters."""

    __slots__ = ("done", "last_ns", "left", "loop")

    def __init__(self, loop: Loop, left: int, done: Callable[[], object]) -> None:
        self.loop, self.left, self.done = loop, left, done
        self.last_ns = loop.now_ns

    def sent(self, latency_ns: int) -> None:
        self.left -= 1
        self.last_ns = max(self.last_ns, self.loop.now_ns + latency_ns)
        if not self.left:
            self.loop.post(self.last_ns - self.loop.now_ns, self.done)


class Network:
    """Carries messages between the nodes of `fabric`, as it is now; shares `fluid` with what else happens there."""

    def __init__(self, loop: Loop, fabric: Fabric, *, tcp: Tcp = IDEAL, fluid: Fluid | None = None) -> None:
        self.loop, self.fabric, self.tcp = loop, fabric, tcp
        self.fluid = fluid or Fluid(loop)
        self.resources: dict[Link, Resource] = {}
        self._ways: dict[tuple[str, str, int, int], _Way] = {}
        self._live: dict[Flow, None] = {}
        for link in fabric.links.values():
            self.resource(link)

    def resource(self, link: Link) -> Resource:
        """What stands for `link` among all that is shared. One added to the fabric since is good for new ways."""
        resource = self.resources.get(link)
        if resource is None:
            resource = self.fluid.resource(link.name, link.bytes_per_s * self.tcp.efficiency)
            self.resources[link] = resource
        return resource

    def send(
        self, source: str, target: str, nbytes: int, done: Callable[[], object], *, streams: int = 1, flow: int = 0
    ) -> Flow:
        """Call `done` when `nbytes` have arrived. `streams` side by side have as many shares and bounds of TCP; `flow`
        chooses among equal routes. InvalidData: no route, or a number out of range."""
        sent = Flow(self, self.way(source, target, streams, flow), source, target, nbytes, done)
        self._send(sent)
        return sent

    def send_all(
        self, messages: Iterable[tuple[str, str, int]], done: Callable[[], object], *, streams: int = 1, flow: int = 0
    ) -> list[Flow]:
        """Send (source, target, nbytes) at once and call `done` when all have arrived: never, where one is aborted."""
        messages = list(messages)
        batch = _Batch(self.loop, len(messages), done)
        if not messages:
            self.loop.post(0, done)
        flows = []
        for source, target, nbytes in messages:
            flows.append(Flow(self, self.way(source, target, streams, flow), source, target, nbytes, batch))
            self._send(flows[-1])
        return flows

    def abort(self, flow: Flow) -> None:
        """Forget a message on its way; one that has arrived is left as it is."""
        if flow not in self._live:
            return
        del self._live[flow]
        if flow._activity is not None:
            self.fluid.cancel(flow._activity)
        for token in (flow._token, flow._growth):
            if token is not None:
                self.loop.cancel(token)

    def abort_host(self, host: str) -> list[Flow]:
        """Abort all to and from `host`, as when it crashes; returns them."""
        flows = [flow for flow in self._live if host in (flow.source, flow.target)]
        for flow in flows:
            self.abort(flow)
        return flows

    def set_link(self, link: Link, bytes_per_s: float) -> None:
        """From now on: 0 is down (who is on it waits), `link.bytes_per_s` as built. InvalidData: negative, NaN."""
        self.fluid.set_capacity(self.resource(link), bytes_per_s * self.tcp.efficiency)

    def usage(self, link: Link) -> Usage:
        """Payload bytes that `link` has carried; small messages count from when they are sent."""
        return self.fluid.usage(self.resource(link))

    def up(self, source: str, target: str) -> bool:
        """Has every link on that way some capacity now? InvalidData: there is no way."""
        return self.way(source, target).bottleneck() > 0

    def latency_s(self, source: str, target: str) -> float:
        """Of that way. InvalidData: there is none."""
        return self.way(source, target).latency_ns / 1e9

    def flows(self) -> list[Flow]:
        """Those on their way, oldest first."""
        return list(self._live)

    # -- for streams ---------------------------------------------------------------------------------------------------

    def way(self, source: str, target: str, streams: int = 1, flow: int = 0) -> _Way:
        """What messages of this kind have in common."""
        key = source, target, flow, streams
        return self._ways.get(key) or self._find(*key)

    def launch(self, flow: Flow) -> None:
        """It begins to leave, at the rate that others leave it."""
        way = flow._way
        flow._activity = self.fluid.start_on(way.demand(), flow.nbytes or 1, flow._sent)
        self._live[flow] = None
        if flow._cap > way.first_cap:  # its stream has done a part of slow start
            self.fluid.set_cap(flow._activity, min(flow._cap, way.final_cap))
        if flow._cap < min(way.full, way.final_cap):
            flow._growth = self.loop.post(max(0, flow._grows_ns - self.loop.now_ns), flow._grow)

    # -- inside --------------------------------------------------------------------------------------------------------

    def _send(self, flow: Flow) -> None:
        way = flow._way
        if flow.nbytes >= SMALL_BYTES and way.shared:
            self.launch(flow)
            return
        if not 0 <= flow.nbytes < inf:
            raise InvalidData(f"a message of {flow.nbytes} bytes from {flow.source!r}: it must have at least 0")
        bottleneck = way.bottleneck()
        if not bottleneck:  # wait until the link is up again
            self.launch(flow)
            return
        for resource in way.resources:
            self.fluid.credit(resource, flow.nbytes)
        self._live[flow] = None
        flow._token = self.loop.post(way.latency_ns + round(flow.nbytes / bottleneck * 1e9), flow._arrived)

    def _find(self, source: str, target: str, number: int, streams: int) -> _Way:
        if streams < 1:
            raise InvalidData(f"{streams} streams from {source!r} to {target!r}: there must be at least 1")
        route = self.fabric.route(source, target, number)
        rtt_s = 0.0
        if self.tcp != IDEAL:
            rtt_s = _latency_s(route) + _latency_s(self.fabric.route(target, source, number))
        way = self._ways[source, target, number, streams] = _Way(self, route, rtt_s, streams)
        return way


def _latency_s(route: Route) -> float:
    return sum(link.latency_s for link in route)
