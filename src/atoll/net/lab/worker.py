"""Driver: a process of the lab's own, as the lab sees it: it carries out orders and ends with us."""

import json
import selectors
import subprocess
import sys
import threading
from typing import IO, Any, Final

from atoll.errors import LabUnavailable
from atoll.runtime.processes import OWN_GROUP

if sys.platform == "linux":
    from atoll.runtime.linux import popen as popen
else:
    popen = subprocess.Popen

_ANSWER_S: Final = 20.0
_GRACE_S: Final = 2.0


class Worker:
    """Runs a module whose process obeys as `Turns` does. Orders may come from several threads."""

    def __init__(self, module: str) -> None:
        self._module = module
        self._one = threading.Lock()
        self.process: subprocess.Popen[str] = popen(
            [sys.executable, "-P", "-m", module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            encoding="utf-8",
            **OWN_GROUP,
        )
        self._answers = selectors.DefaultSelector()
        self._answers.register(_pipes(self.process)[1], selectors.EVENT_READ)

    def order(self, *order: Any) -> Any:
        """Have something done; returns the answer when it is. LabUnavailable: the process is gone."""
        orders, answers = _pipes(self.process)
        try:
            with self._one:
                orders.write(json.dumps(order) + "\n")
                orders.flush()
                answer = answers.readline() if self._answers.select(_ANSWER_S) else ""
        except (OSError, ValueError, RuntimeError):  # a broken pipe, a closed one, a closed selector
            answer = ""
        if not answer:
            raise self._failure()
        return json.loads(answer)

    def check(self) -> None:
        """LabUnavailable: the process is gone."""
        if self.process.poll() is not None:
            raise self._failure()

    def close(self) -> None:
        """End it."""
        orders, answers = _pipes(self.process)
        try:
            orders.close()
        except OSError:  # it ended first, with an order unread
            pass
        try:
            self.process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._answers.close()
        answers.close()

    def _failure(self) -> LabUnavailable:
        return LabUnavailable(f"the lab is closed, or its process {self._module} has failed: open another")


def _pipes(process: "subprocess.Popen[str]") -> tuple[IO[str], IO[str]]:
    assert process.stdin is not None
    assert process.stdout is not None
    return process.stdin, process.stdout
