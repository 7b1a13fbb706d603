"""Driver: one socket loop and who turns it: a thread of its own, or the program's thread while that waits for an
outcome.

A wake-up of another thread or process costs more than all else in a small operation. So a program that waits turns the
loop itself, and what it asks for is done in its own thread, under the lock; the loop's thread takes over whenever no
program waits. It is told so only after a long wait; in between it looks, every few milliseconds, whether it is needed.
"""

import logging
import threading
import time
from collections.abc import Callable
from typing import Final

from atoll.net.loop import SocketLoop

log = logging.getLogger("atoll.net")

PARK_S: Final = 0.004
_LONGEST_PARK_S: Final = 1.0


class DrivenLoop:
    """Callbacks of `net` run in one thread at a time. `failed(error)`: one of them raised; nothing more will run."""

    def __init__(self, net: SocketLoop, name: str, failed: Callable[[Exception], None]) -> None:
        self.net = net
        self.closed = False
        self._failed = failed
        self._lock = threading.RLock()
        """Held by whoever runs callbacks."""
        self._seat = threading.Lock()
        """Held by whoever waits for sockets."""
        self._driven = False
        """A program turns the loop."""
        self._drives = 0
        self._left_at = 0.0
        self._handover = threading.Event()
        self._closing = False
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Begin to turn."""
        self._thread.start()

    def call(self, fn: Callable[[], object]) -> None:
        """Run `fn` like a callback, now, in the caller's thread."""
        with self._lock:
            before = self.net.next_moment()
            self._guard(fn)
            sooner = self.net.next_moment() < before
        if self._seat.locked() and (sooner or not self.net.wakes_for_changes):
            self.net.ring()  # whoever waits for sockets would sleep through it

    def drive(self, done: Callable[[], bool], timeout_s: float | None) -> bool:
        """Turn the loop until `done()` or for so long. False, at once: another thread of the program does already."""
        with self._lock:
            if self._driven or self.closed:
                return False
            self._driven = True
            self._drives += 1
        if not self._seat.acquire(blocking=False):
            self.net.ring()
            self._seat.acquire()
        began = time.monotonic()
        try:
            while not done() and not self.closed:
                left = None if timeout_s is None else began + timeout_s - time.monotonic()
                if left is not None and left <= 0:
                    break
                self._turn(left)
        finally:
            self._left_at = time.monotonic()
            self._seat.release()
            self._driven = False
            if self._left_at - began > PARK_S:
                self._handover.set()
        return True

    def close(self, last: Callable[[], None]) -> None:
        """Run `last`, give what is queued a second to leave, close all sockets."""
        with self._lock:
            if not self._closing:
                self._guard(last)
            self._closing = True
        self._handover.set()
        self.net.ring()
        self._thread.join(10.0)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        park_s, drives = PARK_S, -1
        while not self._closing:
            if self._driven or time.monotonic() - self._left_at < PARK_S:
                same = self._driven and self._drives == drives
                park_s, drives = min(2 * park_s, _LONGEST_PARK_S) if same else PARK_S, self._drives
                if self._handover.wait(park_s):
                    self._handover.clear()
            else:
                with self._seat:
                    self._turn(None)
        with self._seat, self._lock:
            if not self.closed:
                self.net.flush(within_s=1.0)
                self.closed = True
                self.net.close()

    def _turn(self, timeout_s: float | None) -> None:
        ready = self.net.select(timeout_s)
        with self._lock:
            if not self.closed:
                self._guard(lambda: self.net.handle(ready))

    def _guard(self, fn: Callable[[], object]) -> None:
        try:
            fn()
        except Exception as error:
            log.exception("the socket loop failed")
            self._closing = self.closed = True
            self._failed(error)
            self.net.close()
