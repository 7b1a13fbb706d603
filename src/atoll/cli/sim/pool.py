"""Driver: the runs of a sweep, each in a process of its own; what they say goes to who waits."""

import multiprocessing
import os
import signal
import threading
from concurrent.futures import Future, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from rich.console import Console

from atoll.errors import AtollError
from atoll.reproduce.scenario.api import Result, Say
from atoll.reproduce.scenario.running import run_scenario
from atoll.reproduce.scenario.settings import Scenario

ORPHANED_S: Final = 1.0
"""How often a process looks whether the one that started it is still there."""


@dataclass(frozen=True)
class Point:
    """One run of a sweep."""

    scenario: Scenario
    changes: dict[str, Any]
    trace: Path | None


def run_all(points: list[Point], processes: int) -> list[Result]:
    """Their results, in order. AtollError: a run failed; the others are ended."""
    console = Console(stderr=True)
    if not console.is_terminal:
        return _run_all(points, processes, _nothing)
    with console.status("simulating", spinner="line") as status:
        return _run_all(points, processes, status.update)


def _run_all(points: list[Point], processes: int, say: Say) -> list[Result]:
    if len(points) == 1 or processes == 1:
        return [_run(point, _numbered(say, i, len(points))) for i, point in enumerate(points, start=1)]
    workers = min(processes, len(points))
    context = multiprocessing.get_context("spawn")  # a fork would copy threads' locks
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(os.getpid(),))
    try:
        futures: dict[Future[Result], int] = {pool.submit(_run, point, _nothing): i for i, point in enumerate(points)}
        results: dict[int, Result] = {}
        say(f"0 of {len(points)} runs done, {workers} at once")
        for future in as_completed(futures):
            results[futures[future]] = future.result()
            say(f"{len(results)} of {len(points)} runs done, {workers} at once")
        pool.shutdown()
        return [results[i] for i in range(len(points))]
    except BrokenProcessPool as error:
        raise AtollError(
            "a process that simulated was killed; is there memory for so many? Take fewer --jobs"
        ) from error
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
        for child in multiprocessing.active_children():
            child.terminate()


def _run(point: Point, say: Say) -> Result:
    return replace(run_scenario(point.scenario, say=say, trace=point.trace), changes=point.changes)


def _numbered(say: Say, number: int, of: int) -> Say:
    return say if of == 1 else lambda text: say(f"run {number} of {of}: {text}")


def _begin(parent: int) -> None:
    """In a process of the pool: Ctrl-C is for the one that started it, and when that one is gone, so are we."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)

    def watch() -> None:
        while not gone.wait(ORPHANED_S):
            if os.getppid() != parent:
                os._exit(1)

    gone = threading.Event()
    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


def _nothing(text: str) -> None: ...
