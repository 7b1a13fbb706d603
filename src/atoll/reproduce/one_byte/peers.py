"""Driver: peers of a demonstration as processes, and a master behind a counting relay."""

from collections.abc import Iterator
from contextlib import contextmanager

import atoll
from atoll.reproduce.crew import Crew, crew
from atoll.reproduce.one_byte.counting import CountingRelay


class Peers:
    """Start them, and see how far they come; `crew` has what they said."""

    def __init__(self, crew: Crew, relay: CountingRelay) -> None:
        self.crew, self.relay = crew, relay

    def start(self, name: str, *options: str) -> None:
        """One more."""
        self.crew.start(name, "-m", "atoll.reproduce.one_byte.peer", self.relay.address, "--name", name, *options)

    def step(self, name: str) -> int:
        """How far it has come."""
        steps = self.crew.of("step", name)
        return int(steps[-1]["step"]) if steps else 0

    def all_ended(self) -> None:
        """Wait until they have."""
        self.crew.until(lambda: not self.crew.running(), "the end of all peers")


@contextmanager
def peers() -> Iterator[Peers]:
    """A master, a relay before it, and room for peers."""
    with atoll.Master() as master, CountingRelay(master.address) as relay, crew() as found:
        yield Peers(found, relay)
