"""Driver: processes on this machine, for trainers, servers and chaos tests. None outlives us.

On Linux the kernel kills the children when we end, kill -9 included. Elsewhere they are ended at a normal exit, and
each has a pipe from us as its stdin, whose end of file tells a child that cares. A child is in a process group of its
own: Ctrl-C reaches only us, and what it starts itself is its own business.
"""

import atexit
import os
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil

if sys.platform == "linux":
    from atoll.runtime.linux import popen as popen
else:
    popen = subprocess.Popen

OWN_GROUP: dict[str, Any]
if sys.platform == "win32":
    OWN_GROUP = {"creationflags": subprocess.CREATE_NEW_PROCESS_GROUP}
    INTERRUPT = signal.CTRL_BREAK_EVENT
else:
    OWN_GROUP = {"process_group": 0}
    INTERRUPT = signal.SIGINT

GRACE_S = 2.0
LAST_LINES_S = 1.0

OnLine = Callable[[str, str], None]


@dataclass(frozen=True, slots=True)
class Exit:
    """A child has ended; a code below 0 is the signal that killed it (POSIX)."""

    name: str
    code: int


@dataclass(frozen=True, slots=True, eq=False)
class Child:
    """A started process; `log` has its stderr, and its stdout too unless that has a callback."""

    name: str
    log: Path
    process: "subprocess.Popen[str]"

    @property
    def pid(self) -> int:
        """The process id."""
        return self.process.pid


class LocalProcesses:
    """Child processes by name, their logs in `folder/logs`. For use from one thread; a context manager."""

    def __init__(self, folder: Path) -> None:
        self._logs = folder / "logs"
        self._children: dict[str, Child] = {}  # until their exit is told
        self._watchers: dict[Child, threading.Thread] = {}
        self._changed = threading.Condition()
        self._news: deque[Callable[[], None]] = deque()
        self._exits: list[Exit] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start(
        self, argv: Sequence[str], name: str, *, stdout: OnLine | None = None, env: Mapping[str, str] | None = None
    ) -> Child:
        """Start a program; `env` is added to ours. `stdout(name, line)` is called for each line, inside `wait_any`.

        ValueError: a living child has that name, or it can't name a file. OSError: the program can't be started.
        """
        if name in self.alive():
            raise ValueError(f"a child called {name!r} is still running: end it first, or choose another name")
        if not name or Path(name).name != name:
            raise ValueError(f"{name!r} can't be a child's name, as it can't name its log file")
        path = self._logs / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab") as log:
            process = popen(
                argv,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE if stdout else log,
                stderr=log,
                env=None if env is None else {**os.environ, **env},
                encoding="utf-8",
                errors="replace",
                **OWN_GROUP,
            )
        child = self._children[name] = Child(name, path, process)
        watcher = self._watchers[child] = threading.Thread(
            target=self._watch, args=(child, stdout), name=f"watch-{name}", daemon=True
        )
        watcher.start()
        atexit.unregister(self.close)  # so that it is registered once, and also if started anew after `close`
        atexit.register(self.close)
        return child

    def kill(self, name: str) -> None:
        """End it at once, as kill -9 does. Here and below: no effect on one that just ended; ValueError: unknown."""
        self._child(name).process.kill()

    def interrupt(self, name: str) -> None:
        """Ctrl-C for this child; Ctrl-Break on Windows."""
        self._child(name).process.send_signal(INTERRUPT)

    def freeze(self, name: str) -> None:
        """Stop it where it is until `thaw`."""
        self._tell(name, lambda process: process.suspend())

    def thaw(self, name: str) -> None:
        """Let a frozen child go on."""
        self._tell(name, lambda process: process.resume())

    def alive(self) -> list[str]:
        """Names of the children that run or are frozen, in the order of their start."""
        return [name for name, child in self._children.items() if child.process.poll() is None]

    def wait_any(self, timeout_s: float) -> list[Exit]:
        """Wait until a child prints a line or ends; call the callbacks; return who has ended since the last call.

        Returns at once when there is no child. A callback's error is raised here, and loses nothing but its line.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._news or not self._children, timeout_s)
        for _ in range(len(self._news)):
            self._news.popleft()()
        exits, self._exits = self._exits, []
        return exits

    def close(self) -> None:
        """End all, the last started first: SIGTERM, then SIGKILL for those still there after 2 s.

        `wait_any(0)` tells their last lines and exits.
        """
        children = list(self._children.values())
        deadline = time.monotonic() + GRACE_S
        try:
            for child in reversed(children):
                self.thaw(child.name)
                child.process.terminate()
            for child in children:
                self._watchers[child].join(max(0.0, deadline - time.monotonic()))
        finally:
            for child in children:
                child.process.kill()
            for child in children:
                self._watchers[child].join()
        atexit.unregister(self.close)

    def _child(self, name: str) -> Child:
        if name not in self._children:
            raise ValueError(f"no child is called {name!r}; there are: {', '.join(self._children) or 'none'}")
        return self._children[name]

    def _tell(self, name: str, what: Callable[[psutil.Process], object]) -> None:
        process = self._child(name).process
        if process.poll() is None:  # else its number may be another process's by now
            with suppress(psutil.NoSuchProcess):
                what(psutil.Process(process.pid))

    def _post(self, news: Callable[[], None]) -> None:
        with self._changed:
            self._news.append(news)
            self._changed.notify()

    def _watch(self, child: Child, on_line: OnLine | None) -> None:
        reader = threading.Thread(target=self._read, args=(child, on_line), name=f"read-{child.name}", daemon=True)
        reader.start()
        code = child.process.wait()
        reader.join(LAST_LINES_S)  # what the child itself has started may still hold the pipe open
        if child.process.stdin is not None:
            child.process.stdin.close()
        self._post(partial(self._ended, child, code))

    def _read(self, child: Child, on_line: OnLine | None) -> None:
        if on_line is not None and child.process.stdout is not None:
            with child.process.stdout as lines:
                for line in lines:
                    self._post(partial(on_line, child.name, line.rstrip("\n")))

    def _ended(self, child: Child, code: int) -> None:
        self._exits.append(Exit(child.name, code))
        del self._watchers[child]
        if self._children.get(child.name) is child:
            del self._children[child.name]
