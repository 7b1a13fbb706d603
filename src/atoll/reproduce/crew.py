"""Driver: processes of a demonstration by name, and what they say: a JSON object per line, `event` tells of what
kind."""

import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from atoll.errors import AtollError
from atoll.net.lab import Lab
from atoll.runtime.processes import LocalProcesses, popen

ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
PATIENCE_S: Final = 240.0
LOOK_S: Final = 0.05
PORT: Final = 48148
"""Of a master in a lab."""
Event = dict[str, Any]
Starter = Callable[..., Any]
"""As `subprocess.Popen`."""


class Crew:
    """Processes by name, each with one thread for mathematics."""

    def __init__(self, processes: LocalProcesses, folder: Path, look_s: float = LOOK_S) -> None:
        self.processes, self.folder = processes, folder
        self.on_event: Callable[[str, Event], object] = lambda name, event: None
        self.codes: dict[str, int] = {}
        """Of those that have ended, when all they said has been heard."""
        self.pids: dict[str, int] = {}
        self._look_s = look_s
        self._said: defaultdict[tuple[str, str], list[Event]] = defaultdict(list)
        self._last: dict[str, Event] = {}
        self._logs: dict[str, Path] = {}

    def start(self, name: str, *argv: str, env: Mapping[str, str] = ONE_THREAD, by: Starter = popen) -> None:
        """`python ARGV`. `by`: on a host of a lab, see `on`."""
        self.codes.pop(name, None)
        child = self.processes.start([sys.executable, *argv], name, stdout=self._line, env=env, by=by)
        self._logs[name], self.pids[name] = child.log, child.pid

    def master(self, name: str = "master", *flags: str, listen: str = "127.0.0.1:0", by: Starter = popen) -> str:
        """`atoll master`; where it listens."""
        before = len(self.of("listening", name))
        self.start(name, "-m", "atoll", "master", "--json", "--listen", listen, *flags, by=by)
        self.until(lambda: len(self.of("listening", name)) > before, "a master that listens", 30.0)
        return str(self.of("listening", name)[-1]["address"])

    def of(self, event: str, name: str = "") -> list[Event]:
        """All events of a kind in the order they came, each with who it is `said_by`: everybody, or of one by name."""
        return self._said[name, event]

    def until(self, holds: Callable[[], object], what: str, seconds: float = PATIENCE_S) -> None:
        """Wait for that. AtollError: it doesn't come in time, or nobody is left who could bring it."""
        deadline = time.monotonic() + seconds
        while not holds():
            self._look(min(self._look_s, max(0.0, deadline - time.monotonic())))
            late = time.monotonic() > deadline
            if (late or not self.running()) and not holds():
                why = f"not in {seconds:g} s" if late else "nobody is left"
                raise AtollError(f"waited in vain for {what}: {why}; {self.last_words()}")

    def until_ended(self, *names: str, seconds: float = PATIENCE_S) -> None:
        """Wait for the end of these, or of all. AtollError: one takes longer, or ends with another code than 0."""
        names = names or tuple(self._logs)
        self.until(lambda: set(names) <= self.codes.keys(), f"the end of {', '.join(names)}", seconds)
        if any(self.codes[name] for name in names):
            raise AtollError(f"a process failed; {self.last_words()}")

    def kill(self, name: str) -> None:
        """SIGKILL; returns when it is gone."""
        self.processes.kill(name)
        self.until(lambda: name in self.codes, f"the end of {name}", 30.0)

    def running(self) -> list[str]:
        """Those of whom more may be heard."""
        return [name for name in self._logs if name not in self.codes]

    def _look(self, timeout_s: float) -> None:
        for end in self.processes.wait_any(timeout_s):
            self.codes[end.name] = end.code

    def _line(self, name: str, line: str) -> None:
        event = {"event": "", "said_by": name, **json.loads(line)}
        for whose in ("", name):
            self._said[whose, event["event"]].append(event)
        self._last[name] = event
        self.on_event(name, event)

    def last_words(self) -> str:
        """What each said last, and what stands last in its log."""
        words = []
        for name, log in self._logs.items():
            event = {key: value for key, value in self._last.get(name, {}).items() if key != "said_by"}
            line = log.read_text("utf-8", "replace").strip().splitlines()[-1:]
            words.append(f"{name}: {' '.join([*([json.dumps(event)[:200]] if event else []), *line]) or 'nothing'}")
        return "; ".join(words)


@contextmanager
def crew(look_s: float = LOOK_S) -> Iterator[Crew]:
    """Nobody yet. Who still runs in the end is killed."""
    with tempfile.TemporaryDirectory() as folder, LocalProcesses(Path(folder)) as processes:
        try:
            yield Crew(processes, Path(folder), look_s)
        finally:
            for name in processes.alive():
                processes.kill(name)


def on(network: Lab, host: int) -> Starter:
    """Starts processes on a host of a lab."""
    return partial(network.start, host)


@contextmanager
def crew_in(network: Lab, *flags: str) -> Iterator[tuple[Crew, str]]:
    """And a master on host 0; its address."""
    with crew() as found:
        listen = f"{network.address(0)}:{PORT}"
        yield found, found.master("master", "--insecure", *flags, listen=listen, by=on(network, 0))
