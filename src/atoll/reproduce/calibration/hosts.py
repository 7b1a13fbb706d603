"""Driver: the virtual group on a host whose cores take time: each process is one thread that does one thing after
another, all share the cores and the way to memory.

A process pays for each message it sends and hears, and for the bytes of each piece. Nothing else takes time here: on
one machine a message is there when its sender has written it.
"""

from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Final, NamedTuple

from atoll.group.api import Ticket
from atoll.group.membership.roster import Gone, Tick
from atoll.group.messages import Beat, ToMaster
from atoll.group.virtual import Process, World
from atoll.group.wiring.ways import INLINE
from atoll.reproduce.calibration.api import HostCosts
from atoll.sim.connection import Connection
from atoll.sim.fluid import Fluid
from atoll.sim.loop import Loop

SEGMENT: Final = 256 << 10
"""A stream's receiver reads on while its sender writes; so many bytes are one step of both."""
_ENDLESS: Final = 1e18
Frame = tuple[int, int, bytes]


class Work(NamedTuple):
    """Seconds of one core, of which so many go through memory."""

    core_s: float = 0.0
    memory_s: float = 0.0

    @classmethod
    def of(cls, core_s: float, memory_s: float) -> "Work":
        """Both of one after the other."""
        return cls(core_s + memory_s, memory_s)


FREE: Final = Work()


class Machine:
    """Cores, and the way to memory."""

    def __init__(self, loop: Loop, cores: int, memory: float) -> None:
        self.loop = loop
        self._fluid = Fluid(loop)
        self._cores = self._fluid.resource("cores", cores * 1e9)
        self._memory = self._fluid.resource("memory", memory * 1e9)

    def run(self, work: Work, done: Callable[[], object]) -> None:
        """On one core at most."""
        share = round(work.memory_s / work.core_s, 2)
        self._fluid.start(round(work.core_s * 1e9), {self._cores: 1.0, self._memory: share}, done, cap=1e9)


class Thread:
    """Does one thing after another. What a handler sends comes before what it has not heard yet."""

    def __init__(self, machine: Machine, wake_s: float, turn_s: float) -> None:
        self._machine, self._wake_ns, self._turn = machine, round(wake_s * 1e9), Work(turn_s)
        self._line: deque[tuple[Work, Callable[[], object]]] = deque()
        self._sent: list[tuple[Work, Callable[[], object]]] = []
        self._busy = self._handling = False
        self.ended = False

    def hear(self, work: Work, fn: Callable[[], object]) -> None:
        """Do so much work, then call `fn`; behind all else."""
        if not self._busy:
            self._busy = True
            self._line.append((self._turn, _nothing))
            self._machine.loop.post(self._wake_ns, self._next)
        self._line.append((work, fn))

    def send(self, work: Work, fn: Callable[[], object]) -> None:
        """From inside a handler: before all that waits."""
        if self._handling:
            self._sent.append((work, fn))
        else:
            self.hear(work, fn)

    def end(self) -> None:
        """Nothing more is done."""
        self.ended = True
        self._line.clear()
        self._sent.clear()

    def _next(self) -> None:
        while self._line:
            work, fn = self._line.popleft()
            if work.core_s:
                self._machine.run(work, partial(self._do_and_go_on, fn))
                return
            self._do(fn)
        self._busy = False

    def _do_and_go_on(self, fn: Callable[[], object]) -> None:
        if not self.ended:
            self._do(fn)
        self._next()

    def _do(self, fn: Callable[[], object]) -> None:
        self._handling = True
        try:
            fn()
        finally:
            self._handling = False
            self._line.extendleft(reversed(self._sent))
            self._sent.clear()


class Prices:
    """What a member of a group of `world` pays, in operations of `nbytes`. `direct`: processes read each other's
    memory; else all goes through loopback TCP. Bytes were measured with as much memory in use as two peers have; more
    peers crowd the shared cache as larger operations would."""

    def __init__(self, costs: HostCosts, world: int, nbytes: int, direct: bool) -> None:
        self.costs, self.direct, self._others = costs, direct, max(1, world - 1)
        self.message, self.frame, self.master = Work(costs.message_s), Work(costs.frame_s), Work(costs.master_s)
        self.dialled = Work(costs.message_s + costs.dial_s)
        crowd = max(1, nbytes) * max(2, world) // 2
        self._per_byte = {work: costs.per_byte_s(work, crowd) for work in costs.bytes}

    def streamed(self, nbytes: int) -> bool:
        """Do the bytes go through a socket?"""
        return not self.direct or nbytes <= INLINE

    def launch(self, ticket: Ticket) -> Work:
        """The program's side."""
        return Work(self.costs.launch_s if ticket.moves_data else self.costs.vote_s)

    def sent(self, nbytes: int) -> Work:
        """Some bytes of a stream, by their sender."""
        return Work.of(0.0, nbytes * self._per_byte["send"])

    def received(self, nbytes: int) -> Work:
        """The same, by who reads them."""
        return Work.of(0.0, nbytes * self._per_byte["receive"])

    def landed(self, frame: Frame) -> Work:
        """A frame, once its last byte can be read; of a stream those after the last full segment."""
        seq, word, data = frame
        n, price = len(data), self._per_byte
        reduces, eager = word & 1, seq >> 63
        memory_s = 0.0
        if self.streamed(n):
            memory_s += n % SEGMENT * price["receive"]
            memory_s += n * price["add"] if reduces or eager else 0.0
        elif reduces:
            memory_s += n * price["reduce"]
        else:
            memory_s += n * (price["read"] + (price["add"] if eager else 0.0))
        if reduces:  # of an average; whoever has heard all others divides once
            memory_s += n * price["divide"] / self._others
        return Work.of(self.costs.frame_s, memory_s)


