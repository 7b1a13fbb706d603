"""Driver: hosts that are network namespaces, with the kernel's own TCP; `tun.py` and `netem.py` lay wires between them.

A namespace's name contains the process id of its owner, so that the next lab can remove what a killed one has left.
"""

import atexit
import functools
import itertools
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self

import psutil

from atoll.errors import LabUnavailable
from atoll.net.lab.api import MTU, Shape, check_host
from atoll.net.lab.worker import popen

DEVICE: Final = "wan0"
_NETWORK: Final = "10.77.0."
_PREFIX: Final = "atoll-lab-"
_FOLDER: Final = Path("/var/run/netns")
_DEVICE_PACKETS: Final = 1000
_ENDING_S: Final = 5.0
_READ_BACK: Final = f"""
import socket
with socket.socket() as sock:
    sock.setblocking(False)
    sock.connect_ex(("{_NETWORK}254", 9))  # nobody's address, but it has a route
    print(sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_CONGESTION, 16).rstrip(bytes(1)).decode())
"""

_numbers = itertools.count()


class Wires(Protocol):
    """Links between namespaces: they make the device in each, and give packets their shape."""

    def set(self, a: int, b: int, shape: Shape) -> None:
        """Both directions."""

    def cut(self, host: int) -> None:
        """Let nothing in or out."""

    def heal(self, host: int) -> None:
        """The end of that."""

    def close(self) -> None:
        """Remove what `Namespaces` doesn't."""


class NamespaceLab:
    """A lab whose hosts are namespaces; `wires(namespaces, device)` lays the links.

    TCP's buffers are those of the computer: with a `net.ipv4.tcp_wmem` of 4 MiB at most, one connection carries some
    200 Mbit/s over a round trip of 100 ms, whatever the link could.
    """

    def __init__(self, hosts: int, congestion: str, wires: Callable[[list[str], str], Wires]) -> None:
        sweep()
        lab = f"{_PREFIX}{os.getpid()}-{next(_numbers)}"
        self.hosts = hosts
        self.congestion = ""
        self._owner = os.getpid()
        self._namespaces = [f"{lab}-{host}" for host in range(hosts)]
        self._processes: list[subprocess.Popen[Any]] = []
        self._wires: Wires | None = None
        atexit.register(self.close)
        try:
            for name in self._namespaces:
                run(["ip", "netns", "add", name])
            self._wires = wires(self._namespaces, DEVICE)
            for host in range(hosts):
                self._settle(host, congestion)
            self.congestion = run(["ip", "netns", "exec", self._namespaces[0], sys.executable, "-S", "-c", _READ_BACK])
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
        """In a network of the lab's own, that nobody outside can reach."""
        check_host(host, self.hosts)
        return address(host)

    def expose(self, host: int, port: int) -> str:
        """The host's address and the port, as they are."""
        return f"{self.address(host)}:{port}"

    def start(self, host: int, argv: list[str], **options: Any) -> "subprocess.Popen[Any]":
        """A process in the namespace. What can't be started ends at once with `ip`'s exit code."""
        check_host(host, self.hosts)
        self._laid()
        process = popen(["ip", "netns", "exec", self._namespaces[host], *argv], **options)
        self._processes.append(process)
        return process

    def set(self, a: int, b: int, shape: Shape) -> None:
        """Both directions."""
        check_host(a, self.hosts)
        check_host(b, self.hosts)
        self._laid().set(a, b, shape)

    def cut(self, host: int) -> None:
        """What is on its way gets lost."""
        check_host(host, self.hosts)
        self._laid().cut(host)

    def heal(self, host: int) -> None:
        """TCP notices when it next tries again, which after a long cut may take a while."""
        check_host(host, self.hosts)
        self._laid().heal(host)

    def close(self) -> None:
        """Kill what runs in the namespaces, grandchildren too, and remove them."""
        if os.getpid() != self._owner:  # forked: the lab is our parent's
            return
        for process in self._processes:  # one that was just started may not be in its namespace yet
            process.kill()
        for name in self._namespaces:
            end_processes(name)
        for process in self._processes:
            process.wait()
        if self._wires is not None:
            self._wires.close()
            self._wires = None
        while self._namespaces:
            remove(self._namespaces[-1])
            self._namespaces.pop()
        atexit.unregister(self.close)

    def _laid(self) -> Wires:
        if self._wires is None:
            raise LabUnavailable("this lab is closed: open another")
        return self._wires

    def _settle(self, host: int, congestion: str) -> None:
        """Address, route and settings of one host.

        The route names the congestion control: the namespace's default may be refused where the computer doesn't allow
        it to all its users, as often with cubic, and a route's is not.
        """
        name = self._namespaces[host]
        batch("ip", name, settings(host))
        try:
            batch("ip", name, [route(host, congestion)])
        except LabUnavailable:  # the kernel doesn't know it
            batch("ip", name, [route(host, "")])
        # Or a connection would begin with what the last one to the same host has learnt.
        forget = "echo 1 > /proc/sys/net/ipv4/tcp_no_metrics_save"
        run(["ip", "netns", "exec", name, "sh", "-c", forget])


