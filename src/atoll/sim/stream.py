"""Driver: streams of kernels in virtual time: each runs its kernels one after another, events order them across."""

import math
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Protocol

from atoll.errors import InvalidConfig

Done = Callable[[], object]
Beside = Callable[[Done], object]
"""What goes on elsewhere while a kernel runs, a flow in the network for example; it calls back when it is over."""


@dataclass(frozen=True, slots=True)
class Kernel:
    """`ctas` equal pieces of work, on `max_sms` at once at most. One that communicates holds `c_sms` from its start to
    its end (0: a copy engine's) and uses memory bandwidth alone where it has bytes."""

    name: str
    ctas: int
    flops_per_cta: float = 0.0
    bytes_per_cta: float = 0.0
    max_sms: int | None = None
    is_comm: bool = False
    c_sms: int = 0

    def __post_init__(self) -> None:
        amounts = (self.ctas, self.flops_per_cta, self.bytes_per_cta, self.c_sms)
        if not all(0 <= amount < math.inf for amount in amounts) or (self.max_sms is not None and self.max_sms < 1):
            raise InvalidConfig(f"kernel {self.name!r}: amounts must be finite and at least 0, max_sms at least 1")
        if self.c_sms and not self.is_comm:
            raise InvalidConfig(f"kernel {self.name!r}: c_sms are held by a kernel with is_comm only; bound max_sms")
        if self.is_comm and not self.c_sms and self.flops_per_cta:
            raise InvalidConfig(f"kernel {self.name!r}: without SMs it can't compute; give it c_sms or no flops")


class Event:
    """Something that happens once; streams may wait for it, those of other devices too."""

    __slots__ = ("_then", "happened")

    def __init__(self, happened: bool = False) -> None:
        self.happened = happened
        self._then: list[Done] = []

    def then(self, fn: Done) -> None:
        """Call `fn` when it has happened; at once if it has."""
        if self.happened:
            fn()
        else:
            self._then.append(fn)

    def set(self) -> None:
        """It happens now."""
        self.happened = True
        then, self._then = self._then, []
        for fn in then:
            fn()


class Runner(Protocol):
    """What a stream needs of its device."""

    def check(self, kernel: Kernel) -> None:
        """InvalidConfig: it can never run here."""

    def run(self, lane: str, kernel: Kernel, beside: Beside | None, done: Done) -> None:
        """Begin it, and `beside` with it; call `done` when both are over."""


@dataclass(frozen=True, slots=True)
class _Launch:
    kernel: Kernel
    after: tuple[Event, ...]
    beside: Beside | None
    end: Event


class Stream:
    """Kernels that run one after another."""

    def __init__(self, runner: Runner, lane: str) -> None:
        self.lane = lane
        self.last = Event(happened=True)
        """The end of the kernel launched last."""
        self._runner = runner
        self._line: deque[_Launch] = deque()
        self._running: _Launch | None = None
        self._waits_for: Event | None = None
        self._before_next: list[Event] = []

    def launch(self, kernel: Kernel, *, after: Iterable[Event] = (), beside: Beside | None = None) -> Event:
        """Run `kernel` after all launched before it and after these events; it ends when `beside` is over, too.

        Returns its end. InvalidConfig: it needs more SMs than there are.
        """
        self._runner.check(kernel)
        self.last = Event()
        self._line.append(_Launch(kernel, (*self._before_next, *after), beside, self.last))
        self._before_next.clear()
        self._advance()
        return self.last

    def wait(self, event: Event) -> None:
        """All that is launched from now on runs after `event`."""
        self._before_next.append(event)

    def waits(self) -> str | None:
        """What it is at, in words; None: it is idle."""
        if self._running:
            return f"{self.lane} runs {self._running.kernel.name!r}"
        return f"{self.lane} waits to run {self._line[0].kernel.name!r}" if self._line else None

    def abort(self) -> None:
        """Forget all launched; their ends never come."""
        self._line.clear()
        self._before_next.clear()
        self._running = self._waits_for = None
        self.last = Event(happened=True)

    def _advance(self) -> None:
        while self._line and self._running is None:
            missing = next((event for event in self._line[0].after if not event.happened), None)
            if missing is not None:
                if missing is not self._waits_for:
                    self._waits_for = missing
                    missing.then(self._advance)
                return
            self._running, self._waits_for = self._line.popleft(), None
            self._start(self._running)

    def _start(self, launch: _Launch) -> None:
        def finish() -> None:
            if self._running is launch:
                self._running = None
                launch.end.set()
                self._advance()

        self._runner.run(self.lane, launch.kernel, launch.beside, finish)
