"""Driver: a peer is killed while a fragment travels, another one comes. (Streaming DiLoCo, "Done when" 5.)"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import atoll
from atoll.errors import AtollError
from atoll.reproduce.api import Line, Say, judged
from atoll.runtime.processes import LocalProcesses
from atoll.train.schedule import Finish
from atoll.train.settings import TrainSettings

DELAY = 3
SETTINGS = TrainSettings(strategy="streaming", every=16, fragments=4, delay=DELAY, codec="e3m0", steps=2400, batch=4)
Event = dict[str, Any]


@dataclass
class Told:
    """What peers a, b and c, and d who came when a was killed, have said."""

    at: int = 0
    """Steps a had taken."""
    said: dict[str, list[Event]] = field(default_factory=dict)

    def of(self, name: str, event: str) -> list[Event]:
        """That peer's events of that kind."""
        return [said for said in self.said.get(name, []) if said["event"] == event]

    @property
    def hashes(self) -> dict[int, set[str]]:
        """Of what is shared, by the step after which; one each, if all is well."""
        found: dict[int, set[str]] = {}
        for name in self.said:
            for said in self.of(name, "step"):
                if "hash" in said:
                    found.setdefault(said["revision"], set()).add(said["hash"])
        return found

    @property
    def finals(self) -> set[str]:
        """Hashes at the end."""
        return {said["hash"] for name in self.said for said in self.of(name, "done")}


def kill_one_of_three(flags: Sequence[str], after: int, say: Say) -> Told:
    """`atoll join` by three peers; SIGKILL to one of them once it has taken `after` steps, and one more joins.
    AtollError: they don't get that far."""
    told = Told()

    def line(name: str, text: str) -> None:
        told.said.setdefault(name, []).append(json.loads(text))

    def steps(name: str) -> int:
        return max((said["step"] for said in told.of(name, "step")), default=0)

    def ended(name: str) -> bool:
        return bool(told.of(name, "done") or told.of(name, "failed"))

    with tempfile.TemporaryDirectory() as folder, atoll.Master() as master, LocalProcesses(Path(folder)) as peers:

        def start(name: str, min_world: int) -> None:
            run = Path(folder, f"run-{name}")
            run.mkdir()
            argv = [sys.executable, "-m", "atoll", "join", master.address, "--name", name, *flags, "--json"]
            argv += ["--min-world", str(min_world), "--run-dir", str(run)]
            peers.start(argv, name, stdout=line, env={"OMP_NUM_THREADS": "1"})

        def wait_until(ready: Any, seconds: float) -> None:
            deadline = time.monotonic() + seconds
            while not ready() and time.monotonic() < deadline:
                peers.wait_any(0.01)

        for name in "abc":
            start(name, 3)
        wait_until(lambda: steps("a") >= after, 200.0)
        told.at = steps("a")
        if ended("a") or told.at < after:
            raise AtollError(f"three peers don't train: {told.said}")
        peers.kill("a")
        say("and another one comes")
        start("d", 1)
        wait_until(lambda: all(ended(name) for name in "bcd"), 200.0)
    return told


def killed(seed: int, say: Say) -> Iterator[Line]:
    """SIGKILL one of three in the step after a fragment has left."""
    say("three peers; one is killed while a fragment travels")
    s = SETTINGS
    flags = ["--strategy", s.strategy, "--every", str(s.every), "--fragments", str(s.fragments), "--codec", s.codec]
    flags += ["--delay", str(DELAY), "--steps", str(s.steps), "--batch", str(s.batch), "--seed", str(seed)]
    flags += ["--model.width", "64", "--model.context", "64", "--save-every", "0"]
    leaves = 3 * s.every  # a fragment leaves after this step
    told = kill_one_of_three(flags, leaves, say)
    hashes, ends = told.hashes, [told.of(name, "done") for name in "bc"]
    flown = [t for t in range(told.at + 1, s.steps + 1) if any(isinstance(a, Finish) for a in s.schedule.at(t - 1))]
    lost = sum(bool(told.of(name, "lost")) for name in "bc")
    differ = [t for t, some in hashes.items() if len(some) > 1]
    yield Line(
        "5a",
        "SIGKILL to one of three while a fragment travels: the others go on to the end, equal at every finish",
        "both end; 0 differ",
        f"killed after step {told.at} (a fragment left after {leaves}, was due after {leaves + DELAY}); {lost} of 2 "
        f"measured it anew; {sum(map(bool, ends))} ended; {len(differ)} of {len(hashes)} finishes differ",
        judged(all(ends) and not differ and lost == 2 and set(flown) <= hashes.keys()),
    )
    synced = told.of("d", "synced")
    entered = synced[0]["revision"] if synced else -1
    mine = {said["revision"] for said in told.of("d", "step") if "hash" in said}
    after = [t for t in flown if t > entered]
    yield Line(
        "5b",
        "a joiner holds the same at the next finish of every fragment, and at the end",
        "each; one hash",
        f"let in after step {entered}; {len(mine & set(after))} of {len(after)} finishes; {len(told.finals)} final "
        f"hash{'es' if len(told.finals) != 1 else ''}",
        judged(
            bool(told.of("d", "done")) and len(told.finals) == 1 and mine == set(after) and len(after) >= s.fragments
        ),
    )
