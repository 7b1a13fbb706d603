"""Driver: what only Linux offers to processes: the kernel kills a child when its parent ends, however it ends."""

import ctypes
import functools
import os
import queue
import signal
import subprocess
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

PR_SET_PDEATHSIG = 1
Popen = subprocess.Popen[Any]
Job = tuple["Future[Popen]", Sequence[str], dict[str, Any]]


def popen(argv: Sequence[str], **options: Any) -> Popen:
    """As `subprocess.Popen`, from any thread; the child gets SIGKILL when this process ends. Its own children don't."""
    child: Future[Popen] = Future()
    _launcher(os.getpid()).put((child, argv, options))
    return child.result()


@functools.cache
def _launcher(parent: int) -> "queue.SimpleQueue[Job]":
    """The jobs of a thread that lasts as long as the process: the kernel's signal follows the end of the *thread*.

    One for each process id, as threads don't survive a fork.
    """
    jobs: queue.SimpleQueue[Job] = queue.SimpleQueue()
    die_with_parent = _die_with(parent)

    def serve() -> None:
        while True:
            child, argv, options = jobs.get()
            try:
                child.set_result(subprocess.Popen(argv, preexec_fn=die_with_parent, **options))
            except Exception as error:
                child.set_exception(error)

    threading.Thread(target=serve, name="process-launcher", daemon=True).start()
    return jobs


def _die_with(parent: int) -> Callable[[], None]:
    """What the child does between fork and exec, prepared here: other threads' locks may be held for ever there."""
    prctl = ctypes.PyDLL(None).prctl
    prctl.argtypes, prctl.restype = [ctypes.c_int, ctypes.c_ulong], ctypes.c_int
    kill = int(signal.SIGKILL)

    def prepare() -> None:
        # A parent that ended before the call sends no signal, but is no longer our parent.
        if prctl(PR_SET_PDEATHSIG, kill) != 0 or os.getppid() != parent:
            raise ChildProcessError

    return prepare
