"""Driver: the networks a scenario may name, as typed settings: the single source of the keys of `[fabric]`."""

from dataclasses import dataclass, field

from atoll import fabric
from atoll.errors import InvalidConfig, InvalidData
from atoll.fabric import Fabric
from atoll.sim.net import IDEAL, Tcp

Matrix = list[list[float]]


@dataclass(frozen=True, kw_only=True)
class Network:
    """What all fabrics have."""

    tcp: Tcp = IDEAL
    """What one connection can do; without this table the links alone bound it, and their losses count for nothing."""

    def build(self) -> Fabric:
        """The hosts, switches and links. InvalidData: numbers out of range."""
        raise NotImplementedError


@dataclass(frozen=True, kw_only=True)
class Star(Network):
    """host0... around one switch."""

    hosts: int
    bytes_per_s: float
    """Of each host, each way."""
    latency_s: float = 0.0
    """Of each link, one way; from host to host it is twice that."""

    def build(self) -> Fabric:
        return fabric.star(_at_least_one("hosts", self.hosts), self.bytes_per_s, self.latency_s)


@dataclass(frozen=True, kw_only=True)
class LeafSpine(Network):
    """host0... under leaves in order, each leaf joined to every spine."""

    hosts: int
    leaves: int
    spines: int
    bytes_per_s: float
    """Of each host, each way."""
    oversub: float = 1.0
    """How many times as much as its links to the spines carry the hosts of a leaf together can send."""
    latency_s: float = 0.0
    """Of each link, one way."""

    def build(self) -> Fabric:
        return fabric.leaf_spine(
            _at_least_one("hosts", self.hosts), self.leaves, self.spines, self.bytes_per_s,
            oversub=self.oversub, latency_s=self.latency_s,
        )  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class FatTree(Network):
    """ports**3 / 4 hosts, all links alike and no bottleneck."""

    ports: int
    bytes_per_s: float
    latency_s: float = 0.0

    def build(self) -> Fabric:
        return fabric.fat_tree(self.ports, self.bytes_per_s, self.latency_s)


@dataclass(frozen=True, kw_only=True)
class Wan(Network):
    """host0... at as many sites, a link from each to each other."""

    hosts: int
    bytes_per_s: float | Matrix
    """Of every link, or a row per host: from it to each."""
    rtt_s: float | Matrix
    """There and back, likewise."""
    loss: float = 0.0
    """Share of packets lost on every link; bounds what a TCP connection can do."""

    def build(self) -> Fabric:
        _at_least_one("hosts", self.hosts)
        return fabric.wan(self._matrix("bytes_per_s"), self._matrix("rtt_s"), self.loss)

    def _matrix(self, name: str) -> Matrix:
        given: float | Matrix = getattr(self, name)
        if not isinstance(given, list):
            return [[given] * self.hosts] * self.hosts
        if len(given) != self.hosts or any(len(row) != self.hosts for row in given):
            raise InvalidConfig(
                f"{name} must be one number, or {self.hosts} rows of {self.hosts} (hosts = {self.hosts})"
            )
        return given


@dataclass(frozen=True, kw_only=True)
class NvlinkMesh(Network):
    """gpu0..., each pair joined directly."""

    gpus: int
    bytes_per_s: float
    latency_s: float = 0.0

    def build(self) -> Fabric:
        return fabric.nvlink_mesh(_at_least_one("gpus", self.gpus), self.bytes_per_s, self.latency_s)


@dataclass(frozen=True, kw_only=True)
class Nvswitch(Network):
    """gpu0... on a switch without bottleneck."""

    gpus: int
    bytes_per_s: float
    latency_s: float = 0.0

    def build(self) -> Fabric:
        return fabric.nvswitch(_at_least_one("gpus", self.gpus), self.bytes_per_s, self.latency_s)


@dataclass(frozen=True, kw_only=True)
class PcieTree(Network):
    """gpu0... under switches under one root."""

    switches: int
    gpus_per_switch: int
    bytes_per_s: float
    root_bytes_per_s: float
    """Of all that passes the root, both ways together."""
    latency_s: float = 0.0

    def build(self) -> Fabric:
        _at_least_one("gpus_per_switch", self.gpus_per_switch)
        switches = _at_least_one("switches", self.switches)
        return fabric.pcie_tree(switches, self.gpus_per_switch, self.bytes_per_s, self.root_bytes_per_s, self.latency_s)


@dataclass(frozen=True, kw_only=True)
class Torus(Network):
    """host0... in a grid whose ends meet, numbered with the last place fastest; one number: a ring."""

    shape: list[int]
    bytes_per_s: float
    latency_s: float = 0.0

    def build(self) -> Fabric:
        _at_least_one("shape", min(self.shape, default=0))
        return fabric.torus(self.shape, self.bytes_per_s, self.latency_s)


@dataclass(frozen=True, kw_only=True)
class LastMile(Network):
    """host0... at home, each with its own way up and down to a core that bounds nobody."""

    up: list[float]
    """Bytes per second, a number per host."""
    down: list[float]
    latency_s: list[float]
    """To the core."""

    def build(self) -> Fabric:
        _at_least_one("up", len(self.up))
        return fabric.last_mile(self.up, self.down, self.latency_s)


@dataclass(frozen=True, kw_only=True)
class Joint:
    """Two nodes joined by a link each way."""

    between: tuple[str, str]
    bytes_per_s: float
    latency_s: float = 0.0
    loss: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Custom(Network):
    """Hosts, switches and links by name."""

    hosts: list[str]
    links: list[Joint]
    switches: list[str] = field(default_factory=list)

    def build(self) -> Fabric:
        built = Fabric()
        for host in self.hosts:
            built.add_host(host)
        for switch in self.switches:
            built.add_switch(switch)
        for joint in self.links:
            built.join(*joint.between, joint.bytes_per_s, joint.latency_s, joint.loss)
        _at_least_one("hosts", len(self.hosts))
        return built


FABRICS: dict[str, type[Network]] = {
    "star": Star,
    "leaf_spine": LeafSpine,
    "fat_tree": FatTree,
    "wan": Wan,
    "nvlink_mesh": NvlinkMesh,
    "nvswitch": Nvswitch,
    "pcie_tree": PcieTree,
    "torus": Torus,
    "last_mile": LastMile,
    "custom": Custom,
}
"""By the `kind` a scenario names."""


def checked(settings: Network) -> Fabric:
    """The fabric, whose hosts all reach each other. InvalidData: two don't; InvalidConfig, InvalidData: numbers out of
    range."""
    built = settings.build()
    out: dict[str, list[str]] = {}
    into: dict[str, list[str]] = {}
    for link in built.links.values():
        if not link.bytes_per_s > 0:
            raise InvalidData(f"link {link.name!r} carries {link.bytes_per_s:g} bytes/s; give it more than 0")
        out.setdefault(link.source, []).append(link.target)
        into.setdefault(link.target, []).append(link.source)
    first = built.hosts[0]
    reached, reaching = _from(first, out), _from(first, into)
    for host in built.hosts:
        if host not in reached or host not in reaching:
            raise InvalidData(f"there is no way between hosts {first!r} and {host!r}; add links that join them")
    return built


def _from(start: str, neighbours: dict[str, list[str]]) -> set[str]:
    found, line = {start}, [start]
    for node in line:  # grows while it is walked
        for other in neighbours.get(node, ()):
            if other not in found:
                found.add(other)
                line.append(other)
    return found


def _at_least_one(name: str, n: int) -> int:
    if n < 1:
        raise InvalidConfig(f"{name} must be at least 1, not {n}")
    return n
