"""Driver: the same master, peer policy, station and Group over simulated links, in virtual time.

world = World(seed=1)
for i in range(64):
    world.start(f"peer-{i}", main)      # main() calls atoll.join(...) as it would for real
world.run()
"""

from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from atoll import rng
from atoll.group import messages
from atoll.group.api import (
    Close,
    Know,
    LinkDown,
    LinkUp,
    MasterAway,
    MasterBack,
    MasterGone,
    Measured,
    PeerEvent,
    Relink,
    Say,
    Ticket,
)
from atoll.group.membership.master import Master
from atoll.group.membership.roster import Gone, Tick
from atoll.group.messages import Beat, Seat, ToMaster, ToPeer
from atoll.group.peer import Peer
from atoll.group.station import Station, Take
from atoll.net.channel import HEADER
from atoll.runtime.api import settle
from atoll.sim.links import Link, Outlet
from atoll.sim.loop import Loop, Program

if TYPE_CHECKING:
    from atoll.cost import Op

T = TypeVar("T")

TICK_S = 0.5
PROBE_S = 0.1
"""What measuring a link takes."""
REDIAL_S = 0.1
PATIENCE_S = 60.0
"""With nothing but ticks left for so long, which outlasts every limit of the master, programs are deadlocked."""


class World:
    """One master and simulated processes; what is sent takes `latency_s` plus bytes over `bytes_per_s`,
    which all links from one computer share.

    `cost` says how many seconds a `Node.compute` takes. `jitter`: how much longer a message may take, in latencies.
    `tie_break`: a seed that permutes events of the same moment. `one_machine`: what peers say of themselves; else the
    master has their links measured.
    """

    def __init__(
        self,
        seed: int = 0,
        *,
        latency_s: float = 100e-6,
        bytes_per_s: float = 1e9,
        jitter: float = 0.0,
        tie_break: int | None = None,
        one_machine: bool = True,
        cost: "Callable[[Op], float]" = lambda op: 0.0,
    ) -> None:
        self.loop = Loop(tie_break)
        self.seed, self.cost = seed, cost
        self.machine = "this one" if one_machine else ""
        self.latency_s, self.bytes_per_s = latency_s, bytes_per_s
        self.master = Master(lambda: b"")
        self.outlet = Outlet(bytes_per_s)
        """The master's."""
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
        self._idle_ticks = 0
        luck = rng.stream(seed, "jitter")
        self._jitter = (lambda: jitter * luck.random()) if jitter else (lambda: 0.0)

    def start(self, name: str, main: Callable[[], Any], delay_s: float = 0.0) -> "Process":
        """A process that runs `main` from `delay_s` on."""
        process = Process(self, name, main)
        self.processes.append(process)
        self.loop.post(round(delay_s * 1e9), process.call, process.program.resume)
        return process

    def run(self, until_s: float | None = None) -> None:
        """Until every program has ended (Deadlock: they can't), or for that much virtual time."""
        until_ns = None if until_s is None else round(until_s * 1e9)
        self.loop.post(0, self._tick)
        try:
            while self._going() and (until_ns is None or self.loop.now_ns < until_ns):
                self.loop.step()
        except BaseException:
            self.loop.close()
            raise

    def _going(self) -> bool:
        """Ticks go on for ever, so look whether anybody still lives."""
        return any(not p.program.ended for p in self.processes)

    def link(self, outlet: Outlet) -> Link:
        """A new stream from the computer with this way out."""
        return Link(self.loop, self.latency_s, outlet, self._jitter)

    def connect(self, port: "VirtualPort") -> int:
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
        """Stands for the helpers, who see whether a process is frozen, and for the master's own clock."""
        for port in self.ports:
            if not port.closed and port.id in self.members:
                state = "stopped" if port.process.frozen else "running"
                self.tell_master(port.id, Beat(port.id, b"", state, b""))
        self.tell_master(0, Tick())
        self._idle_ticks = 0 if self.loop.pending() else self._idle_ticks + 1
        if self._idle_ticks * TICK_S > PATIENCE_S:
            self.loop.check_deadlock()
        self.loop.post(round(TICK_S * 1e9), self._tick)


def weight(message: ToMaster | ToPeer) -> int:
    """Bytes of a message on the wire."""
    return HEADER.size + len(messages.encode(message))


