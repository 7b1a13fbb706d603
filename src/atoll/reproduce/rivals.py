"""Driver: all-reduces in several ways and gloo's, in the same processes, in turn, for benchmarks and demonstrations.

`compare` starts the processes; each is `python -m atoll.reproduce.rivals SPEC`. torch's gloo has no votes, no master
and survives no loss; atoll's times include its votes.
"""

import hashlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

import msgspec

from atoll.errors import AtollError

GLOO = "gloo"


class Settings(msgspec.Struct, frozen=True):
    """A group and how its peers join it."""

    address: str
    shared_memory: bool = True
    connections: int = 8


class Way(msgspec.Struct, frozen=True):
    """One way to reduce; `group` "" is gloo."""

    name: str
    group: str = ""
    codec: str | None = None
    algorithm: str | None = None
    in_place: bool = False
    gather: bool = False
    """Not a reduce, but `gather_bytes`."""


class Task(msgspec.Struct, frozen=True):
    """So many bytes of float32, `repeat` times in a row in each way, in so many rounds (and one to warm up)."""

    nbytes: int
    rounds: int
    repeat: int
    ways: tuple[Way, ...]


class Spec(msgspec.Struct, frozen=True):
    """What the processes shall do."""

    world: int
    groups: dict[str, Settings]
    tasks: tuple[Task, ...]
    interface: str = ""
    """Network device for gloo."""


class Times(msgspec.Struct, frozen=True):
    """What came of one way, on rank 0."""

    nbytes: int
    way: str
    seconds: list[float]
    digest: str = ""
    """Of the last result."""

    @property
    def median_s(self) -> float:
        """The middle one."""
        return statistics.median(self.seconds)

    @property
    def spread(self) -> str:
        """For tables: median (least-most) in milliseconds."""
        low, high = 1e3 * min(self.seconds), 1e3 * max(self.seconds)
        return f"{1e3 * self.median_s:.3g} ({low:.3g}-{high:.3g}) ms"


Start = Callable[[int, list[str]], "subprocess.Popen[str]"]
"""Starts the process of that number."""


def compare(spec: Spec, start: Start, timeout_s: float = 600.0) -> list[Times]:
    """Run the processes to their end. AtollError: one of them failed, or it took too long."""
    argv = [sys.executable, "-m", "atoll.reproduce.rivals", msgspec.json.encode(spec).decode()]
    peers = [start(i, argv) for i in range(spec.world)]
    with ThreadPoolExecutor(spec.world) as readers:  # at once: whoever isn't read stops when its pipe is full
        reading = [readers.submit(peer.communicate) for peer in peers]
        late = wait(reading, timeout_s).not_done
        if late:
            for peer in peers:
                peer.kill()
    if late:
        raise AtollError(f"the comparison took longer than {timeout_s:g} s")
    said = [read.result()[0] for read in reading]
    if any(peer.returncode for peer in peers):
        raise AtollError("a process of the comparison failed; its error stands above")
    return [msgspec.json.decode(line, type=Times) for text in said for line in text.splitlines() if line[:1] == "{"]


def start_here(number: int, argv: list[str]) -> "subprocess.Popen[str]":
    """On this machine, with one thread."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)}
    return subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, env=env)


def _run(spec: Spec) -> None:
    import numpy as np
    import torch
    import torch.distributed as dist

    import atoll

    torch.set_num_threads(1)
    with ExitStack() as stack:
        groups = {
            name: stack.enter_context(
                atoll.join(
                    s.address,
                    min_world=spec.world,
                    timeout_s=120.0,
                    shared_memory=s.shared_memory,
                    connections=s.connections,
                )
            )
            for name, s in spec.groups.items()
        }
        first = next(iter(groups.values()))
        if any(not way.group for task in spec.tasks for way in task.ways):
            _open_gloo(first, spec)
            stack.callback(dist.destroy_process_group)
        for task in spec.tasks:
            n = task.nbytes // 4
            x, into, shared = np.ones(n, np.float32), np.ones(n, np.float32), torch.ones(n)
            seconds: dict[str, list[float]] = {way.name: [] for way in task.ways}
            digests: dict[str, str] = {}
            for number in range(task.rounds + 1):
                for way in task.ways:
                    x[:] = np.arange(n) % 251 + first.rank
                    shared.copy_(torch.from_numpy(x))
                    call = _call(way, groups, x, into, shared, dist)
                    first.barrier()
                    for _ in range(task.repeat):
                        began = time.perf_counter()
                        call()
                        if number:
                            seconds[way.name].append(time.perf_counter() - began)
                    if not number and way.group and not way.gather:
                        digests[way.name] = hashlib.blake2b((x if way.in_place else into).tobytes()).hexdigest()[:16]
            if first.rank == 0:
                for name, found in seconds.items():
                    times = Times(task.nbytes, name, found, digests.get(name, ""))
                    sys.stdout.write(msgspec.json.encode(times).decode() + "\n")
                sys.stdout.flush()
        for group in groups.values():
            group.barrier()


def _call(way: Way, groups: dict[str, Any], x: Any, into: Any, shared: Any, dist: Any) -> Callable[[], object]:
    if not way.group:
        return lambda: dist.all_reduce(shared)
    group = groups[way.group]
    if way.gather:
        return lambda: group.gather_bytes(b"x")
    out = x if way.in_place else into
    return lambda: group.all_reduce(x, "avg", codec=way.codec, algorithm=way.algorithm, out=out)


def _open_gloo(group: Any, spec: Spec) -> None:
    import socket

    import torch.distributed as dist

    if spec.interface:
        os.environ["GLOO_SOCKET_IFNAME"] = spec.interface
    host = "127.0.0.1"
    if spec.interface:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((next(iter(spec.groups.values())).address.rpartition(":")[0], 9))
            host = probe.getsockname()[0]
    with socket.create_server((host, 0)) as server:
        port = int(server.getsockname()[1])
    where = group.gather_bytes(f"{host}:{port}".encode())[0].decode()
    dist.init_process_group(GLOO, init_method=f"tcp://{where}", rank=group.rank, world_size=spec.world)


def main(argv: Sequence[str]) -> None:
    """One process of a comparison."""
    _run(msgspec.json.decode(argv[0], type=Spec))


if __name__ == "__main__":
    main(sys.argv[1:])
