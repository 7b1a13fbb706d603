"""Driver: what this machine can do for a group: measured, not assumed."""

import functools
import os
import shutil
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

import numpy as np
import psutil

from atoll.net import arena
from atoll.net.neighbour import Neighbour, address_of

_BYTES: Final = 64 << 20
_ROUNDS: Final = 5
_SHARDS: Final = (256 << 10, 512 << 10, 1 << 20)


def addresses() -> list[tuple[str, str]]:
    """(interface, IP address) of all that are up, loopback last."""
    up = {name for name, stats in psutil.net_if_stats().items() if stats.isup}
    found = [
        (name, address.address.split("%")[0])
        for name, several in psutil.net_if_addrs().items()
        for address in several
        if name in up and address.family in (socket.AF_INET, socket.AF_INET6)
    ]
    return sorted(found, key=lambda pair: (pair[1].startswith("127.") or pair[1] == "::1", pair))


def can_listen(host: str) -> str:
    """Empty: yes; else why not."""
    try:
        with socket.create_server((host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def congestion_control() -> str:
    """What TCP does here against jams; empty where the system doesn't say."""
    try:
        return Path("/proc/sys/net/ipv4/tcp_congestion_control").read_text().strip()
    except OSError:
        return ""


def loopback_bytes_per_s() -> float:
    """One TCP connection through this machine's own network, one thread on each side."""
    payload = memoryview(bytearray(1 << 20))
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname(), 5.0)
        receiver, _ = server.accept()

    def send() -> None:
        for _ in range(_BYTES >> 20):
            sender.sendall(payload)
        sender.shutdown(socket.SHUT_WR)

    with sender, receiver:
        thread = threading.Thread(target=send)
        began = time.perf_counter()
        thread.start()
        into = bytearray(1 << 20)
        while receiver.recv_into(into):
            pass
        thread.join()
        return _BYTES / (time.perf_counter() - began)


def add_bytes_per_s() -> float:
    """Bytes of one input that one thread adds to another's."""
    a, b = np.ones(_BYTES // 4, np.float32), np.ones(_BYTES // 4, np.float32)
    return _BYTES / _fastest(lambda: np.add(a, b, out=a))


@functools.cache
def best_shard_bytes() -> int:
    """How much of another's memory to read before it is added: the fastest here, found in some 20 ms."""
    whole = 4 << 20
    theirs, ours, shard = np.ones(whole, np.uint8), np.ones(whole // 4, np.float32), np.empty(max(_SHARDS), np.uint8)
    view = Neighbour(os.getpid()).view(address_of(memoryview(theirs.data)), whole)

    def reduce(nbytes: int) -> None:
        few = shard[:nbytes]
        for at in range(0, whole, nbytes):
            view.read(at, memoryview(few.data))
            part = ours[at // 4 : (at + nbytes) // 4]
            np.add(part, few.view(np.float32), out=part)

    try:
        return min(_SHARDS, key=lambda nbytes: _fastest(lambda: reduce(nbytes), rounds=3))
    except ConnectionError:
        return _SHARDS[1]


def read_bytes_per_s(shard: int) -> float:
    """Reading another process's memory in shards of so many bytes; 0: the system doesn't let us."""
    source, into = np.ones(_BYTES // 4, np.float32), np.zeros(shard, np.uint8)
    view = Neighbour(os.getpid()).view(address_of(memoryview(source.view(np.uint8).data)), _BYTES)

    def read() -> None:
        for at in range(0, _BYTES - shard + 1, shard):
            view.read(at, memoryview(into.data))

    try:
        return _BYTES / _fastest(read)
    except ConnectionError:
        return 0.0


def direct_reads() -> str:
    """Empty: processes of one user may read each other's memory; else why not."""
    if not arena.available():
        return "only Linux has them"
    try:
        scope = int(Path("/proc/sys/kernel/yama/ptrace_scope").read_text())
    except (OSError, ValueError):
        scope = 0
    if scope and os.geteuid():
        return f"kernel.yama.ptrace_scope is {scope}; slots of shared memory are used, with one copy more"
    return "" if read_bytes_per_s(1 << 20) else "this system's policy forbids it; slots of shared memory are used"


def shared_memory() -> str:
    """Empty: processes here can lend each other memory; else why not."""
    return "" if arena.available() else f"not on {sys.platform}: processes of one machine talk over TCP"


def free_disk_bytes(folder: str = ".") -> int:
    """For checkpoints."""
    return shutil.disk_usage(folder).free


def _fastest(call: Callable[[], object], rounds: int = _ROUNDS) -> float:
    times = []
    for _ in range(rounds):
        began = time.perf_counter()
        call()
        times.append(time.perf_counter() - began)
    return min(times)
