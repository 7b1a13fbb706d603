"""Driver: a group under fire: processes on this machine are spawned, killed and stopped at random, from one seed."""

import json
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import atoll
from atoll import rng
from atoll.reproduce.api import Say
from atoll.runtime.processes import LocalProcesses

FOREVER: Final = 10**9
MOST_PEERS: Final = 8
SETTLED_S: Final = 2.0


@dataclass
class Report:
    """What a churn run came to."""

    seconds: float = 0.0
    steps: int = 0
    """Revisions that somebody reached."""
    worst_gap_s: float = 0.0
    """Longest time without a step while at least two peers ran."""
    spawned: int = 0
    killed: int = 0
    stopped: int = 0
    expelled: int = 0
    failures: list[str] = field(default_factory=list)
    """Peers that ended in an error."""
    hashes: dict[int, str] = field(default_factory=dict)
    compared: int = 0
    """Hashes held against one that another peer had reported."""
    differing: list[int] = field(default_factory=list)


class Churn:
    """Spawns, SIGKILLs and SIGSTOPs peers every 0.3 to 1 s. Only one is stopped at a time."""

    def __init__(self, seed: int, *, tags: int = 8, most: int = MOST_PEERS, say: Say = lambda text: None) -> None:
        self.dice = rng.stream(seed, "churn")
        self.tags, self.most, self.say = tags, most, say
        self.report = Report()
        self._stopped: tuple[str, float] | None = None
        self._last_step = 0.0
        self._stepped: dict[str, float] = {}
        """When each peer last took a step: who has not yet holds no state, and doesn't count as alive."""
        self._count = 0

    def run(self, seconds: float) -> Report:
        """Go on for so long, then end all."""
        with tempfile.TemporaryDirectory() as folder, atoll.Master() as master, LocalProcesses(Path(folder)) as peers:
            for _ in range(3):
                self._spawn(peers, master.address)
            self._wait_for_first_step(peers)
            began = self._last_step = time.monotonic()
            action = self._soon(began)
            while (now := time.monotonic()) < began + seconds:
                self._hear(peers, min(action, began + seconds) - now)
                if time.monotonic() >= action:
                    self._act(peers, master.address)
                    action = self._soon(time.monotonic())
            self._hear(peers, 0.0)
            self.report.seconds = time.monotonic() - began
        return self.report

    def _soon(self, now: float) -> float:
        return now + float(self.dice.uniform(0.3, 1.0))

    def _wait_for_first_step(self, peers: LocalProcesses) -> None:
        deadline = time.monotonic() + 30.0
        while not self.report.steps and time.monotonic() < deadline:
            self._hear(peers, 1.0)
        if not self.report.steps:
            raise atoll.AtollError(f"no step within 30 s: {'; '.join(self.report.failures) or 'peers say nothing'}")

    def _spawn(self, peers: LocalProcesses, address: str) -> None:
        name = f"peer-{self._count}"
        self._count += 1
        self.report.spawned += 1
        argv = [sys.executable, "-m", "atoll.reproduce.peer", address, str(FOREVER), "--pace", "0.01", "--rejoin"]
        peers.start([*argv, "--tags", str(self.tags)], name, stdout=self._line, env={"OMP_NUM_THREADS": "1"})

    def _act(self, peers: LocalProcesses, address: str) -> None:
        if self._stopped and time.monotonic() >= self._stopped[1]:
            name, _ = self._stopped
            self._stopped = None
            if name in peers.alive():
                peers.thaw(name)
                self.say(f"thawed {name}")
            return
        alive = peers.alive()
        now = time.monotonic()
        running = [
            n for n in alive if now - self._stepped.get(n, -1e9) < SETTLED_S and n != (self._stopped or ("",))[0]
        ]
        what = self.dice.choice(["spawn", "kill", "stop"])
        if len(running) <= 2 or what == "spawn":
            if len(alive) >= self.most:
                return
            self._spawn(peers, address)
            self.say(f"spawned peer-{self._count - 1}; {len(alive) + 1} live")
        elif what == "stop" and self._stopped is None:
            name = str(self.dice.choice(running))
            peers.freeze(name)
            self._stopped = name, time.monotonic() + float(self.dice.uniform(0.3, 6.0))
            self.report.stopped += 1
            self.say(f"stopped {name}")
        else:
            name = str(self.dice.choice(running))
            peers.kill(name)
            self.report.killed += 1
            self.say(f"killed {name}; {len(alive) - 1} live")

    def _hear(self, peers: LocalProcesses, timeout_s: float) -> None:
        """Take in what the peers say, for at most so long."""
        for exit_ in peers.wait_any(max(0.0, timeout_s)):
            if exit_.code > 0:
                self.report.failures.append(f"{exit_.name} ended with {exit_.code}")
        self.report.worst_gap_s = max(self.report.worst_gap_s, time.monotonic() - (self._last_step or time.monotonic()))

    def _line(self, name: str, line: str) -> None:
        said: dict[str, Any] = json.loads(line)
        if said["event"] == "failed":
            self.report.failures.append(f"{name}: {said['message']}")
        if said["event"] == "expelled":
            self.report.expelled += 1
        if "hash" in said:
            self._compare(said["revision"], said["hash"])
        if said["event"] == "step":
            now = time.monotonic()
            self.report.worst_gap_s = max(self.report.worst_gap_s, now - (self._last_step or now))
            self._last_step = self._stepped[name] = now
            self.report.steps = max(self.report.steps, said["revision"])

    def _compare(self, revision: int, digest: str) -> None:
        known = self.report.hashes.get(revision)
        if known is None:
            self.report.hashes[revision] = digest
            return
        self.report.compared += 1
        if known != digest and revision not in self.report.differing:
            self.report.differing.append(revision)
