"""Driver: the world that programs of a group live in: master, processes and the fabric between them, in virtual
time."""

from collections.abc import Callable
from typing import Any, Final

from atoll import cost as costs
from atoll import rng
from atoll.errors import InvalidConfig
from atoll.fabric import Fabric, star
from atoll.group.api import Close, Know, Say
from atoll.group.membership.master import Master
from atoll.group.membership.roster import Gone, Tick
from atoll.group.messages import Beat, ToMaster
from atoll.group.virtual.port import VirtualPort
from atoll.group.virtual.process import Process
from atoll.sim.connection import Connection
from atoll.sim.loop import Loop
from atoll.sim.net import IDEAL, Network, Tcp

TICK_S: Final = 0.5
WATCH_S: Final = 4.0
"""So long a way to the master may be cut before the connection breaks (`net/tcp.py`)."""
PATIENCE_S: Final = 60.0
"""With nothing but ticks left for so long, which outlasts every limit of the master, programs are deadlocked."""
MASTER: Final = "master"


class World:
    """One master and simulated processes on the hosts of `fabric`, whose links they share; by default each has a host
    of its own on a switch without bottleneck, `latency_s` from the others, with `bytes_per_s` out and in.

    `master_host`: where the master runs; else on the first host of `fabric`. `tcp`: what one connection can do.
    `cost`: the seconds that a `Node.compute` takes, or a model for each kind of operation.
    `jitter`: how much longer a message may take, in latencies. `tie_break`: a seed that permutes events of the same
    moment. `one_machine`: what peers say of themselves; else the master has their links measured. By default those of
    one host are on one machine, and without a fabric all are. `volume`: as how many bytes each of a tensor counts, so
    that a small model travels as slowly as the large one it stands for; messages count as what they are.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        fabric: Fabric | None = None,
        tcp: Tcp = IDEAL,
        master_host: str | None = None,
        latency_s: float = 100e-6,
        bytes_per_s: float = 1e9,
        jitter: float = 0.0,
        tie_break: int | None = None,
        one_machine: bool | None = None,
        cost: costs.Costs = costs.free,
        volume: float = 1.0,
    ) -> None:
        self.loop = Loop(tie_break)
        self.seed, self.volume = seed, volume
        self.seconds_of = costs.seconds_by(cost)
        self._own_star = fabric is None
        self._way_s, self._bytes_per_s = latency_s / 2, bytes_per_s
        self.network = Network(self.loop, star(0, bytes_per_s) if fabric is None else fabric, tcp=tcp)
        """Whose links may be changed while the group runs (`network.set_link`)."""
        self.master_host = master_host or (self._add_host(MASTER) if fabric is None else self.hosts[0])
        self._check_host(self.master_host)
        self._one_machine = self._own_star if one_machine is None else one_machine
        self.master = Master(lambda: b"")
        self.down = False
        """The master has been killed, and none has taken over yet."""
        self.walls: set[tuple[str, str]] = set()
        """Who can't reach whom, by name."""
        self.processes: list[Process] = []
        self.ports: list[VirtualPort] = []
        self.connections: dict[int, VirtualPort] = {}
        """By number: below zero until it is a member's."""
        self.members: dict[int, VirtualPort] = {}
        self._connected = 0
        self.said: list[tuple[int, Any]] = []
        """Everything the master said, to whom; for tests."""
        self._ticks = False
        self._idle_ticks = 0
        self._ended = 0
        """So many of the first processes have ended."""
        luck = rng.stream(seed, "jitter")
        self._jitter = (lambda: jitter * luck.random()) if jitter else None

    @property
    def hosts(self) -> list[str]:
        """Those of the fabric."""
        return self.network.fabric.hosts

    def start(self, name: str, main: Callable[[], Any], delay_s: float = 0.0, host: str | None = None) -> Process:
        """A process that runs `main` from `delay_s` on, on `host`; else on a new one, or, on a fabric that was given,
        on each in turn. InvalidConfig: there is no such host."""
        if host is None and self._own_star:
            host = self._add_host(f"host{len(self.processes)}")
        host = host or self.hosts[len(self.processes) % len(self.hosts)]
        self._check_host(host)
        process = self.process(name, host, main)
        self.processes.append(process)
        self.loop.post(round(delay_s * 1e9), process.call, process.program.resume)
        return process

    def process(self, name: str, host: str, main: Callable[[], Any]) -> Process:
        """What `start` makes; a world whose hosts take time of their own has others."""
        return Process(self, name, host, main)

    def run(self, until_s: float | None = None) -> None:
        """Until every program has ended (Deadlock: they can't), or for that much virtual time."""
        until_ns = None if until_s is None else round(until_s * 1e9)
        if not self._ticks:
            self._ticks = True
            self.loop.post(0, self._tick)
        try:
            while self._going() and (until_ns is None or self.loop.now_ns < until_ns):
                self.loop.step()
        except BaseException:
            self.loop.close()
            raise

    def _going(self) -> bool:
        """Ticks go on for ever, so look whether anybody still lives."""
        while self._ended < len(self.processes) and self.processes[self._ended].program.ended:
            self._ended += 1
        return self._ended < len(self.processes)

    # -- the network ---------------------------------------------------------------------------------------------------

    def connection(
        self, source: str, target: str, streams: int = 1, ready: Callable[[], object] | None = None
    ) -> Connection:
        """A new connection's one direction, from host to host."""
        return Connection(self.network, source, target, streams=streams, jitter=self._jitter, ready=ready)

    def reaches_master(self, host: str) -> bool:
        """Is every link up between them, both ways?"""
        return self.network.up(host, self.master_host) and self.network.up(self.master_host, host)

    def machine_of(self, host: str) -> str:
        """What a peer says of itself."""
        if self._one_machine:
            return "this one"
        return "" if self._own_star else host

    def _add_host(self, name: str) -> str:
        fabric = self.network.fabric
        fabric.join(fabric.add_host(name), "switch", self._bytes_per_s, self._way_s)
        return name

    def _check_host(self, host: str) -> None:
        if host not in self.hosts:
            raise InvalidConfig(f"there is no host {host!r} among the {len(self.hosts)} of the fabric; add it first")

    # -- the master ----------------------------------------------------------------------------------------------------

    def connect(self, port: VirtualPort) -> int:
        """A new connection to the master."""
        self._connected += 1
        self.connections[-self._connected] = port
        return -self._connected

    def kill_master(self) -> None:
        """SIGKILL: connections reset, what was on its way to it or from it is lost."""
        self.down = True
        self.connections.clear()
        for port in self.ports:
            port.hang_up()

    def start_master(self) -> None:
        """Another takes over, which knows whom to expect. If one is there, nothing happens."""
        if not self.down:
            return
        self.down = False
        self.master = Master(lambda: b"", remembered=self.master.remembered, now=self.loop.now_s)

    def tell_master(self, who: int, event: ToMaster | Tick | Gone) -> None:
        """The master hears `event` now."""
        if self.down:
            return
        for action in self.master.handle(who, event, self.loop.now_s):
            match action:
                case Say(to, message):
                    self.said.append((to, message))
                    if to in self.connections:
                        self.connections[to].carry(message)
                case Know(connection, member):
                    port = self.connections[member] = self.members[member] = self.connections.pop(connection)
                    port.who = member
                case Close(who):
                    if who in self.connections:
                        self.connections.pop(who).hang_up_at_last()

    def _tick(self) -> None:
        """Stands for what looks at a clock: the helpers, who see whether a process is frozen, TCP, the peers' look at
        their data phases, and the master."""
        for port in self.ports:
            if not port.closed:
                self._look_at(port)
        self.tell_master(0, Tick())
        self._idle_ticks = 0 if self.loop.pending() else self._idle_ticks + 1
        if self._idle_ticks * TICK_S > PATIENCE_S:
            self.network.fluid.check_stall()
            self.loop.check_deadlock()
        self.loop.post(round(TICK_S * 1e9), self._tick)

    def _look_at(self, port: VirtualPort) -> None:
        if self.reaches_master(port.host):
            port.cut_at = None
            if port.id in self.members:
                state = "stopped" if port.process.frozen else "running"
                self.tell_master(port.id, Beat(port.id, b"", state, b""))
        elif port.cut_at is None:
            port.cut_at = self.loop.now_s
        elif self.loop.now_s - port.cut_at >= WATCH_S:
            port.hang_up()
        if not port.process.frozen:
            port.look()
