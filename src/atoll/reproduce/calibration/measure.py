"""Driver: times this machine: bytes, votes, all-reduces of real processes, matrices, a disk, the end of a process.

What is a host's own cost is measured in seconds of a core, which others on the machine disturb little; what a user
waits for is measured by the clock, so an honest calibration needs a machine that does nothing else.
"""

import hashlib
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Final

import msgspec

from atoll.errors import AtollError
from atoll.reproduce.api import Say
from atoll.reproduce.calibration.api import BYTE_WORK, Control, Measured, Reduced
from atoll.reproduce.calibration.peer import Said, Spec, Task
from atoll.reproduce.crew import ONE_THREAD, crew
from atoll.runtime.processes import popen

KIB, MIB = 1 << 10, 1 << 20
WORLDS: Final = (2, 4)
_LONGEST_S: Final = 900.0


@dataclass(frozen=True)
class Amount:
    """How much is measured."""

    sizes: tuple[int, ...]
    """Bytes of all-reduces."""
    byte_sizes: tuple[int, ...]
    rounds: int
    votes: int
    budget_s: float
    """For bytes, per size."""
    disk_sizes: tuple[int, ...]
    exit_sizes: tuple[int, ...]

    def tasks(self) -> tuple[Task, ...]:
        """Small ones often, large ones a few times."""
        return tuple(Task(n, self.rounds, max(1, min(20, (4 * MIB) // n))) for n in self.sizes)


FULL: Final = Amount(
    sizes=tuple(64 * KIB << i for i in range(11)),
    byte_sizes=tuple(64 * KIB << i for i in range(11)),
    rounds=10,
    votes=1000,
    budget_s=1.0,
    disk_sizes=tuple(64 * KIB << i for i in range(11)),
    exit_sizes=(0, 32 * MIB, 64 * MIB, 128 * MIB, 192 * MIB, 256 * MIB),
)
QUICK: Final = Amount(
    sizes=tuple(64 * KIB << 2 * i for i in range(5)),
    byte_sizes=tuple(64 * KIB << 2 * i for i in range(5)),
    rounds=2,
    votes=100,
    budget_s=0.1,
    disk_sizes=tuple(64 * KIB << 2 * i for i in range(5)),
    exit_sizes=(0, 32 * MIB, 64 * MIB),
)


def measure(amount: Amount, say: Say = lambda text: None, folder: Path | None = None) -> Measured:
    """All of it. AtollError: a process of it failed."""
    say("bytes: add, copy, divide, read, stream")
    found = bench(amount.byte_sizes, amount.budget_s)
    say("the same on all cores at once")
    cores = os.cpu_count() or 1
    together = at_once(cores, amount.byte_sizes[-1], max(0.5, amount.budget_s))
    control: Control | None = None
    reduced: list[Reduced] = []
    for world in WORLDS:
        say(f"all-reduces of {world} peers")
        several = group(world, amount.votes if world == 2 else 0, amount.tasks())
        control = control or control_of(several)
        reduced += reduces_of(world, several)
    assert control is not None
    say("disk")
    disk = writes(amount.disk_sizes, folder)
    say("the end of a process")
    exits = tuple((nbytes, exit_seconds(nbytes)) for nbytes in amount.exit_sizes)
    return Measured(
        machine=machine(),
        cores=cores,
        bytes={work: found[work] for work in (*BYTE_WORK, "loopback")},
        together=max(1.0, together / found["reduce"][amount.byte_sizes[-1]]),
        control=control,
        reduced=tuple(reduced),
        matmul=tuple((float(flops), seconds) for flops, seconds in found["matmul"].items()),
        disk=disk,
        exits=exits,
        quick=amount is QUICK,
    )


def machine() -> dict[str, str]:
    """What this computer is and what we run on."""
    cpu = ""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    except OSError:
        pass
    versions = {}
    for package in ("torch", "numpy"):
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "none"
    return {
        "cpu": cpu or platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "kernel": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        **versions,
    }


def fingerprint(of: dict[str, str]) -> str:
    """Another one: another machine, or another system on it."""
    return hashlib.blake2b(json.dumps(of, sort_keys=True).encode(), digest_size=8).hexdigest()


# -- bytes -----------------------------------------------------------------------------------------------------------


def bench(sizes: Sequence[int], budget_s: float) -> dict[str, dict[int, float]]:
    """By a process of its own, with one thread for mathematics."""
    out = _bench(sizes, budget_s).communicate(timeout=_LONGEST_S)[0]
    if not out:
        raise AtollError("the process that measures bytes failed; its error stands above")
    found = json.loads(out.splitlines()[-1])
    return {what: {int(n): seconds for n, seconds in by_size.items()} for what, by_size in found.items()}


def at_once(cores: int, nbytes: int, budget_s: float) -> float:
    """Seconds of a core that `reduce` takes, the median of as many processes as there are cores, which all do it."""
    with ExitStack() as stack:
        several = [_bench([nbytes], budget_s, "together") for _ in range(cores)]
        for process in several:
            stack.callback(process.kill)
        if not all(process.stdout and process.stdout.readline() for process in several):
            raise AtollError("a process that measures bytes failed; its error stands above")
        for process in several:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        texts = [process.communicate(timeout=_LONGEST_S)[0] for process in several]
        return statistics.median(float(json.loads(text)["reduce"]) for text in texts)


def _bench(sizes: Sequence[int], budget_s: float, *words: str) -> "subprocess.Popen[str]":
    argv = [sys.executable, "-m", "atoll.reproduce.calibration.bench", ",".join(map(str, sizes)), str(budget_s), *words]
    pipe = subprocess.PIPE
    return popen(argv, stdin=pipe, stdout=pipe, text=True, env=os.environ | ONE_THREAD)


# -- groups ----------------------------------------------------------------------------------------------------------


def group(world: int, votes: int, tasks: tuple[Task, ...]) -> list[Said]:
    """What so many processes say, by rank, under two masters."""
    with crew() as several:
        near, far = (several.master(name) for name in ("near", "far"))
        spec = msgspec.json.encode(Spec(world, near, far, several.pids["near"], votes, tasks)).decode()
        peers = [f"peer {i}" for i in range(world)]
        for peer in peers:
            several.start(peer, "-m", "atoll.reproduce.calibration.peer", spec)
        several.until_ended(*peers, seconds=_LONGEST_S)
        said = [msgspec.convert(several.of("", peer)[-1], Said, str_keys=True) for peer in peers]
    return sorted(said, key=lambda each: each.rank)


def control_of(said: list[Said]) -> Control:
    """Both peers alike."""
    return Control(
        statistics.median(said[0].vote),
        statistics.mean(each.vote_core_s for each in said),
        said[0].master_core_s,
        statistics.mean(each.message_core_s for each in said),
        said[0].frame_core_s,
        statistics.mean(each.vote_alone_core_s for each in said),
        statistics.mean(each.reduce_alone_core_s for each in said),
        statistics.median(said[0].forming),
    )


def reduces_of(world: int, said: list[Said]) -> list[Reduced]:
    """As rank 0 saw them."""
    return [
        Reduced(world, name == "direct", nbytes, statistics.median(seconds))
        for name, by_size in said[0].reduced.items()
        for nbytes, seconds in by_size.items()
    ]


# -- disk, and the end of a process ------------------------------------------------------------------------------------


def writes(sizes: Sequence[int], folder: Path | None, rounds: int = 3) -> tuple[tuple[int, float], ...]:
    """A file written and flushed to the disk under `folder` (or here): the median."""
    found = []
    with tempfile.TemporaryDirectory(dir=folder or Path.cwd()) as place:
        for nbytes in sizes:
            payload = memoryview(bytearray(nbytes))
            found.append((nbytes, statistics.median(_write(Path(place) / "file", payload) for _ in range(rounds))))
    return tuple(found)


def _write(path: Path, payload: memoryview) -> float:
    began = time.perf_counter()
    with path.open("wb", buffering=0) as file:
        left = payload
        while left:
            left = left[file.write(left) :]
        os.fsync(file.fileno())
    seconds = time.perf_counter() - began
    path.unlink()
    return seconds


_VICTIM: Final = (
    "import socket, sys; s = socket.create_connection(('127.0.0.1', int(sys.argv[1])));"
    "m = bytearray(int(sys.argv[2])); m[::4096] = bytes([1]) * len(m[::4096]); s.send(b'!'); s.recv(1)"
)


def exit_seconds(nbytes: int, rounds: int = 3) -> float:
    """From SIGKILL to a process with so much memory until its connection is closed: the median."""
    return statistics.median(_exit(nbytes) for _ in range(rounds))


def _exit(nbytes: int) -> float:
    with socket.create_server(("127.0.0.1", 0)) as server:
        argv: list[Any] = [sys.executable, "-S", "-c", _VICTIM, str(server.getsockname()[1]), str(nbytes)]
        with subprocess.Popen(argv) as victim:
            connection, _ = server.accept()
            with connection:
                connection.recv(1)
                began = time.perf_counter()
                victim.kill()
                try:
                    connection.recv(1)
                except ConnectionError:
                    pass
                return time.perf_counter() - began
