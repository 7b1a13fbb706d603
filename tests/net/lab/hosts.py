"""Programs on the hosts of a lab, started and heard; which back ends can be had."""

import functools
import json
import os
import select
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from atoll.net.lab import Lab, available

PROGRAM = str(Path(__file__).with_name("program.py"))
WAIT_S = 20.0
BACK_ENDS = ["netem", "tun", "relay"]
PACKETS = ["netem", "tun"]
"""Those with packets and namespaces."""
reasons = functools.cache(available)


def need(back_end: str) -> str:
    """Skip the test where there is no such back end."""
    if why := reasons()[back_end]:
        pytest.skip(f"no {back_end} back end: {why}")
    return back_end


class Program:
    """One of program.py's, on a host. Ended at the end of the block."""

    def __init__(self, lab: Lab, host: int, what: str, at: str, *arguments: object) -> None:
        ip, _, port = at.rpartition(":")
        argv = [sys.executable, "-S", "-E", PROGRAM, what, ip, port, *map(str, arguments)]
        self.process = lab.start(host, argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self._heard = b""

    def __enter__(self) -> "Program":
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            assert pipe is not None
            pipe.close()

    def hear(self, within_s: float = WAIT_S) -> Any:
        """Its next answer."""
        while b"\n" not in self._heard:  # two answers may come together, so what is read is not all of one
            assert self.says_something(within_s), "the program on the host says nothing"
            said = os.read(self._stdout, 1 << 16)
            if not said:
                return "it has ended"
            self._heard += said
        answer, self._heard = self._heard.split(b"\n", 1)
        return json.loads(answer)

    def says_something(self, within_s: float) -> bool:
        return bool(self._heard) or bool(select.select([self._stdout], [], [], within_s)[0])

    def tell(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    @property
    def _stdout(self) -> int:
        assert self.process.stdout is not None
        return self.process.stdout.fileno()


def listening(lab: Lab, host: int, what: str, port: int, *arguments: object) -> Program:
    """A program that is ready for others to dial `lab.expose(host, port)`."""
    program = Program(lab, host, what, f"{lab.address(host)}:{port}", *arguments)
    assert program.hear() == "listening"
    return program


def round_trips(lab: Lab, a: int, b: int, port: int, count: int = 15) -> list[float]:
    """In seconds, in order of length."""
    with listening(lab, b, "echo", port), Program(lab, a, "ping", lab.expose(b, port), count) as program:
        return sorted(program.hear())


def goodput(lab: Lab, a: int, b: int, port: int, warm_s: float, measure_s: float) -> float:
    """Of one TCP connection, in bits per second."""
    with (
        listening(lab, b, "sink", port, warm_s, measure_s) as sink,
        Program(lab, a, "pour", lab.expose(b, port)),
    ):
        return float(sink.hear())


def arrivals(lab: Lab, a: int, b: int, port: int, packets: int, nbytes: int, rate: float) -> list[int]:
    """Numbers of those UDP packets that arrive."""
    with (
        listening(lab, b, "count", port, 0.3) as counting,
        Program(lab, a, "throw", lab.expose(b, port), packets, nbytes, rate),
    ):
        return list(counting.hear())


def workers() -> list[psutil.Process]:
    """The processes of this one's labs that are not on a host."""
    return [child for child in psutil.Process().children() if any("atoll.net.lab" in word for word in child.cmdline())]


def wait_until_gone(processes: list[psutil.Process], within_s: float = 5.0) -> None:
    end = time.monotonic() + within_s
    while left := [process for process in processes if runs(process)]:
        assert time.monotonic() < end, f"still there: {left}"
        time.sleep(0.01)


def runs(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
