"""Driver: virtual time. One heap of events, and programs (blocking threads) that run one at a time behind a baton.

Time is integer nanoseconds from 0. Exactly one of {loop, program threads} runs at any moment, so order is decided by
the heap alone: the same seed gives the same run. Equal times go first come first served; `tie_break` permutes them,
which shows decisions that hang on luck.
"""

import heapq
import random
import threading
from collections.abc import Callable
from typing import Any

from atoll.errors import Deadlock

FOREVER_NS = 1 << 62


class Crash(BaseException):
    """A simulated kill: unwinds a program from wherever it waits."""


class Loop:
    """The clock and its events."""

    def __init__(self, tie_break: int | None = None) -> None:
        self.now_ns = 0
        self.count = 0
        """Events run so far."""
        self.programs: list[Program] = []
        self._heap: list[tuple[int, float, int, Callable[..., object], tuple[Any, ...]]] = []
        self._last = 0
        self._cancelled: set[int] = set()
        self._tie = random.Random(tie_break).random if tie_break is not None else lambda: 0.0

    @property
    def now_s(self) -> float:
        """Seconds of virtual time passed."""
        return self.now_ns / 1e9

    def post(self, delay_ns: int, fn: Callable[..., object], *args: Any) -> int:
        """Call `fn(*args)` after `delay_ns`; returns a token for `cancel`."""
        if delay_ns < 0:
            raise ValueError(f"an event can't be {-delay_ns} ns in the past")
        self._last += 1
        heapq.heappush(self._heap, (self.now_ns + int(delay_ns), self._tie(), self._last, fn, args))
        return self._last

    def cancel(self, token: int) -> None:
        """Forget an event that has not run yet (only such a one); it moves no clock."""
        self._cancelled.add(token)
        if len(self._cancelled) > 64 and 2 * len(self._cancelled) > len(self._heap):
            self._heap = [entry for entry in self._heap if entry[2] not in self._cancelled]
            heapq.heapify(self._heap)
            self._cancelled.clear()

    def step(self, until_ns: int = FOREVER_NS) -> bool:
        """Run the next event due by `until_ns`; False: there is none."""
        while self._heap and self._heap[0][0] <= until_ns:
            when, _, token, fn, args = heapq.heappop(self._heap)
            if token in self._cancelled:
                self._cancelled.discard(token)
                continue
            self.now_ns = when
            self.count += 1
            fn(*args)
            return True
        return False

    def pending(self) -> int:
        """Events still to run."""
        return len(self._heap) - len(self._cancelled)

    def run(self, until_ns: int = FOREVER_NS) -> None:
        """Run until nothing is left to do or the time is up. Deadlock: programs wait for what can't come."""
        while self.step(until_ns):
            pass
        if not self._heap:
            self.check_deadlock()

    def check_deadlock(self) -> None:
        """To be called when nothing is left to happen: raises Deadlock where programs wait all the same."""
        waiting = [f"{p.name} waits for {p.waits_for}" for p in self.programs if not p.ended]
        if waiting:
            raise Deadlock(f"nothing is left to happen at {self.now_s:.6f} s, but " + "; ".join(waiting))

    def close(self) -> None:
        """End every program still waiting, so that no thread is left behind."""
        for program in self.programs:
            program.crash()


class Program:
    """A blocking function in a thread of its own, which runs only while it holds the baton."""

    def __init__(self, loop: Loop, name: str, body: Callable[[], Any]) -> None:
        self.loop, self.name, self.body = loop, name, body
        self.waits_for = "its start"
        self.ended = False
        self.result: Any = None
        self._error: BaseException | None = None
        self._doom: Crash | None = None
        self._ours, self._loops = threading.Semaphore(0), threading.Semaphore(0)
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        loop.programs.append(self)
        self._thread.start()

    def _run(self) -> None:
        self._ours.acquire()
        try:
            if self._doom is None:
                self.result = self.body()
        except Crash:
            pass
        except BaseException as error:
            self._error = error
        self.ended = True
        self._loops.release()

    def resume(self) -> None:
        """Loop side: hand the baton over; returns when the program waits again or has ended. Its error is raised
        here."""
        if self.ended:
            return
        self._ours.release()
        self._loops.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def park(self, waits_for: str) -> None:
        """Program side: give the baton back and sleep until resumed."""
        self.waits_for = waits_for
        self._loops.release()
        self._ours.acquire()
        if self._doom is not None:
            raise self._doom

    def crash(self) -> None:
        """Loop side: end the program where it waits, as kill -9 would."""
        if not self.ended:
            self._doom = Crash()
            self.resume()
