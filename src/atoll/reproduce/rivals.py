"""Driver: all-reduces in several ways and gloo's, in the same processes, in turn, for benchmarks and demonstrations.

`compare` starts the processes; each is `python -m atoll.reproduce.rivals SPEC`. torch's gloo has no votes, no master
and survives no loss; atoll's times include its votes.
"""

import hashlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import msgspec

from atoll.reproduce.crew import Crew, Starter
from atoll.runtime.processes import popen

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


class Times(msgspec.Struct, frozen=True, tag_field="event", tag="times"):
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


def compare(
    crew: Crew, spec: Spec, started: Callable[[int], object] = lambda count: None, by: Sequence[Starter] = (),
    timeout_s: float = 600.0,
) -> list[Times]:  # fmt: skip
    """Run the processes to their end; `started` is told how many there are, `by` starts each where it is to be.
    AtollError: one of them failed, or it took too long."""
    names = [f"rival {i}" for i in range(spec.world)]
    for i, name in enumerate(names):
        argv = ("-m", "atoll.reproduce.rivals", msgspec.json.encode(spec).decode())
        crew.start(name, *argv, by=by[i] if by else popen)
        started(i + 1)
    crew.until_ended(*names, seconds=timeout_s)
    return [msgspec.convert(said, Times) for name in names for said in crew.of("times", name)]


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
