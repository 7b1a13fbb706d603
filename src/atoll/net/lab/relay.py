"""Driver: a lab without root: each host is a loopback address, and a process (`streams.py`) passes bytes between them.

Others dial what `expose` says; who dials a host's own address goes past the relay, unshaped. The relay sees streams of
bytes, not packets: a shape with loss is refused, and the congestion control is that of a loopback connection. Dialling
succeeds at once, a refusal follows one delay later as a reset, and a cut host's dialling waits. The relay knows who
dials by looking for the process among those started on the hosts, so nobody else gets through.
"""

import atexit
import itertools
import os
import socket
import subprocess
import sys
from contextlib import suppress
from dataclasses import astuple
from types import TracebackType
from typing import Any, Final, Self

import psutil

from atoll.errors import LabUnavailable
from atoll.net.lab.api import Shape, check_host
from atoll.net.lab.worker import Worker, popen

_TRIAL: Final = "127.77.0.1"

_numbers = itertools.count()


class RelayLab:
    """A lab of loopback addresses."""

    def __init__(self, hosts: int, default: Shape, seed: int) -> None:
        check_shape(default)
        self.hosts = hosts
        self.congestion = congestion()
        self._owner = os.getpid()
        self._addresses = addresses(hosts, self._owner, next(_numbers))
        self._exposed: dict[tuple[int, int], str] = {}
        self._processes: list[subprocess.Popen[Any]] = []
        self._relay = Worker("atoll.net.lab.streams")
        atexit.register(self.close)
        try:
            self._relay.order("open", self._addresses, seed, *astuple(default))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def address(self, host: int) -> str:
        """Where its processes should listen."""
        check_host(host, self.hosts)
        return self._addresses[host]

    def expose(self, host: int, port: int) -> str:
        """A port of the relay's; the same for the same question."""
        address = self.address(host)
        if (host, port) not in self._exposed:
            self._exposed[host, port] = f"{address}:{self._relay.order('expose', host, port)}"
        return self._exposed[host, port]

    def start(self, host: int, argv: list[str], **options: Any) -> "subprocess.Popen[Any]":
        """A process whose connections, and those of its children, are the host's."""
        check_host(host, self.hosts)
        self._relay.check()
        process = popen(argv, **options)
        self._processes.append(process)
        self._relay.order("runs", host, process.pid)
        return process

    def set(self, a: int, b: int, shape: Shape) -> None:
        """Both directions."""
        check_host(a, self.hosts)
        check_host(b, self.hosts)
        check_shape(shape)
        if a != b:
            self._relay.order("set", a, b, *astuple(shape))
            self._relay.order("set", b, a, *astuple(shape))

    def cut(self, host: int) -> None:
        """What is on its way waits."""
        check_host(host, self.hosts)
        self._relay.order("cut", host)

    def heal(self, host: int) -> None:
        """And goes on."""
        check_host(host, self.hosts)
        self._relay.order("heal", host)

    def close(self) -> None:
        """Kill the processes on the hosts and their children, and the relay."""
        if os.getpid() != self._owner:  # forked: the lab is our parent's
            return
        for process in self._processes:
            if process.poll() is None:
                _end(process)
        self._relay.close()
        atexit.unregister(self.close)


def check_shape(shape: Shape) -> None:
    """LabUnavailable: the relay can't do that."""
    if shape.loss:
        raise LabUnavailable(
            f"the relay passes on streams of bytes, which lose nothing (loss={shape.loss}): "
            "leave the loss out, or run as root for a lab of packets"
        )


def addresses(hosts: int, owner: int, number: int) -> list[str]:
    """Loopback addresses that no other lab is likely to have: ports of two labs would get in each other's way."""
    return [f"127.{77 + (owner // 250 + number) % 100}.{owner % 250}.{host + 1}" for host in range(hosts)]


def congestion() -> str:
    """What a new socket of this computer begins with; "" where the system doesn't say."""
    if sys.platform != "linux":
        return ""
    with socket.socket() as sock:
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(b"\0").decode()


def unavailable() -> str:
    """Why there can't be a relay; "" if there can."""
    if sys.platform == "win32":
        return "it can't wait for pipes on Windows"
    try:
        with socket.socket() as sock:
            sock.bind((_TRIAL, 0))
    except OSError:
        return f"this system has no loopback addresses such as {_TRIAL}"
    return ""


def _end(process: "subprocess.Popen[Any]") -> None:
    with suppress(psutil.NoSuchProcess):
        for child in psutil.Process(process.pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                child.kill()
    process.kill()
    process.wait()
