"""Driver: what the lab's own processes do all day: sleep until a file is ready, a moment comes or the lab orders
something.

Orders are lines of JSON on standard input, each answered by one on standard output. The end of that input is the end of
the process, so it can't outlive the lab.
"""

import heapq
import itertools
import json
import os
import select
import selectors
import sys
import time
from collections.abc import Callable
from typing import Any, Final

_STDIN: Final = 0


class Turns:
    """Callbacks per file and per moment of `time.monotonic`. `obey(*order)` answers what JSON can say."""

    def __init__(self, obey: Callable[..., Any]) -> None:
        self.selector = selectors.DefaultSelector()
        """What is registered has a callback as its data: `ready(events)`."""
        self._moments: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._obey = obey
        self._orders = b""
        self._ended = False
        self.selector.register(_STDIN, selectors.EVENT_READ, self._read_orders)

    def at(self, moment: float, fn: Callable[..., None], *args: Any) -> None:
        """Call `fn(*args)` then; what is due at one moment comes in the order of these calls."""
        heapq.heappush(self._moments, (moment, next(self._numbers), fn, args))

    def run(self) -> None:
        """Until the lab ends."""
        moments, now, pop = self._moments, time.monotonic, heapq.heappop
        files = [self.selector.fileno()]
        while not self._ended:
            wait_s = max(0.0, moments[0][0] - now()) if moments else None
            select.select(files, (), (), wait_s)  # exact; epoll's own wait is in whole milliseconds
            for key, events in self.selector.select(0):
                key.data(events)
            time_now = now()
            while moments and moments[0][0] <= time_now:
                _, _, fn, args = pop(moments)
                fn(*args)

    def _read_orders(self, _: int) -> None:
        said = os.read(_STDIN, 65536)
        self._ended = not said
        *orders, self._orders = (self._orders + said).split(b"\n")
        for order in orders:
            sys.stdout.write(json.dumps(self._obey(*json.loads(order))) + "\n")
            sys.stdout.flush()