class Process:
    """A simulated process: one program, and a port for each time it joins. Also its `Node`."""

    def __init__(self, world: World, name: str, main: Callable[[], Any]) -> None:
        self.world, self.name = world, name
        self.frozen = self.dead = False
        self._backlog: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self.port: VirtualPort | None = None

        def body() -> Any:
            settle(self)
            return main()

        self.program = Program(world.loop, name, body)

    # -- what happens to it ----------------------------------------------------------------------------------------

    def call(self, fn: Callable[..., object], *args: Any) -> None:
        """The one door by which events reach the process: a frozen one hears them later, a dead one never."""
        if not self.dead:
            self._backlog.append((fn, args))
            self._hear()

    def _hear(self) -> None:
        while self._backlog and not self.frozen and not self.dead:
            fn, args = self._backlog.popleft()
            fn(*args)

    def freeze(self) -> None:
        """SIGSTOP."""
        self.frozen = True

    def thaw(self) -> None:
        """SIGCONT."""
        self.frozen = False
        self._hear()

    def crash(self) -> None:
        """SIGKILL: connections reset, the program ends where it waits."""
        if self.dead or self.program.ended:
            return
        self.dead = True
        if self.port is not None:
            self.port.end("connection lost")
        self.program.crash()

    # -- Node ------------------------------------------------------------------------------------------------------

    def now(self) -> float:
        return self.world.loop.now_s

    def sleep(self, seconds: float) -> None:
        if seconds < 0:
            raise ValueError(f"can't sleep for {seconds} s")
        self.world.loop.post(round(seconds * 1e9), self.call, self.program.resume)
        self.program.park(f"the end of sleep({seconds})")

    def rng(self, *names: str | int) -> np.random.Generator:
        return rng.stream(self.world.seed, *names)

    def compute(self, op: "Op", fn: Callable[[], T]) -> T:
        value = fn()
        seconds = self.world.cost(op)
        if seconds:
            self.sleep(seconds)
        return value

    def open_port(self, address: str) -> "VirtualPort":
        """There is one master; the address is not looked at."""
        self.port = VirtualPort(self)
        return self.port


class _Wire:
    """A data link of one epoch between two ports."""

    def __init__(self, epoch: int, source: "VirtualPort", target: "VirtualPort") -> None:
        self.epoch, self.source, self.target = epoch, source, target
        self.link = source.world.link(source.outlet)
        self.up = False
        self.waiting: deque[tuple[int, int, Take]] = deque()
        """Frames asked for before the link stood."""
        self.held: deque[tuple[int, int, bytes]] = deque()
        """Frames whose turn has not come at the target."""


