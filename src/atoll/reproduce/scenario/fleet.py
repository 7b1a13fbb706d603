"""Driver: the processes of a training job on the hosts of a world, and the faults that befall them."""

from collections import Counter
from collections.abc import Callable

from atoll.errors import InvalidConfig
from atoll.fabric import Link
from atoll.group.virtual import Process
from atoll.reproduce.scenario.chronicle import Chronicle
from atoll.reproduce.scenario.meters import MeteredWorld
from atoll.reproduce.scenario.striking import MASTER
from atoll.sim.faults import NAMES, Crash, Fault, Hang, LinkDegrade, LinkDown, Preempt, Slow

Main = Callable[[str, int], None]
"""What a process does, on its host, in its incarnation."""


class Fleet:
    """A `Target` for the injector. One process on each host; one that ends by itself is started again."""

    def __init__(
        self, world: MeteredWorld, hosts: list[str], main: Main, chronicle: Chronicle, restart_s: float
    ) -> None:
        self.world, self.hosts, self.main, self.chronicle, self.restart_s = world, hosts, main, chronicle, restart_s
        self.crashed: Callable[[str], object] = _nothing
        """Told of a host that goes down."""
        self.restarted: Callable[[str], object] = _nothing
        self.processes: dict[str, Process] = {}
        self.crashes = 0
        self._incarnations: Counter[str] = Counter()
        self._slow: dict[str, list[float]] = {host: [] for host in hosts}
        self._links: dict[Link, list[float]] = {}
        """The fractions that faults leave of each."""
        self._silent: dict[str, list[Link]] = {}
        self._down: set[str] = set()

    def start(self, host: str, delay_s: float) -> None:
        """A new process, if the host is not down when its time comes."""
        self._incarnations[host] += 1
        incarnation = self._incarnations[host]
        name = host if incarnation == 1 else f"{host}#{incarnation}"
        self.processes[host] = self.world.start(name, lambda: self.main(host, incarnation), delay_s, host=host)

    def start_again(self, host: str) -> None:
        """After a while: its process has ended, though the host lives."""
        incarnation = self._incarnations[host]

        def again() -> None:
            if host not in self._down and self._incarnations[host] == incarnation and not self.world.over:
                self.chronicle.mark("restart", host)
                self.restarted(host)
                self.start(host, 0.0)

        self.world.loop.post(round(self.restart_s * 1e9), again)

    def slowness(self, host: str) -> float:
        """How many times as long all takes there, now."""
        factor = 1.0
        for by in self._slow[host]:
            factor *= by
        return factor

    def runs(self, host: str) -> bool:
        """Has it a process that lives and is not frozen?"""
        process = self.processes[host]
        return not (process.dead or process.frozen)

    # -- Target --------------------------------------------------------------------------------------------------------

    def apply(self, fault: Fault) -> None:
        """It strikes."""
        self.chronicle.mark(NAMES[type(fault)], _subject(fault))
        match fault:
            case Crash(node=node) if node == MASTER:
                self.world.kill_master()
            case Crash(node=node, silent=silent) if node in self.processes:
                self._crash(node, silent)
            case Hang(node=node) if node in self.processes:
                self.processes[node].freeze()
            case Slow(node=node, factor=factor) if node in self._slow:
                self._slow[node].append(factor)
            case LinkDown(link=link):
                self._degrade(link, 0.0)
            case LinkDegrade(link=link, bandwidth=bandwidth):
                self._degrade(link, bandwidth)

    def lift(self, fault: Fault) -> None:
        """It is over."""
        self.chronicle.mark(f"{NAMES[type(fault)]} over", _subject(fault))
        match fault:
            case Hang(node=node) if node in self.processes:
                self.processes[node].thaw()
            case Slow(node=node, factor=factor) if node in self._slow:
                self._slow[node].remove(factor)
            case LinkDown(link=link):
                self._restore(link, 0.0)
            case LinkDegrade(link=link, bandwidth=bandwidth):
                self._restore(link, bandwidth)

    def restart(self, node: str, incarnation: int) -> None:
        """The host is back."""
        if node == MASTER:
            self.chronicle.mark("restart", node)
            self.world.start_master()
        elif node in self.processes:
            self._down.discard(node)
            for link in self._silent.pop(node, ()):
                self._restore(link.name, 0.0)
            self.start_again(node)

    def _crash(self, node: str, silent: bool) -> None:
        self.crashes += 1
        self._down.add(node)
        if silent:  # nobody hears of it: no packet leaves the host
            fabric = self.world.network.fabric
            self._silent[node] = [link for link in fabric.links.values() if node in (link.source, link.target)]
            for link in self._silent[node]:
                self._degrade(link.name, 0.0)
        self.processes[node].crash()
        self.crashed(node)

    def _degrade(self, name: str, left: float) -> None:
        link = self.world.network.fabric.links[name]
        self._links.setdefault(link, []).append(left)
        self._set(link)

    def _restore(self, name: str, left: float) -> None:
        link = self.world.network.fabric.links[name]
        self._links[link].remove(left)
        self._set(link)

    def _set(self, link: Link) -> None:
        self.world.network.set_link(link, link.bytes_per_s * min(self._links[link], default=1.0))


def _subject(fault: Fault) -> str:
    match fault:
        case LinkDown(link=link) | LinkDegrade(link=link):
            return link
        case Crash(node=node) | Hang(node=node) | Slow(node=node) | Preempt(node=node):
            return node
    raise InvalidConfig(f"a {NAMES[type(fault)]} can't be simulated here")


def _nothing(host: str) -> None: ...
