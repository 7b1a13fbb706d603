"""Driver: `atoll serve` in a process of its own, and `atoll workload run` in another, which asks it."""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from atoll.errors import AtollError
from atoll.runtime.processes import LocalProcesses

START_S: Final = 180.0
"""By then it serves: a kernel may have to be compiled, a model loaded."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where it is, and what computes there, in words."""

    url: str
    about: str


@contextmanager
def served(model: str, *flags: str) -> Iterator[Server]:
    """Serves `model` until the end of the block. AtollError: it doesn't; its last words say why."""
    said: list[dict[str, Any]] = []
    argv = [sys.executable, "-m", "atoll", "serve", model, "--port", "0", "--json", *flags]
    with tempfile.TemporaryDirectory() as folder, LocalProcesses(Path(folder)) as processes:
        child = processes.start(argv, "server", stdout=lambda _, line: said.append(json.loads(line)))
        until = time.monotonic() + START_S
        while not (ready := [event for event in said if event["event"] == "ready"]):
            if processes.wait_any(max(0.0, until - time.monotonic())) or time.monotonic() >= until:
                words = child.log.read_text("utf-8", "replace").strip().splitlines()[-1:] or ["it says nothing"]
                raise AtollError(f"`atoll serve {model}` does not serve: {words[0]}")
        yield Server(ready[0]["url"], ready[0]["about"])


def workload_run(*words: str, timeout_s: float = 900.0) -> dict[str, Any]:
    """What `atoll workload run` with those words reports. AtollError: it failed."""
    argv = [sys.executable, "-m", "atoll", "workload", "run", *words, "--json", "--plots", "none"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=timeout_s)
    if done.returncode:
        raise AtollError(f"`atoll workload run` failed: {done.stderr.strip()}")
    report: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return report
