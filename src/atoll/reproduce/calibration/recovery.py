"""Driver: how long a group takes to stand again when a peer is killed in a large all-reduce: for real, and predicted.

From the kill until the last survivor's call has raised: the new epoch is agreed on then. Run as a module it is a peer.
"""

import json
import statistics
import sys
import time
from itertools import count
from typing import Any, Final, NamedTuple

import numpy as np
import psutil

import atoll
from atoll.errors import AtollError, PeerLost
from atoll.reproduce.calibration.api import HostCosts, Point
from atoll.reproduce.calibration.hosts import HostWorld
from atoll.reproduce.crew import crew

WORLD: Final = 3
NBYTES: Final = 64 << 20
_WARM: Final = 3
"""All-reduces before the one in which somebody is killed."""
_PARTS: Final = (0.25, 0.5, 0.75)
"""Of an all-reduce, after which it happens."""
_PATIENCE_S: Final = 60.0


class Recovery(NamedTuple):
    """What was seen of one kill."""

    seconds: float
    memory_bytes: int
    """Of the process that was killed."""


def measured(kills: int = 5, nbytes: int = NBYTES) -> list[Recovery]:
    """So many groups, each with one kill. AtollError: a survivor didn't raise."""
    return [_kill_one(nbytes, _PARTS[i % len(_PARTS)]) for i in range(kills)]


def _kill_one(nbytes: int, part: float) -> Recovery:
    names = [f"peer {i}" for i in range(WORLD)]
    with crew() as peers:
        address = peers.master()
        for name in names:
            peers.start(name, "-m", "atoll.reproduce.calibration.recovery", address, str(WORLD), str(nbytes))
        peers.until(lambda: len(peers.of("warm")) == WORLD, "warm peers", _PATIENCE_S)  # they begin another
        time.sleep(part * min(said["seconds"] for said in peers.of("warm")))
        memory_bytes = int(psutil.Process(peers.pids[names[0]]).memory_info().rss)
        killed = time.time()
        peers.processes.kill(names[0])
        peers.until(lambda: all(peers.of("lost", name) for name in names[1:]), "a loss", _PATIENCE_S)
        return Recovery(max(said["at"] for said in peers.of("lost")) - killed, memory_bytes)


def predicted(costs: HostCosts, memory_bytes: int, nbytes: int = NBYTES) -> float:
    """The same in the virtual group: the median of some moments."""
    return statistics.median(_predict(costs, memory_bytes, nbytes, part) for part in _PARTS)


def _predict(costs: HostCosts, memory_bytes: int, nbytes: int, part: float) -> float:
    world = HostWorld(costs, WORLD, nbytes, memory_bytes=memory_bytes)
    killed: list[float] = []
    lost: list[float] = []

    def kill() -> None:
        killed.append(world.loop.now_s)
        world.processes[0].crash()

    def program() -> None:
        with atoll.join("virtual", min_world=WORLD) as group:
            x, out = np.zeros(nbytes // 4, np.float32), np.zeros(nbytes // 4, np.float32)
            try:
                for number in count(1):
                    took_s = group.all_reduce(x, out=out).seconds
                    if number == _WARM and group.rank == 0:
                        world.loop.post(round(part * took_s * 1e9), kill)
            except PeerLost:
                lost.append(world.loop.now_s)

    for i in range(WORLD):
        world.start(f"peer-{i}", program)
    while len(lost) < WORLD - 1:
        world.run(until_s=world.loop.now_s + 1.0)
        if world.loop.now_s > _PATIENCE_S:
            raise AtollError(f"the virtual group didn't stand again within {_PATIENCE_S:g} s")
    world.loop.close()
    return max(lost) - killed[0]


def point(costs: HostCosts, kills: int = 5, nbytes: int = NBYTES) -> Point:
    """Medians of both."""
    seen = measured(kills, nbytes)
    memory_bytes = int(statistics.median(each.memory_bytes for each in seen))
    return Point(
        f"recovery, N={WORLD}, killed in an all-reduce",
        nbytes,
        statistics.median(each.seconds for each in seen),
        predicted(costs, memory_bytes, nbytes),
        kind="simulated",
    )


def _say(**fields: Any) -> None:
    sys.stdout.write(json.dumps(fields) + "\n")
    sys.stdout.flush()


def main(argv: list[str]) -> None:
    """Reduce until somebody is lost."""
    address, world, nbytes = argv[0], int(argv[1]), int(argv[2])
    with atoll.join(address, min_world=world, timeout_s=_PATIENCE_S) as group:
        x, out = np.ones(nbytes // 4, np.float32), np.ones(nbytes // 4, np.float32)
        try:
            for number in count(1):
                took_s = group.all_reduce(x, out=out).seconds
                if number == _WARM:
                    _say(event="warm", seconds=took_s)
        except PeerLost:
            _say(event="lost", at=time.time())
            time.sleep(0.5)  # so that nobody's leaving disturbs the others


if __name__ == "__main__":
    main(sys.argv[1:])
