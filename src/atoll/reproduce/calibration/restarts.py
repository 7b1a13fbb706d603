"""Driver: kills the engine of a server, again and again, and times its way back."""

import os
import signal
import statistics
import time
from collections.abc import Sequence
from typing import Final

import httpx
import psutil

from atoll.errors import AtollError
from atoll.reproduce.api import Say
from atoll.reproduce.calibration.engines import Restart
from atoll.reproduce.server import Server, serving
from atoll.serve.restarts import Restarts

TIMES: Final = 4
BACK_S: Final = 180.0
"""By then it is back."""
_LOOK_S: Final = 0.005


def restart(model: str, flags: Sequence[str], say: Say, times: int = TIMES) -> Restart:
    """Of `atoll serve MODEL` with those flags: medians, without the waits before an engine is started again."""
    with serving(model, *flags) as there, httpx.Client(base_url=there.url, timeout=BACK_S) as client:
        _first_token_s(client, there)
        warm_s = statistics.median(_first_token_s(client, there) for _ in range(9))
        waits, ready_s, cold_s = Restarts(), list[float](), list[float]()
        for i in range(times):
            say(f"killing the engine, {i + 1} of {times}")
            pid = there.engine_pid
            lived_s = time.time() - psutil.Process(pid).create_time()
            os.kill(pid, signal.SIGKILL)
            killed_s = time.monotonic()
            _until(client, ready=False, by_s=killed_s + BACK_S)
            _until(client, ready=True, by_s=killed_s + BACK_S)
            ready_s.append(time.monotonic() - killed_s - waits.wait_s(lived_s))
            cold_s.append(_first_token_s(client, there) - warm_s)
    return Restart(ready_s=max(0.0, statistics.median(ready_s)), cold_s=max(0.0, statistics.median(cold_s)))


def _first_token_s(client: httpx.Client, there: Server) -> float:
    """A token after a prompt that is shorter than a page, so that no engine remembers it."""
    began_s = time.monotonic()
    body = {"model": there.model, "prompt": [40, 41, 42, 43], "max_tokens": 1, "temperature": 0}
    answer = client.post("/v1/completions", json=body)
    if answer.status_code != 200:
        raise AtollError(f"{there.model} answered {answer.status_code} after its engine was started again")
    return time.monotonic() - began_s


def _until(client: httpx.Client, *, ready: bool, by_s: float) -> None:
    while (client.get("/health").status_code == 200) is not ready:
        if time.monotonic() > by_s:
            raise AtollError(f"the engine was killed, and was not {'back' if ready else 'missed'} in {BACK_S:.0f} s")
        time.sleep(_LOOK_S)
