"""What the tests of deploy/ start: `atoll` by that name on PATH, a text and settings that are quickly learnt."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.deploy.commands import ROOT

WAIT_S = 90.0


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def program(folder: Path, name: str, text: str) -> None:
    """An executable in `folder`."""
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    (folder / name).chmod(0o755)


def with_atoll(folder: Path, **more: str) -> dict[str, str]:
    """An environment in which `folder` is first on PATH and has an `atoll` that is the one under test."""
    program(folder, "atoll", f'#!/bin/sh\nexec {sys.executable} -m atoll "$@"\n')
    mine = {name: value for name, value in os.environ.items() if not name.startswith("ATOLL_")}
    python = os.pathsep.join([str(Path(p).resolve()) for p in sys.path if p])
    return {
        **mine, "PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": python,
        "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **more,
    }  # fmt: skip


def tiny(folder: Path, steps: int = 40) -> Path:
    """A settings file for a run of seconds."""
    text = folder / "text.txt"
    text.write_text("the ring between them is thin, and islands rise and sink. " * 400)
    settings = f'text = ["{text}"]\nsteps = {steps}\nevery = 5\nbatch = 2\nwarm_up = 2\nsave_every = 10\n'
    file = folder / "tiny.toml"
    file.write_text(settings + "[model]\nwidth = 16\nlayers = 1\nheads = 2\ncontext = 16\n")
    return file


@contextmanager
def running(argv: list[Any], log: Path, **options: Any) -> Iterator["subprocess.Popen[bytes]"]:
    """A process in a session of its own, from which nothing is left at the end."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [str(word) for word in argv],
            cwd=options.pop("cwd", ROOT), stdout=out, stderr=out, start_new_session=True, **options,
        )  # fmt: skip
    try:
        yield process
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()


def until(true: Callable[[], bool], what: str, log: Path) -> None:
    """Look again and again; a failure shows the log."""
    end = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < end, f"not in time: {what}\n{log.read_text(errors='replace')[-4000:]}"
        time.sleep(0.05)
