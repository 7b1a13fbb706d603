"""Driver: a peer is killed while a fragment travels, another one comes. (Streaming DiLoCo, "Done when" 5.)"""

import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import atoll
from atoll.reproduce.api import Line, Say, judged
from atoll.runtime.processes import LocalProcesses
from atoll.train.schedule import Finish
from atoll.train.settings import TrainSettings

DELAY = 3
SETTINGS = TrainSettings(strategy="streaming", every=16, fragments=4, delay=DELAY, codec="e3m0", steps=2400, batch=4)


def killed(seed: int, say: Say) -> Iterator[Line]:
    """SIGKILL one of three in the step after a fragment has left."""
    say("three peers; one is killed while a fragment travels")
    told: dict[str, list[dict[str, Any]]] = {}

    def line(name: str, text: str) -> None:
        told.setdefault(name, []).append(json.loads(text))

    def steps(name: str) -> int:
        return max((said["step"] for said in told.get(name, []) if said["event"] == "step"), default=0)

    def ended(name: str) -> bool:
        return any(said["event"] in ("done", "failed") for said in told.get(name, []))

    s = SETTINGS
    flags = ["--strategy", s.strategy, "--every", str(s.every), "--fragments", str(s.fragments), "--codec", s.codec]
    flags += ["--delay", str(DELAY), "--steps", str(s.steps), "--batch", str(s.batch), "--seed", str(seed)]
    flags += ["--model.width", "64", "--model.context", "64", "--save-every", "0", "--json"]
    leaves = 3 * s.every  # a fragment leaves after this step
    with tempfile.TemporaryDirectory() as folder, atoll.Master() as master, LocalProcesses(Path(folder)) as peers:

        def start(name: str, min_world: int) -> None:
            run = Path(folder, f"run-{name}")
            run.mkdir()
            argv = [sys.executable, "-m", "atoll", "join", master.address, "--name", name, *flags]
            argv += ["--min-world", str(min_world), "--run-dir", str(run)]
            peers.start(argv, name, stdout=line, env={"OMP_NUM_THREADS": "1"})

        def wait_until(ready: Any, seconds: float) -> None:
            deadline = time.monotonic() + seconds
            while not ready() and time.monotonic() < deadline:
                peers.wait_any(0.01)

        for name in "abc":
            start(name, 3)
        wait_until(lambda: steps("a") >= leaves, 200.0)
        at = steps("a")
        if ended("a") or not at:
            yield Line("5", "three peers train", "", f"they don't: {told}", "fail")
            return
        peers.kill("a")
        say("and another one comes")
        start("d", 1)
        wait_until(lambda: all(ended(name) for name in "bcd"), 200.0)
    ends = {name: [said for said in told.get(name, []) if said["event"] == "done"] for name in "bcd"}
    finals = {said["hash"] for some in ends.values() for said in some}
    hashes: dict[int, set[str]] = {}
    for some in told.values():
        for said in some:
            if said["event"] == "step" and "hash" in said:
                hashes.setdefault(said["revision"], set()).add(said["hash"])
    flown = [t for t in range(at + 1, s.steps + 1) if any(isinstance(a, Finish) for a in s.schedule.at(t - 1))]
    lost = sum(any(said["event"] == "lost" for said in told.get(name, [])) for name in "bc")
    differ = [t for t, some in hashes.items() if len(some) > 1]
    yield Line(
        "5a",
        "SIGKILL to one of three while a fragment travels: the others go on to the end, equal at every finish",
        "both end; 0 differ",
        f"killed after step {at} (a fragment left after {leaves}, was due after {leaves + DELAY}); {lost} of 2 "
        f"measured it anew; {sum(map(bool, (ends['b'], ends['c'])))} ended; {len(differ)} of {len(hashes)} finishes "
        "differ",
        judged(bool(ends["b"] and ends["c"]) and not differ and lost == 2 and set(flown) <= hashes.keys()),
    )
    synced = [said for said in told.get("d", []) if said["event"] == "synced"]
    entered = synced[0]["revision"] if synced else -1
    mine = {said["revision"] for said in told.get("d", []) if said["event"] == "step" and "hash" in said}
    after = [t for t in flown if t > entered]
    yield Line(
        "5b",
        "a joiner holds the same at the next finish of every fragment, and at the end",
        "each; one hash",
        f"let in after step {entered}; {len(mine & set(after))} of {len(after)} finishes; {len(finals)} final "
        f"hash{'es' if len(finals) != 1 else ''}",
        judged(bool(ends["d"]) and len(finals) == 1 and mine == set(after) and len(after) >= s.fragments),
    )
