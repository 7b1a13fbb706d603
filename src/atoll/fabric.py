"""Policy: who is joined to whom, how wide, far and lossy, and over which links a message goes from one to another.

For path planning, placement and the simulator. k shortest routes: Yen, 1971; fat tree: Al-Fares et al., 2008.
"""

import heapq
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import xxhash

from atoll.errors import InvalidData


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One direction. `shared`: what bounds it together with others (a half-duplex medium, a PCIe root)."""

    number: int  # in order of adding
    name: str
    source: str
    target: str
    bytes_per_s: float
    latency_s: float = 0.0
    loss: float = 0.0
    shared: "Link | None" = None

    def __post_init__(self) -> None:
        for what, value, end in (
            ("bytes_per_s", self.bytes_per_s, math.inf),
            ("latency_s", self.latency_s, math.inf),
            ("loss", self.loss, 1),
        ):
            if not 0 <= value < end:
                raise InvalidData(f"{what}={value} of link {self.name!r} must be at least 0 and below {end}")


Route = tuple[Link, ...]


def _hop(link: Link) -> float:
    return 1.0


class Fabric:
    """Hosts, switches and the links between them. Any of them passes on what is for others."""

    def __init__(self) -> None:
        self.hosts: list[str] = []
        """Those that send and receive; the others are switches."""
        self.links: dict[str, Link] = {}
        self._out: dict[str, list[Link]] = {}
        self._into: dict[str, list[Link]] = {}
        self._hops: dict[str, dict[str, int]] = {}  # target -> node -> hops

    def add_host(self, name: str) -> str:
        """InvalidData: there is a node of that name."""
        self.hosts.append(self.add_switch(name))
        return name

    def add_switch(self, name: str) -> str:
        """A node that only passes on. InvalidData: there is a node of that name."""
        if name in self._out:
            raise InvalidData(f"there is a node {name!r} already; give each another name")
        self._out[name], self._into[name] = [], []
        return name

    def add_link(
        self,
        source: str,
        target: str,
        bytes_per_s: float,
        latency_s: float = 0.0,
        loss: float = 0.0,
        *,
        name: str | None = None,
        shared: Link | None = None,
    ) -> Link:
        """One direction; a second link between two nodes needs a name. InvalidData: unknown node, name taken, numbers
        out of range."""
        self._check(source, target)
        name = name or f"{source}->{target}"
        link = self._add(Link(len(self.links), name, source, target, bytes_per_s, latency_s, loss, shared))
        self._out[source].append(link)
        self._into[target].append(link)
        self._hops.clear()
        return link

    def add_shared(self, name: str, bytes_per_s: float) -> Link:
        """What bounds several links together, to be given to them as `shared`; it stands on their routes."""
        return self._add(Link(len(self.links), name, name, name, bytes_per_s))

    def join(
        self,
        one: str,
        other: str,
        bytes_per_s: float,
        latency_s: float = 0.0,
        loss: float = 0.0,
        *,
        shared: Link | None = None,
    ) -> tuple[Link, Link]:
        """Full duplex: a link each way."""
        there = self.add_link(one, other, bytes_per_s, latency_s, loss, shared=shared)
        return there, self.add_link(other, one, bytes_per_s, latency_s, loss, shared=shared)

    def join_half_duplex(
        self, one: str, other: str, bytes_per_s: float, latency_s: float = 0.0, loss: float = 0.0
    ) -> tuple[Link, Link]:
        """A link each way, and both together no faster than one."""
        shared = self.add_shared(f"{one}={other}", bytes_per_s)
        return self.join(one, other, bytes_per_s, latency_s, loss, shared=shared)

    def route(self, source: str, target: str, flow: int = 0) -> Route:
        """A route of fewest hops; where there are several, each node chooses by a hash of source, target and flow
        (equal-cost multi-path), the same on every machine. InvalidData: unknown node, or no way."""
        hops = self._hops_to(source, target)
        links = []
        node = source
        while node != target:
            choices = self._nearer(node, hops)
            choice = 0
            if len(choices) > 1:
                key = f"{flow}\0{source}\0{target}\0{node}".encode()
                choice = xxhash.xxh3_64_intdigest(key) % len(choices)
            links.append(choices[choice])
            node = links[-1].target
        return _with_shared(links)

    def shortest_routes(self, source: str, target: str) -> list[Route]:
        """All routes of fewest hops: those `route` chooses among. InvalidData as there."""
        hops = self._hops_to(source, target)
        routes: list[list[Link]] = [[]]
        for _ in range(hops[source]):
            routes = [[*r, link] for r in routes for link in self._nearer(r[-1].target if r else source, hops)]
        return [_with_shared(route) for route in routes]

    def k_shortest_routes(self, source: str, target: str, k: int, cost: Callable[[Link], float] = _hop) -> list[Route]:
        """Up to `k` cheapest routes without loops, cheapest first; `cost` of a link (hops unless given) is at least 0.
        InvalidData as in `route`."""
        self._hops_to(source, target)
        candidates: list[tuple[float, list[int], list[Link]]] = []
        seen: set[tuple[int, ...]] = set()

        def propose(route: list[Link]) -> None:
            numbers = [link.number for link in route]
            if tuple(numbers) not in seen:
                seen.add(tuple(numbers))
                heapq.heappush(candidates, (sum(cost(link) for link in route), numbers, route))

        propose(self._cheapest(source, target, cost, without_nodes=set(), without_links=set()) or [])
        found: list[list[Link]] = []
        while candidates and len(found) < k:
            _, _, route = heapq.heappop(candidates)
            found.append(route)
            for i, link in enumerate(route):  # leave it here, for whatever no route found so far goes on to
                root = route[:i]
                taken = {other[i] for other in found if other[:i] == root}
                spur = self._cheapest(link.source, target, cost, {passed.source for passed in root}, taken)
                if spur:
                    propose(root + spur)
        return [_with_shared(route) for route in found]

    def _cheapest(
        self,
        source: str,
        target: str,
        cost: Callable[[Link], float],
        without_nodes: set[str],
        without_links: set[Link],
    ) -> list[Link] | None:
        """Dijkstra, 1959; of equal ones, that whose links were added first."""
        heap: list[tuple[float, list[int], str, list[Link]]] = [(0.0, [], source, [])]
        done = set(without_nodes)
        while heap:
            so_far, numbers, node, route = heapq.heappop(heap)
            if node == target:
                return route
            if node not in done:
                done.add(node)
                for link in self._out[node]:
                    if link not in without_links and link.target not in done:
                        entry = (so_far + cost(link), [*numbers, link.number], link.target, [*route, link])
                        heapq.heappush(heap, entry)
        return None

    def _add(self, link: Link) -> Link:
        if link.name in self.links:
            raise InvalidData(f"there is a link {link.name!r} already; give each another name")
        self.links[link.name] = link
        return link

    def _nearer(self, node: str, hops: dict[str, int]) -> list[Link]:
        return [link for link in self._out[node] if hops.get(link.target, -1) == hops[node] - 1]

    def _hops_to(self, source: str, target: str) -> dict[str, int]:
        """Of each node from which there is a way, counted once for each target."""
        self._check(source, target)
        hops = self._hops.get(target)
        if hops is None:
            hops = self._hops[target] = {target: 0}
            nodes = [target]
            for node in nodes:  # grows while it is walked
                for link in self._into[node]:
                    if link.source not in hops:
                        hops[link.source] = hops[node] + 1
                        nodes.append(link.source)
        if source not in hops:
            raise InvalidData(f"there is no route from {source!r} to {target!r}; add links between them")
        return hops

    def _check(self, *names: str) -> None:
        for name in names:
            if name not in self._out:
                raise InvalidData(f"there is no node {name!r} among the {len(self._out)} of the fabric; add it first")


def _with_shared(links: Iterable[Link]) -> Route:
    route: dict[Link, None] = {}
    for link in links:
        route[link] = None
        if link.shared is not None:
            route[link.shared] = None
    return tuple(route)


def star(hosts: int, bytes_per_s: float, latency_s: float = 0.0) -> Fabric:
    """`host0`... around one switch."""
    return _around("switch", [f"host{i}" for i in range(hosts)], bytes_per_s, latency_s)


def _around(switch: str, hosts: list[str], bytes_per_s: float, latency_s: float) -> Fabric:
    fabric = Fabric()
    fabric.add_switch(switch)
    for host in hosts:
        fabric.join(fabric.add_host(host), switch, bytes_per_s, latency_s)
    return fabric


def leaf_spine(
    hosts: int, leaves: int, spines: int, bytes_per_s: float, *, oversub: float = 1.0, latency_s: float = 0.0
) -> Fabric:
    """`hosts` of `bytes_per_s` under `leaves` in order, each leaf joined to every spine; a leaf's hosts together can
    send `oversub` times as much as its links to the spines carry. InvalidData: they don't divide."""
    if leaves < 1 or spines < 1 or hosts % leaves or not 0 < oversub < math.inf:
        raise InvalidData(f"{hosts} hosts don't fit {leaves} leaves and {spines} spines, {oversub}:1; make it divide")
    fabric = Fabric()
    per_leaf = hosts // leaves
    for s in range(spines):
        fabric.add_switch(f"spine{s}")
    for i in range(leaves):
        leaf = fabric.add_switch(f"leaf{i}")
        for h in range(i * per_leaf, (i + 1) * per_leaf):
            fabric.join(fabric.add_host(f"host{h}"), leaf, bytes_per_s, latency_s)
        for s in range(spines):
            fabric.join(leaf, f"spine{s}", per_leaf * bytes_per_s / spines / oversub, latency_s)
    return fabric


