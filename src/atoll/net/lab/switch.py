"""Driver: the switch of a lab over TUN devices: a process that takes IP packets from each host and hands them to
others late, or not at all. Run by `tun.py`.
"""

import ctypes
import fcntl
import gc
import os
import selectors
import struct
import time
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any, Final

from atoll.net.lab.api import MTU, Shape
from atoll.net.lab.link import Link
from atoll.net.lab.turns import Turns

_TUNSETIFF: Final = 0x400454CA
_IFF_TUN, _IFF_NO_PI = 0x0001, 0x1000
_CLONE_NEWNET: Final = 0x40000000
_AT_ONCE: Final = 64
"""Packets taken from one host before the others and what is due have their turn."""
_LAST_BYTE_OF_DESTINATION: Final = 19


class Switch:
    """Packets between hosts whose addresses end in 1, 2, 3 ..."""

    def __init__(self) -> None:
        self._turns = Turns(self._obey)
        self._devices: list[int] = []
        self._links: dict[tuple[int, int], Link] = {}
        self._cut: set[int] = set()

    def run(self) -> None:
        """Until the lab ends."""
        gc.disable()  # nothing here refers in circles
        self._turns.run()

    def _obey(self, order: str, *args: Any) -> None:
        orders: dict[str, Callable[..., None]] = {
            "open": self._open,
            "set": lambda a, b, *shape: self._links[a, b].set(Shape(*shape)),
            "cut": self._cut.add,
            "heal": self._cut.discard,
        }
        orders[order](*args)

    def _open(self, namespaces: list[str], device: str, seed: int, *shape: Any) -> None:
        self._devices = open_devices(namespaces, device)
        for a, file in enumerate(self._devices):
            self._turns.selector.register(file, selectors.EVENT_READ, partial(self._take, a, file))
            for b in range(len(namespaces)):
                self._links[a, b] = Link(Shape(*shape), Random(f"{seed} {a} {b}").random)

    def _take(self, host: int, file: int, _: int) -> None:
        now, hosts, read = time.monotonic(), len(self._devices), os.read
        for _ in range(_AT_ONCE):
            try:
                packet = read(file, MTU)
            except BlockingIOError:
                return
            if packet[0] >> 4 != 4:  # IPv6 looks for routers
                continue
            to = packet[_LAST_BYTE_OF_DESTINATION] - 1
            if not 0 <= to < hosts or (self._cut and (host in self._cut or to in self._cut)):
                continue
            arrival = self._links[host, to].arrival(len(packet), now)
            if arrival is not None:
                self._turns.at(arrival, self._hand_over, host, to, packet)

    def _hand_over(self, host: int, to: int, packet: bytes) -> None:
        if self._cut and (host in self._cut or to in self._cut):
            return
        try:
            os.write(self._devices[to], packet)
        except OSError:  # the device is down, or the kernel has no room: a network loses packets
            pass


def open_devices(namespaces: list[str], device: str) -> list[int]:
    """Make a TUN device in each network namespace. They go when this process does."""
    files = []
    home = os.open("/proc/self/ns/net", os.O_RDONLY)
    for name in namespaces:
        namespace = os.open(f"/var/run/netns/{name}", os.O_RDONLY)
        _enter(namespace)
        os.close(namespace)
        file = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
        fcntl.ioctl(file, _TUNSETIFF, struct.pack("16sH22s", device.encode(), _IFF_TUN | _IFF_NO_PI, b""))
        files.append(file)
    _enter(home)
    os.close(home)
    return files


def _enter(namespace: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(namespace, _CLONE_NEWNET) != 0:
        raise OSError(ctypes.get_errno(), "can't enter the network namespace")


if __name__ == "__main__":
    Switch().run()
