"""Driver: how long a group takes to stand again when a peer is killed in a large all-reduce: for real, and predicted.

From the kill until the last survivor's call has raised: the new epoch is agreed on then. Run as a module it is a peer.
"""

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import count
from typing import Any, Final, NamedTuple

import numpy as np
import psutil

import atoll
from atoll.errors import AtollError, PeerLost
from atoll.reproduce.calibration.api import HostCosts, Point
from atoll.reproduce.calibration.hosts import HostWorld
from atoll.reproduce.calibration.measure import start

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
    with ExitStack() as stack:
        master = stack.enter_context(_ended(start("atoll", "master", "--listen", "127.0.0.1:0", "--json")))
        address = json.loads(_line(master))["address"]
        argv = address, str(WORLD), str(nbytes)
        peers = [start("atoll.reproduce.calibration.recovery", *argv) for _ in range(WORLD)]
        for peer in peers:
            stack.enter_context(_ended(peer))
        took_s = min(json.loads(_line(peer))["seconds"] for peer in peers)  # says it, and begins another
        time.sleep(part * took_s)
        victim, *others = peers
        memory_bytes = int(psutil.Process(victim.pid).memory_info().rss)
        killed = time.time()
        victim.kill()
        lost = [json.loads(_line(peer))["lost"] for peer in others]
    return Recovery(max(lost) - killed, memory_bytes)


def _line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    line = process.stdout.readline()
    if not line:
        raise AtollError("a process of the recovery ended early; its error stands above")
    return line


@contextmanager
def _ended(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    try:
        yield process
    finally:
        process.kill()
        process.wait()


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
                    _say(seconds=took_s)
        except PeerLost:
            _say(lost=time.time())
            time.sleep(0.5)  # so that nobody's leaving disturbs the others


if __name__ == "__main__":
    main(sys.argv[1:])
