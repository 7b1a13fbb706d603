"""Driver: two islands that train over a link of a lab: real processes, real TCP, every byte counted where it leaves."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from atoll.errors import AtollError, LabUnavailable
from atoll.net.lab import Shape, open_lab
from atoll.reproduce.crew import Crew, crew_in, on

ISLANDS: Final = ("island 1", "island 2")
SAMPLE_S: Final = 0.05
_COUNT: Final = """
import json, sys, time
while True:
    rows = [row.split(":") for row in open("/proc/net/dev").read().splitlines()[2:]]
    sent = sum(int(numbers.split()[8]) for name, numbers in rows if name.strip() != "lo")
    sys.stdout.write(json.dumps({"event": "sent", "at": time.time(), "bytes": sent}) + "\\n")
    sys.stdout.flush()
    time.sleep(%s)
"""


@dataclass(frozen=True)
class Trained:
    """What a run came to."""

    seconds: float
    """From the end of the first step to the end of the last, of the slower island."""
    loss: float
    """On text nobody learns from, at the end."""
    waited_s: float
    """Of the island that waited longer."""
    equal: bool
    """All hashes told of one revision were the same."""
    sent: list[tuple[float, int]]
    """Moments, and bytes that had left one island until then, headers of all layers included."""
    steps: list[tuple[float, float]] = field(default_factory=list)
    """Of the slower island: when each step ended, and how long it had waited."""

    def rounds(self, every: int) -> list[tuple[float, float]]:
        """Of each round of `every` steps but the first and the last: seconds, and how many of them it waited."""
        ends = range(every, len(self.steps) - every, every)
        return [
            (self.steps[end + every - 1][0] - self.steps[end - 1][0], sum(w for _, w in self.steps[end : end + every]))
            for end in ends
        ]

    @property
    def bytes_sent(self) -> int:
        """In the whole run."""
        return self.sent[-1][1] - self.sent[0][1]

    def peak(self, window_s: float) -> int:
        """The most bytes that left within so much time."""
        moments = [at for at, _ in self.sent]
        ends = ((i, bisect_left(moments, at + window_s)) for i, at in enumerate(moments))
        return max(self.sent[min(end, len(moments) - 1)][1] - self.sent[i][1] for i, end in ends)


def train(shape: Shape, settings: Sequence[str], timeout_s: float = 900.0) -> Trained:
    """`atoll join` with these settings on two hosts with a link of that shape between them.

    LabUnavailable: this machine can't give each a network of its own. AtollError: a peer failed.
    """
    with open_lab(3, Shape()) as network:
        if network.address(0).startswith("127."):
            raise LabUnavailable("hosts with networks of their own, to count bytes on")
        network.set(1, 2, shape)
        with crew_in(network) as (islands, master):
            islands.start("counter", "-c", _COUNT % SAMPLE_S, by=on(network, 1))
            for host, name in enumerate(ISLANDS, start=1):
                where = islands.folder / name
                where.mkdir()
                argv = ("-m", "atoll", "join", master, "--json", "--min-world", "2", "--run-dir", str(where), *settings)
                islands.start(name, *argv, by=on(network, host))

            def over() -> bool:
                for name in ISLANDS:
                    if islands.of("failed", name) or (name in islands.codes and not islands.of("done", name)):
                        raise AtollError(f"{name} failed; {islands.last_words()}")
                return all(islands.of("done", name) for name in ISLANDS)

            islands.until(over, "the end of training on two islands", timeout_s)
            return _trained(islands)


def _trained(islands: Crew) -> Trained:
    steps = [islands.of("step", name) for name in ISLANDS]
    hashes: dict[int, set[str]] = {}
    for said in (said for kind in ("step", "synced", "done") for said in islands.of(kind)):
        if "hash" in said and "revision" in said:
            hashes.setdefault(said["revision"], set()).add(said["hash"])
    first, last = min(some[0]["at"] for some in steps), max(some[-1]["at"] for some in steps)
    slower = max(steps, key=lambda some: float(some[-1]["at"] - some[0]["at"]))
    return Trained(
        seconds=slower[-1]["at"] - slower[0]["at"],
        loss=islands.of("evaluated")[-1]["loss"],
        waited_s=max(sum(said["waited"] for said in some[:-1]) for some in steps),
        equal=all(len(some) == 1 for some in hashes.values()),
        sent=[(said["at"], said["bytes"]) for said in islands.of("sent") if first <= said["at"] <= last],
        steps=[(said["at"], said["waited"]) for said in slower],
    )