class HostWorld(World):
    """A group whose processes and master are on one machine."""

    def __init__(
        self, costs: HostCosts, world: int, nbytes: int, *, direct: bool = True, memory_bytes: int = 0
    ) -> None:
        super().__init__(latency_s=0.0, bytes_per_s=_ENDLESS)
        self.prices = Prices(costs, world, nbytes, direct)
        self.machine_of_all = Machine(self.loop, costs.cores, costs.memory)
        self.threads = {self.master_host: Thread(self.machine_of_all, costs.wake_s, costs.master_turn_s)}
        """By the host each has for itself."""
        self.exit_ns = round((costs.exit_s + memory_bytes * costs.exit_byte_s) * 1e9)

    def process(self, name: str, host: str, main: Callable[[], Any]) -> Process:
        return HostProcess(self, name, host, main)

    def connection(
        self, source: str, target: str, streams: int = 1, ready: Callable[[], object] | None = None
    ) -> Connection:
        return HostConnection(self, source, target, ready)

    def tell_master(self, who: int, event: ToMaster | Tick | Gone) -> None:
        if isinstance(event, Tick | Beat):
            super().tell_master(who, event)
        else:
            self.threads[self.master_host].hear(self.prices.master, partial(super().tell_master, who, event))


class HostProcess(Process):
    """One whose every event takes its thread some time."""

    world: HostWorld

    def __init__(self, world: HostWorld, name: str, host: str, main: Callable[[], Any]) -> None:
        costs = world.prices.costs
        self.thread = world.threads[host] = Thread(world.machine_of_all, costs.wake_s, costs.turn_s)
        super().__init__(world, name, host, main)

    def call(self, fn: Callable[..., object], *args: Any) -> None:
        self.thread.hear(self._work(fn, args), partial(super().call, fn, *args))

    def _work(self, fn: Callable[..., object], args: tuple[Any, ...]) -> Work:
        prices, port = self.world.prices, self.port
        if port is None or fn == self.program.resume:  # of one that slept
            return FREE
        if fn == port._resume:
            return prices.launch(args[0])
        if fn == port.arrived:
            return prices.landed(args[1])
        return prices.dialled if fn in (port.accept, port.acknowledged) else prices.message

    def crash(self) -> None:
        self.thread.end()
        super().crash()


class HostConnection(Connection):
    """Whoever sends pays first; what a dead process sent last leaves when its memory has been given back."""

    __slots__ = ("_world",)

    def __init__(self, world: HostWorld, source: str, target: str, ready: Callable[[], object] | None) -> None:
        super().__init__(world.network, source, target, ready=ready)
        self._world = world

    def carry(self, nbytes: int, fn: Callable[..., object], *args: Any) -> None:
        leave = partial(super().carry, 0, fn, *args)
        world, thread = self._world, self._world.threads[self.source]
        if thread.ended:
            world.loop.post(world.exit_ns, leave)
        elif self.source == world.master_host:
            thread.send(world.prices.master, leave)
        elif args and getattr(args[0], "__name__", "") == "arrived":
            self._carry_data(nbytes, leave)
        else:
            thread.send(world.prices.message, leave)

    def _carry_data(self, nbytes: int, leave: Callable[[], object]) -> None:
        prices, threads = self._world.prices, self._world.threads
        sender, reader = threads[self.source], threads[self.target]
        sender.send(prices.frame, _nothing)
        if not prices.streamed(nbytes):
            sender.send(FREE, leave)
            return
        whole, rest = divmod(nbytes, SEGMENT)
        for _ in range(whole):
            read = partial(reader.hear, prices.received(SEGMENT), _nothing)
            sender.send(prices.sent(SEGMENT), partial(super().carry, 0, read))
        sender.send(prices.sent(rest), leave)


def _nothing() -> None: ...