def address(host: int) -> str:
    """The same in each lab."""
    return f"{_NETWORK}{host + 1}"


def settings(host: int) -> list[str]:
    """Commands of `ip` for a namespace that has its device."""
    return [
        "link set lo up",
        f"addr add {address(host)}/32 dev {DEVICE}",
        f"link set {DEVICE} mtu {MTU} txqueuelen {_DEVICE_PACKETS} up",
    ]


def route(host: int, congestion: str) -> str:
    """The command of `ip` for the way to all others; `congestion`: "" for the namespace's default."""
    command = f"route add {_NETWORK}0/24 dev {DEVICE} src {address(host)}"
    return f"{command} congctl {congestion}" if congestion else command


@functools.cache
def unavailable() -> str:
    """Why there can't be namespaces; "" if there can."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    if shutil.which("ip") is None:
        return "there is no `ip`: install iproute2"
    trial = trial_namespace()
    try:
        run(["ip", "netns", "add", trial])
    except LabUnavailable as error:
        return f"no network namespace can be made here: {error}"
    remove(trial)
    return ""


def trial_namespace() -> str:
    """A name for one that is soon gone."""
    return f"{_PREFIX}{os.getpid()}-{next(_numbers)}-trial"


def run(command: list[str], told: str = "") -> str:
    """A command's output. LabUnavailable: it failed."""
    done = subprocess.run(command, input=told, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        why = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[0]
        raise LabUnavailable(f"`{' '.join(command[:6])}` failed: {why}")
    return done.stdout.strip()


def batch(tool: str, namespace: str, commands: list[str]) -> None:
    """Commands of `ip` or `tc` inside a namespace. LabUnavailable: one of them failed."""
    run([tool, "-n", namespace, "-batch", "-"], "\n".join(commands) + "\n")


def sweep() -> None:
    """Remove what labs have left whose owners are gone."""
    for path in _FOLDER.glob(f"{_PREFIX}*"):
        owner = re.match(rf"{_PREFIX}(\d+)-", path.name)
        if owner and not _runs(int(owner[1])):
            end_processes(path.name)
            remove(path.name)


def end_processes(namespace: str) -> None:
    """Kill all in a namespace, until no more are born."""
    end = time.monotonic() + _ENDING_S
    while time.monotonic() < end:
        pids = subprocess.run(["ip", "netns", "pids", namespace], capture_output=True, text=True, check=False).stdout
        if not pids.strip():
            return
        for pid in pids.split():
            with suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)
        time.sleep(0.005)


def remove(namespace: str) -> None:
    """Unless somebody else has just done so."""
    subprocess.run(["ip", "netns", "del", namespace], capture_output=True, check=False)


def _runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
