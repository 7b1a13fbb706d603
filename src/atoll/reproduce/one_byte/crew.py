"""Driver: peers of a demonstration as processes, what they say, and a master behind a counting relay."""

import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from atoll.errors import AtollError
from atoll.group.wiring.serve import Master
from atoll.reproduce.one_byte.counting import CountingRelay
from atoll.runtime.processes import LocalProcesses

PATIENCE_S: Final = 240.0
Event = dict[str, Any]


class Crew:
    """Peers by name."""

    def __init__(self, relay: CountingRelay, processes: LocalProcesses, folder: Path) -> None:
        self.relay, self.processes, self.folder = relay, processes, folder
        self.said: dict[str, list[Event]] = {}
        self._running: set[str] = set()
        """Whose last words may still come."""
        self.on_event: Callable[[str, Event], None] = lambda name, event: None

    def start(self, name: str, *options: str) -> None:
        """One more peer."""
        self.said[name] = []
        self._running.add(name)
        argv = [sys.executable, "-m", "atoll.reproduce.one_byte.peer", self.relay.address, "--name", name, *options]
        self.processes.start(argv, name, stdout=self._on_line, env={"OMP_NUM_THREADS": "1"})

    def until(self, holds: Callable[[], bool], what: str) -> None:
        """Wait for that. AtollError: it doesn't come."""
        deadline = time.monotonic() + PATIENCE_S
        while not holds():
            self._running -= {end.name for end in self.processes.wait_any(0.1)}
            if time.monotonic() > deadline or not (self._running or holds()):
                raise AtollError(f"{what}: not seen; {self._last_words()}")

    def ended(self) -> None:
        """Wait until all have ended."""
        self.until(lambda: not self._running, "the end of all peers")

    def of(self, name: str, event: str) -> list[Event]:
        """What a peer has said of that kind."""
        return [said for said in self.said[name] if said["event"] == event]

    def step(self, name: str) -> int:
        """How far it has come."""
        return self.of(name, "step")[-1]["step"] if self.of(name, "step") else 0

    def _on_line(self, name: str, line: str) -> None:
        event = json.loads(line)
        self.said[name].append(event)
        self.on_event(name, event)

    def _last_words(self) -> str:
        return "; ".join(f"{name}: {said[-1] if said else 'nothing'}" for name, said in self.said.items())[:600]


@contextmanager
def crew() -> Iterator[Crew]:
    """A master, a relay before it, and room for peers."""
    with (
        TemporaryDirectory() as folder,
        Master() as master,
        CountingRelay(master.address) as relay,
        LocalProcesses(Path(folder)) as processes,
    ):
        yield Crew(relay, processes, Path(folder))
