"""Driver: one process of the calibration's group: votes, messages between two, all-reduces; says what they took.

python -m atoll.reproduce.calibration.peer SPEC
"""

import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from typing import Any, Final

import msgspec
import numpy as np
import psutil

import atoll
from atoll.group.api import BLOCK
from atoll.group.local import LocalGroup

_CHUNK: Final = 25
"""Votes for which the master's share is looked at together."""
_FRAMES: Final = 16
_MESSAGE: Final = 16  # float64 between two: small, so that no byte counts


class Task(msgspec.Struct, frozen=True):
    """All-reduces of one size, `repeat` in a row, in so many rounds and one to warm up."""

    nbytes: int
    rounds: int
    repeat: int


class Spec(msgspec.Struct, frozen=True):
    """What the processes do."""

    world: int
    near: str
    """Address of a master whose peers read each other's memory."""
    far: str
    """And of one whose peers use TCP alone."""
    master_pid: int
    """Of the first."""
    votes: int = 0
    tasks: tuple[Task, ...] = ()


class Said(msgspec.Struct, frozen=True):
    """What one of them found. Seconds; lists: one for each operation."""

    rank: int
    vote: list[float] = []
    vote_core_s: float = 0.0
    """Of a core, per vote."""
    master_core_s: float = 0.0
    """The same of the master's process."""
    message_core_s: float = 0.0
    """Per `send` or `recv` of few bytes."""
    frame_core_s: float = 0.0
    """Of a sender, per frame of several."""
    vote_alone_core_s: float = 0.0
    reduce_alone_core_s: float = 0.0
    """Of a group that asks nobody."""
    forming: list[float] = []
    """A new epoch of the same two."""
    reduced: dict[str, dict[int, list[float]]] = {}
    """By way and bytes."""


def core_seconds(pid: int) -> float:
    """What a process has used so far, to the nanosecond where the system tells."""
    tasks = Path(f"/proc/{pid}/task")
    if (tasks / str(pid) / "schedstat").exists():
        return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks.iterdir()) / 1e9
    used = psutil.Process(pid).cpu_times()
    return float(used.user + used.system)


def run(spec: Spec) -> Said:
    """All of it."""
    with ExitStack() as stack:
        groups = {
            name: stack.enter_context(atoll.join(address, min_world=spec.world, timeout_s=60.0, shared_memory=shared))
            for name, address, shared in (("direct", spec.near, True), ("tcp", spec.far, False))
        }
        group = groups["direct"]
        said = Said(group.rank)
        if spec.votes:
            said = _control(group, spec)
        for task in spec.tasks:
            _reduce(groups, task, said.reduced)
        for each in groups.values():
            each.barrier()
    return said


def _control(group: atoll.Group, spec: Spec) -> Said:
    few, other = np.zeros(_MESSAGE), 1 - group.rank
    message: Callable[..., object] = group.send if group.rank == 0 else group.recv
    votes: list[float] = []
    vote_core_s: list[float] = []
    master_core_s: list[float] = []
    for _ in range(max(1, spec.votes // _CHUNK)):
        before = core_seconds(spec.master_pid)
        vote_core_s += _core_s(lambda: votes.append(group.gather_bytes_async(b"").wait().seconds), _CHUNK)
        master_core_s.append((core_seconds(spec.master_pid) - before) / (_CHUNK + 1))
    one, many = (
        median(_core_s(lambda x=x: message(x, other), max(10, spec.votes // 20)))  # type: ignore[misc]
        for x in (np.ones(frames * BLOCK // few.itemsize) for frames in (1, _FRAMES))
    )
    alone, out = LocalGroup(), np.zeros_like(few)
    return Said(
        rank=group.rank,
        vote=votes,
        vote_core_s=median(vote_core_s),
        master_core_s=median(master_core_s),
        message_core_s=median(_core_s(lambda: message(few, other), spec.votes)),
        frame_core_s=max(0.0, many - one) / (_FRAMES - 1),
        vote_alone_core_s=median(_core_s(lambda: alone.gather_bytes(b""), spec.votes)),
        reduce_alone_core_s=median(_core_s(lambda: alone.all_reduce(few, "avg", out=out), spec.votes)),
        forming=[_form(group) for _ in range(max(5, spec.votes // 50))],
    )


def _core_s(call: Callable[[], object], times: int) -> list[float]:
    """What each call took of this process, once warm."""
    call()
    seconds = []
    for _ in range(times):
        before = time.process_time()
        call()
        seconds.append(time.process_time() - before)
    return seconds


def _form(group: atoll.Group) -> float:
    group.all_reduce(np.zeros(1 << 18, np.float32))  # else links may be kept
    began = time.perf_counter()
    group.update_topology()
    return time.perf_counter() - began


def _reduce(groups: dict[str, Any], task: Task, reduced: dict[str, dict[int, list[float]]]) -> None:
    x, out = np.ones(task.nbytes // 4, np.float32), np.ones(task.nbytes // 4, np.float32)
    for round_ in range(task.rounds + 1):
        for name, group in groups.items():
            algorithm = None if name == "direct" else "ring"  # what else would follow from a rate measured on the day
            group.barrier()
            for _ in range(task.repeat):
                seconds = group.all_reduce(x, "avg", out=out, algorithm=algorithm).seconds
                if round_:
                    reduced.setdefault(name, {}).setdefault(task.nbytes, []).append(seconds)


if __name__ == "__main__":
    sys.stdout.write(msgspec.json.encode(run(msgspec.json.decode(sys.argv[1], type=Spec))).decode() + "\n")
