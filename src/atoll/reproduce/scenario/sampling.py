"""Driver: now and then during a run: how busy links are, for its trace, and how far it is, for the one who waits."""

import time
from typing import Final

from atoll.fabric import Link
from atoll.record import Record
from atoll.reproduce.scenario.api import Say, duration
from atoll.sim.net import Network

SAID_EVERY_S: Final = 0.5
"""Of real time."""
EVERY: Final = 0.01
"""Of the time so far: samples are spread evenly over its logarithm, for nobody knows how long a run will be."""


class LinkSampler:
    """Observes bytes per second of each link that carries any."""

    def __init__(self, network: Network, record: Record) -> None:
        self._network, self._record = network, record
        self._carried: dict[Link, float] = dict.fromkeys(network.fabric.links.values(), 0.0)
        self._at_s = self._next_s = 0.0
        self._silent: set[Link] = set(self._carried)

    def look(self) -> None:
        """To be called often; it samples when it is time to."""
        now_s = self._network.loop.now_s
        if now_s < self._next_s or now_s <= self._at_s:
            return
        for link, before in self._carried.items():
            carried = self._network.usage(link).work
            rate = (carried - before) / (now_s - self._at_s)
            if rate or link not in self._silent:
                self._record.observe(f"link {link.name}/bytes per s", round(rate, 3))
            (self._silent.discard if rate else self._silent.add)(link)
            self._carried[link] = carried
        self._at_s, self._next_s = now_s, now_s * (1 + EVERY)


class Progress:
    """Tells `say` the virtual time, and what else, twice a second."""

    def __init__(self, say: Say, until_s: float | None) -> None:
        self._say, self._until_s = say, until_s
        self._said_at = time.monotonic()

    def look(self, now_s: float, what: str) -> None:
        """To be called often."""
        if time.monotonic() - self._said_at >= SAID_EVERY_S:
            self._said_at = time.monotonic()
            end = f" of {duration(self._until_s)}" if self._until_s else ""
            self._say(f"{duration(now_s)}{end} simulated, {what}")
