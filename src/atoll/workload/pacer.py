"""Policy: an open-loop driver: when to send which request. It never waits for answers, and tells how late it was.

A driver, real or virtual, sleeps until `wake_s`, sends all that `decide` gives it and tells of answers by `handle`. A
request keeps the time it was meant for, however late it is sent, so no delay hides in the schedule.
"""

import heapq
import math
from array import array
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.workload.api import Arrival, Demand, Workload


class Pacer:
    """Paces a workload; nothing that is meant for later than `until_s` is sent. Times are seconds since its start."""

    def __init__(self, workload: Workload, until_s: float = math.inf) -> None:
        self._workload, self._until_s = workload, until_s
        self._coming = iter(workload.start())
        self._due: list[tuple[float, int, Demand]] = []
        self._order = 0
        self._lateness_s = array("d")
        self._pull()

    @property
    def wake_s(self) -> float:
        """When there is something to send again; infinity: never, unless an answer brings more."""
        return self._due[0][0] if self._due else math.inf

    @property
    def sent(self) -> int:
        """How many requests so far."""
        return len(self._lateness_s)

    @property
    def lateness_s(self) -> NDArray[Any]:
        """Of each request sent, in order: how long after its time."""
        return np.array(self._lateness_s)

    def decide(self, now_s: float) -> list[Demand]:
        """All that is to be sent by now, in order of time."""
        ready = []
        while self.wake_s <= now_s:
            at_s, order, demand = heapq.heappop(self._due)
            ready.append(demand)
            self._lateness_s.append(now_s - at_s)
            if order < 0:
                self._pull()
        return ready

    def handle(self, answered: Arrival, now_s: float) -> None:
        """An answer is complete. Of those that failed, nobody goes on."""
        for demand in self._workload.handle(answered, now_s):
            self._order += 1
            self._add(demand, self._order)

    def _pull(self) -> None:
        """Have the next of those who wait for nobody ready: one at a time, for they may be without end."""
        demand = next(self._coming, None)
        if demand:
            self._add(demand, -1)

    def _add(self, demand: Demand, order: int) -> None:
        if demand.arrival.at_s <= self._until_s:
            heapq.heappush(self._due, (demand.arrival.at_s, order, demand))