def fat_tree(ports: int, bytes_per_s: float, latency_s: float = 0.0) -> Fabric:
    """ports**3 / 4 hosts in `ports` pods, all links alike and no bottleneck. InvalidData: `ports` is odd."""
    if ports < 2 or ports % 2:
        raise InvalidData(f"a fat tree needs switches of an even number of ports, not {ports}")
    fabric, half = Fabric(), ports // 2
    cores = [fabric.add_switch(f"core{c}") for c in range(half * half)]
    for pod in range(ports):
        upper = [fabric.add_switch(f"pod{pod}-upper{i}") for i in range(half)]
        for i, switch in enumerate(upper):
            for core in cores[i * half : (i + 1) * half]:
                fabric.join(switch, core, bytes_per_s, latency_s)
        for e in range(half):
            edge = fabric.add_switch(f"pod{pod}-edge{e}")
            for switch in upper:
                fabric.join(edge, switch, bytes_per_s, latency_s)
            for h in range(half):
                fabric.join(fabric.add_host(f"host{(pod * half + e) * half + h}"), edge, bytes_per_s, latency_s)
    return fabric


def wan(bytes_per_s: Sequence[Sequence[float]], rtt_s: Sequence[Sequence[float]], loss: float = 0.0) -> Fabric:
    """A link from each site i to each other j of `bytes_per_s[i][j]` and half of `rtt_s[i][j]`; the diagonals don't
    count. InvalidData: a matrix is not square, or they differ in size."""
    n = len(bytes_per_s)
    if len(rtt_s) != n or any(len(row) != n for row in (*bytes_per_s, *rtt_s)):
        raise InvalidData(f"the matrices of {n} sites must both have {n} rows of {n} numbers")
    fabric = Fabric()
    sites = [fabric.add_host(f"host{i}") for i in range(n)]
    for i, one in enumerate(sites):
        for j, other in enumerate(sites):
            if i != j:
                fabric.add_link(one, other, bytes_per_s[i][j], rtt_s[i][j] / 2, loss)
    return fabric


