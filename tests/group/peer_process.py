"""A peer of a group in a process of its own, and what it says."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


class PeerProcess:
    """A `reproduce.peer`, or another module that says one JSON object per line, and what it has said so far."""

    def __init__(self, address: str, steps: int, *options: str, module: str = "atoll.reproduce.peer") -> None:
        argv = [sys.executable, "-m", module, address, str(steps), *options]
        env = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT, env=env)
        self.said: list[dict[str, Any]] = []
        self._heard = threading.Condition()
        self._thread = threading.Thread(target=self._listen, daemon=True)
        self._thread.start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._heard:
                self.said.append(json.loads(line))
                self._heard.notify_all()

    def wait_for(self, wanted: Callable[[dict[str, Any]], bool], timeout_s: float = 30.0) -> dict[str, Any]:
        """The first thing said that is wanted."""
        found: list[dict[str, Any]] = []

        def look() -> bool:
            found[:] = [s for s in list(self.said) if wanted(s)]
            return bool(found)

        with self._heard:
            assert self._heard.wait_for(look, timeout_s), f"not heard within {timeout_s} s: {self.said[-3:]}"
        return found[0]

    def reach(self, revision: int) -> dict[str, Any]:
        return self.wait_for(lambda s: s["event"] == "step" and s["revision"] >= revision)

    def finish(self, timeout_s: float = 60.0) -> int:
        code = self.process.wait(timeout_s)
        self._thread.join(5.0)
        return code

    def hashes(self) -> dict[int, str]:
        return {s["revision"]: s["hash"] for s in self.said if s["event"] == "step"}

    def events(self, kind: str) -> list[dict[str, Any]]:
        return [s for s in self.said if s["event"] == kind]
