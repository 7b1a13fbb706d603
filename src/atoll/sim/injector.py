"""Driver: makes the faults of `sim/faults.py` happen to a target in virtual time, and ends them again."""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from atoll.errors import InvalidData
from atoll.sim.faults import Crash, Fault, Hang, Preempt, Timed, Trigger
from atoll.sim.loop import Loop


class Target(Protocol):
    """The world that suffers. Two equal faults may overlap: what was applied twice ends when it is lifted twice."""

    def apply(self, fault: Fault) -> None:
        """From now on. A `Preempt` is only the notice; the `Crash` follows."""

    def lift(self, fault: Fault) -> None:
        """An earlier one is over; never a crash, and never a hang of a process that has crashed since."""

    def restart(self, node: str, incarnation: int) -> None:
        """A new process starts on a node that had crashed."""


class Injector:
    """Keeps who is down and the incarnation of each node, from 1. What hits a process that is down does nothing."""

    def __init__(self, loop: Loop, target: Target) -> None:
        self.incarnation: defaultdict[str, int] = defaultdict(lambda: 1)
        self.down: set[str] = set()
        self._loop, self._target = loop, target
        self._triggers: list[Trigger] = []
        self._tokens: set[int] = set()

    def play(self, faults: Iterable[Timed], until_s: float = math.inf) -> None:
        """Let `faults` strike in their order, those before `until_s`; the stream may be endless.

        Raises `InvalidData` (from the loop, when its turn comes) for a fault earlier than the one before or than now.
        """
        self._next(iter(faults), until_s)

    def watch(self, trigger: Trigger) -> None:
        """Let its fault strike when `saw` has told of the event it waits for."""
        self._triggers.append(trigger)

    def saw(self, event: str, **fields: object) -> None:
        """The world tells what happens in it; a fault this triggers strikes before the call returns."""
        for trigger in self._triggers:
            if trigger.handle(event, fields):
                self.strike(trigger.fault, trigger.for_s)

    def strike(self, fault: Fault, for_s: float = math.inf) -> None:
        """Now, for so many seconds."""
        if isinstance(fault, Crash | Hang | Preempt) and fault.node in self.down:
            return
        self._target.apply(fault)
        match fault:
            case Crash(node=node):
                self.down.add(node)
                self._after(for_s, self._restart, node)
            case Preempt(node=node):
                self._after(fault.notice_s, self._take_away, node, self.incarnation[node], for_s)
            case Hang(node=node):
                self._after(for_s, self._wake, fault, self.incarnation[node])
            case _:
                self._after(for_s, self._target.lift, fault)

    def stop(self) -> None:
        """No more faults, and none of those that last is lifted."""
        for token in self._tokens:
            self._loop.cancel(token)
        self._tokens.clear()
        self._triggers.clear()

    def _next(self, faults: Iterator[Timed], until_s: float) -> None:
        timed = next(faults, None)
        if timed is None or timed.at_s >= until_s:
            return
        delay_ns = round(timed.at_s * 1e9) - self._loop.now_ns
        if delay_ns < 0:
            raise InvalidData(f"{timed} comes after {self._loop.now_s:.9f} s; sort the faults, or `merge` the streams")
        self._post(delay_ns, self._strike_next, timed, faults, until_s)

    def _strike_next(self, timed: Timed, faults: Iterator[Timed], until_s: float) -> None:
        self._next(faults, until_s)
        self.strike(timed.fault, timed.for_s)

    def _restart(self, node: str) -> None:
        self.down.discard(node)
        self.incarnation[node] += 1
        self._target.restart(node, self.incarnation[node])

    def _take_away(self, node: str, incarnation: int, for_s: float) -> None:
        if self.incarnation[node] == incarnation:
            self.strike(Crash(node), for_s)

    def _wake(self, hang: Hang, incarnation: int) -> None:
        if hang.node not in self.down and self.incarnation[hang.node] == incarnation:
            self._target.lift(hang)

    def _after(self, seconds: float, fn: Callable[..., object], *args: object) -> None:
        if seconds < math.inf:
            self._post(round(seconds * 1e9), fn, *args)

    def _post(self, delay_ns: int, fn: Callable[..., object], *args: object) -> None:
        def fire() -> None:
            self._tokens.discard(token)
            fn(*args)

        token = self._loop.post(delay_ns, fire)
        self._tokens.add(token)