def nvlink_mesh(gpus: int, bytes_per_s: float, latency_s: float = 0.0) -> Fabric:
    """`gpu0`..., each pair joined directly at `bytes_per_s` each way."""
    fabric = Fabric()
    names = [fabric.add_host(f"gpu{i}") for i in range(gpus)]
    for i, one in enumerate(names):
        for other in names[:i]:
            fabric.join(one, other, bytes_per_s, latency_s)
    return fabric


def nvswitch(gpus: int, bytes_per_s: float, latency_s: float = 0.0) -> Fabric:
    """`gpu0`..., each at `bytes_per_s` each way on a switch without bottleneck."""
    return _around("nvswitch", [f"gpu{i}" for i in range(gpus)], bytes_per_s, latency_s)


def pcie_tree(
    switches: int, gpus_per_switch: int, bytes_per_s: float, root_bytes_per_s: float, latency_s: float = 0.0
) -> Fabric:
    """GPUs under switches under one root, which carries `root_bytes_per_s` for all that passes it."""
    fabric = Fabric()
    top = fabric.add_switch("root")
    root = fabric.add_shared("root complex", root_bytes_per_s)
    for s in range(switches):
        switch = fabric.add_switch(f"switch{s}")
        fabric.join(switch, top, bytes_per_s, latency_s, shared=root)
        for g in range(s * gpus_per_switch, (s + 1) * gpus_per_switch):
            fabric.join(fabric.add_host(f"gpu{g}"), switch, bytes_per_s, latency_s)
    return fabric


def ring(hosts: int, bytes_per_s: float, latency_s: float = 0.0) -> Fabric:
    """Each joined to the next, the last to the first."""
    return torus((hosts,), bytes_per_s, latency_s)


def torus(shape: Sequence[int], bytes_per_s: float, latency_s: float = 0.0) -> Fabric:
    """A grid of that shape whose ends meet; hosts are numbered with the last place fastest."""
    fabric = Fabric()
    names = [fabric.add_host(f"host{i}") for i in range(math.prod(shape))]
    stride = 1
    for size in reversed(shape):
        for i, name in enumerate(names):
            place = i // stride % size
            if size > 2 or (size == 2 and place == 0):
                fabric.join(name, names[i + ((place + 1) % size - place) * stride], bytes_per_s, latency_s)
        stride *= size
    return fabric


def last_mile(up: Sequence[float], down: Sequence[float], latency_s: Sequence[float]) -> Fabric:
    """Hosts at home: each bounded by its own way up and down (bytes/s), `latency_s` from a core that bounds nobody.
    InvalidData: not as many of one as of the other."""
    if not len(up) == len(down) == len(latency_s):
        raise InvalidData(f"{len(up)} up, {len(down)} down and {len(latency_s)} latencies; each host needs all three")
    fabric = Fabric()
    core = fabric.add_switch("internet")
    for i in range(len(up)):
        host = fabric.add_host(f"host{i}")
        fabric.add_link(host, core, up[i], latency_s[i])
        fabric.add_link(core, host, down[i], latency_s[i])
    return fabric