class VirtualPort:
    """`Port` for a program and `Carrier` for its station."""

    def __init__(self, process: Process) -> None:
        self.process, self.world = process, process.world
        self.world.ports.append(self)
        number = len(self.world.ports)
        self.station = Station(Peer(Seat(0, "127.0.0.1", number, process.world.machine)), self)
        self.closed = False
        self.who = self.world.connect(self)
        self._line = 0
        """Counts connections to the master: what was on its way in an older one is lost."""
        self.outlet = Outlet(self.world.bytes_per_s)
        self.to_master, self.from_master = self.world.link(self.outlet), self.world.link(self.world.outlet)
        self._waits_for: Ticket | None = None
        self._out: dict[int, _Wire] = {}
        self._in: dict[tuple[int, int], _Wire] = {}
        if self.world.down:
            self._look_for_master(self._line)

    # -- Port ------------------------------------------------------------------------------------------------------

    @property
    def id(self) -> int:
        return self.station.peer.id

    def submit(self, ticket: Ticket) -> None:
        self.station.feed(ticket)

    def wait(self, ticket: Ticket, timeout_s: float | None) -> bool:
        if ticket.outcome is None:
            self._waits_for = ticket
            if timeout_s is not None:
                self.world.loop.post(round(timeout_s * 1e9), self.process.call, self._resume, ticket)
            self.process.program.park(f"{ticket.kind} with tag {ticket.tag} of epoch {ticket.epoch}")
        return ticket.outcome is not None

    def now(self) -> float:
        return self.process.now()

    def close(self) -> None:
        self.end("left")
        self.station.feed(MasterGone("this group was closed"))

    def end(self, reason: str) -> None:
        """Connections of this port break; the others hear of it."""
        if self.closed:
            return
        self.closed = True
        wires = [*self._in.values(), *self._out.values()]
        for wire in wires:
            other = wire.target if wire.source is self else wire.source
            link = wire.link if wire.source is self else self.world.link(self.outlet)
            link.carry(0, other.process.call, other.link_down, wire.epoch, self.id)
        self._send_master(0, Gone(reason))

    def _resume(self, ticket: Ticket) -> None:
        if self._waits_for is ticket:
            self._waits_for = None
            self.process.program.resume()

    # -- Carrier ---------------------------------------------------------------------------------------------------

    def heard(self, event: PeerEvent) -> None:
        """Something for the peer policy."""
        if not self.closed:
            self.station.feed(event)

    def tell(self, message: ToMaster, patient: bool = False) -> None:
        if not self.closed:
            self._send_master(weight(message), message)

    def _send_master(self, nbytes: int, message: ToMaster | Gone) -> None:
        line = self._line

        def arrive() -> None:
            if line == self._line:
                self.world.tell_master(self.who, message)

        self.to_master.carry(nbytes, arrive)

    def carry(self, message: ToPeer) -> None:
        """Something from the master."""
        self.from_master.carry(weight(message), self.process.call, self._said, self._line, message)

    def _said(self, line: int, message: ToPeer) -> None:
        if line == self._line:
            self.heard(message)

    def hang_up_at_last(self) -> None:
        """The master closes the connection; what it has said still comes."""
        self.from_master.carry(0, self.process.call, self._hung_up, self._line)

    def _hung_up(self, line: int) -> None:
        if line == self._line:
            self.hang_up()

    def hang_up(self) -> None:
        """The connection to the master breaks, in both directions."""
        self._line += 1
        if not self.closed:
            self.process.call(self._look_for_master, self._line)

    def _look_for_master(self, line: int) -> None:
        if line == self._line and not self.closed and not self.station.peer.over:
            self.heard(MasterAway())
            self._dial_master(line)

    def _dial_master(self, line: int) -> None:
        if line != self._line or self.closed:
            return
        if self.world.down:
            self.world.loop.post(round(REDIAL_S * 1e9), self.process.call, self._dial_master, line)
        else:
            self.who = self.world.connect(self)
            self.heard(MasterBack())

    def relink(self, to: Relink) -> None:
        self._out.clear()
        self._in = {key: wire for key, wire in self._in.items() if key[0] >= to.epoch >= 0}
        if to.successor is not None:
            self._dial(to.successor.id)

    def measure(self, to: int) -> None:
        wire = self._out.get(to) or self._dial(to)
        found = Measured(wire.epoch, to, self.outlet.bytes_per_s, 2 * self.world.latency_s)
        nbytes = round(PROBE_S * self.outlet.bytes_per_s)
        self.world.link(self.outlet).carry(nbytes, self.process.call, self.heard, found)

    def _dial(self, to: int) -> _Wire:
        wire = self._out[to] = _Wire(self.station.epoch, self, self.world.members[to])
        self.world.link(self.outlet).carry(0, self._knock, wire)
        return wire

    def _knock(self, wire: _Wire) -> None:
        other = wire.target
        if other.closed or (self.process.name, other.process.name) in self.world.walls:
            down = LinkDown(wire.epoch, self.id, other.id, "nothing listens there", made=False)
            self.world.link(self.outlet).carry(0, self.process.call, self.heard, down)
        else:
            other.process.call(other._accept, wire)

    def _accept(self, wire: _Wire) -> None:
        if not self.closed and wire.epoch >= self.station.epoch:
            self._in[wire.epoch, wire.source.id] = wire
            self.world.link(self.outlet).carry(0, wire.source.process.call, wire.source._dialled, wire)

    def _dialled(self, wire: _Wire) -> None:
        if wire.epoch == self.station.epoch and not self.closed:
            wire.up = True
            self.heard(LinkUp(wire.epoch, wire.target.id, 2 * self.world.latency_s))
            self._drain(wire)

    def link_down(self, epoch: int, other: int) -> None:
        """The far end of a link is gone."""
        if epoch == self.station.epoch:
            self.heard(LinkDown(epoch, other, self.id, "reset"))

    def send(self, to: int, seq: int, word: int, take: Take) -> None:
        wire = self._out.get(to) or self._dial(to)
        wire.waiting.append((seq, word, take))
        self._drain(wire)

    def _drain(self, wire: _Wire) -> None:
        while wire.up and wire.waiting:
            seq, word, take = wire.waiting.popleft()
            data = take()
            if data is not None:
                port = wire.target
                frame = seq, word, bytes(data)
                wire.link.carry(len(data) + HEADER.size, port.process.call, port._arrived, wire, frame)

    def _arrived(self, wire: _Wire, frame: tuple[int, int, bytes]) -> None:
        if not self.closed and self._in.get((wire.epoch, wire.source.id)) is wire:
            wire.held.append(frame)
            self.station.resume()

    def resume(self) -> None:
        for wire in list(self._in.values()):
            while wire.held and wire.epoch == self.station.epoch:
                seq, word, data = frame = wire.held.popleft()
                if not self.station.arrived(wire.source.id, seq, word, memoryview(data)):
                    wire.held.appendleft(frame)
                    break

    def wake(self, ticket: Ticket) -> None:
        if self._waits_for is ticket:
            self.world.loop.post(0, self.process.call, self._resume, ticket)
