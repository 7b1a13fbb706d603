"""Driver: two islands that train over a link of a lab: real processes, real TCP, every byte counted where it leaves."""

import json
import queue
import subprocess
import sys
import tempfile
import threading
import time
from bisect import bisect_left
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from atoll.errors import AtollError, LabUnavailable
from atoll.net.lab import Lab, Shape, open_lab

PORT: Final = 48148
SAMPLE_S: Final = 0.05
_COUNT: Final = """
import sys, time
while True:
    rows = [row.split(":") for row in open("/proc/net/dev").read().splitlines()[2:]]
    sent = sum(int(numbers.split()[8]) for name, numbers in rows if name.strip() != "lo")
    sys.stdout.write(f"{time.time()} {sent}\\n")
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


def train(shape: Shape, settings: Sequence[str], say: Any, timeout_s: float = 900.0) -> Trained:
    """`atoll join` with these settings on two hosts with a link of that shape between them.

    LabUnavailable: this machine can't give each a network of its own. AtollError: a peer failed.
    """
    with tempfile.TemporaryDirectory() as folder, open_lab(3, Shape()) as network:
        if network.address(0).startswith("127."):
            raise LabUnavailable("hosts with networks of their own, to count bytes on")
        network.set(1, 2, shape)
        return _Session(network, Path(folder), settings).run(timeout_s)


class _Session:
    def __init__(self, network: Lab, folder: Path, settings: Sequence[str]) -> None:
        self.network, self.folder, self.settings = network, folder, settings
        self.heard: queue.Queue[tuple[int, str]] = queue.Queue()
        self.started: list[subprocess.Popen[str]] = []

    def run(self, timeout_s: float) -> Trained:
        master = f"{self.network.address(0)}:{PORT}"
        try:
            self._start(0, "-m", "atoll", "master", "--listen", master, "--json", "--insecure")
            if not self._next(30.0)[1]:
                raise LabUnavailable("the master could not be started there")
            self._start(3, "-c", _COUNT % SAMPLE_S)
            for host in (1, 2):
                where = self.folder / str(host)
                where.mkdir()
                self._start(host, "-m", "atoll", "join", master, "--json", "--min-world", "2", "--run-dir", str(where))
            return self._listen(time.monotonic() + timeout_s)
        finally:
            for process in self.started:
                process.kill()
            for process in self.started:
                process.wait()

    def _start(self, who: int, *argv: str) -> None:
        """On host `who`; 3 counts what leaves host 1."""
        more = self.settings if "join" in argv else ()
        command = ["env", "OMP_NUM_THREADS=1", sys.executable, *argv, *more]
        host = 1 if who == 3 else who
        process = self.network.start(host, command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.started.append(process)
        threading.Thread(target=self._read, args=(who, process), daemon=True).start()

    def _read(self, who: int, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self.heard.put((who, line))
        self.heard.put((who, ""))

    def _next(self, timeout_s: float) -> tuple[int, str]:
        try:
            return self.heard.get(timeout=max(0.0, timeout_s))
        except queue.Empty:
            raise AtollError("the islands did not come to an end in time") from None

    def _listen(self, deadline: float) -> Trained:
        counts: list[tuple[float, int]] = []
        steps: dict[int, list[dict[str, Any]]] = {1: [], 2: []}
        hashes: dict[int, set[str]] = {}
        loss, over = float("nan"), set[int]()
        while len(over) < 2:
            who, line = self._next(deadline - time.monotonic())
            if who == 3:
                with suppress(ValueError):
                    at, _, sent = line.partition(" ")
                    counts.append((float(at), int(sent)))
                continue
            if not line and who in over:
                continue
            said: dict[str, Any] = json.loads(line or '{"event": "failed", "message": "a peer ended early"}')
            if said["event"] == "failed":
                raise AtollError(said["message"])
            if said["event"] == "step":
                steps[who].append(said)
            elif said["event"] == "evaluated":
                loss = said["loss"]
            elif said["event"] == "done":
                over.add(who)
            if "hash" in said and "revision" in said:
                hashes.setdefault(said["revision"], set()).add(said["hash"])
        first = min(some[0]["at"] for some in steps.values())
        last = max(some[-1]["at"] for some in steps.values())
        slower = max(steps.values(), key=lambda some: float(some[-1]["at"] - some[0]["at"]))
        return Trained(
            steps=[(said["at"], said["waited"]) for said in slower],
            seconds=max(some[-1]["at"] - some[0]["at"] for some in steps.values()),
            loss=loss,
            waited_s=max(sum(said["waited"] for said in some[:-1]) for some in steps.values()),
            equal=all(len(some) == 1 for some in hashes.values()),
            sent=[(at, sent) for at, sent in counts if first <= at <= last],
        )
