"""Driver: what one thread does with bytes, in seconds of its core: add, copy, divide, read another's memory, stream.

python -m atoll.reproduce.calibration.bench SIZES BUDGET_S [together]
"""

import json
import os
import socket
import statistics
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import numpy as np

from atoll.net import capabilities
from atoll.net.neighbour import Neighbour, address_of

BLOCK: Final = 1 << 20
_FEWEST, _MOST = 3, 30
Found = dict[str, dict[int, float]]
"""Median seconds by what was done and bytes."""


def byte_work(nbytes: int, budget_s: float) -> dict[str, float]:
    """All that touches no socket. Pieces are as large as those of an all-reduce of so many bytes."""
    n, block = nbytes // 4, min(BLOCK, nbytes) // 4
    source, result, into = np.ones(n, np.float32), np.ones(n, np.float32), np.ones(n, np.float32)
    shard = capabilities.best_shard_bytes() // 4
    scratch = np.empty(shard, np.float32)
    theirs = Neighbour(os.getpid()).view(address_of(memoryview(source.view(np.uint8).data)), nbytes)

    def add(at: int, stop: int) -> None:
        for low in range(at, stop, shard):
            few = slice(low, min(low + shard, stop))
            np.add(result[few], source[few], out=into[few])

    def reduce(at: int, stop: int) -> None:
        for low in range(at, stop, shard):
            few = slice(low, min(low + shard, stop))
            got = scratch[: few.stop - few.start]
            theirs.read(4 * low, memoryview(got.view(np.uint8).data))
            np.add(result[few], got, out=into[few])

    def read(at: int, stop: int) -> None:
        theirs.read(4 * at, memoryview(into[at:stop].view(np.uint8).data))

    def copy(at: int, stop: int) -> None:
        into[at:stop] = source[at:stop]

    def divide(at: int, stop: int) -> None:
        np.divide(into[at:stop], np.float32(2.0), out=into[at:stop])

    each = {"add": add, "copy": copy, "divide": divide, "read": read, "reduce": reduce}
    if capabilities.direct_reads():
        each["read"], each["reduce"] = copy, add  # through slots, about

    def whole(piece: Callable[[int, int], None]) -> None:
        for at in range(0, n, block):
            piece(at, min(at + block, n))

    return {name: _core_s(lambda piece=piece: whole(piece), budget_s / len(each)) for name, piece in each.items()}


def _core_s(call: Callable[[], object], budget_s: float, clock: Callable[[], float] = time.thread_time) -> float:
    """The median, once warm."""
    call()
    end, seconds = time.perf_counter() + budget_s, []
    while len(seconds) < _FEWEST or (len(seconds) < _MOST and time.perf_counter() < end):
        began = clock()
        call()
        seconds.append(clock() - began)
    return max(1e-9, statistics.median(seconds))


def stream(nbytes: int, budget_s: float) -> dict[str, float]:
    """Through loopback TCP: `send` and `receive` of each thread's core, and `loopback` by the clock."""
    payload, into = memoryview(bytes([1]) * nbytes), memoryview(bytearray(nbytes))  # zeros would be one page
    with socket.create_server(("127.0.0.1", 0)) as server:
        sender = socket.create_connection(server.getsockname(), 5.0)
        receiver, _ = server.accept()
    found: dict[str, list[float]] = {"send": [], "receive": [], "loopback": []}
    with sender, receiver:
        for sock in (sender, receiver):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.settimeout(30.0)
        end = time.perf_counter() + budget_s
        while len(found["send"]) <= _FEWEST or (len(found["send"]) <= _MOST and time.perf_counter() < end):
            ready = threading.Event()

            def send(ready: threading.Event = ready) -> None:
                ready.wait()
                before = time.thread_time()
                sender.sendall(payload)
                found["send"].append(time.thread_time() - before)

            thread = threading.Thread(target=send)
            thread.start()
            began, before, left = time.perf_counter(), time.thread_time(), nbytes
            ready.set()
            while left:
                left -= receiver.recv_into(into[nbytes - left :])
            found["receive"].append(time.thread_time() - before)
            found["loopback"].append(time.perf_counter() - began)
            thread.join()
    return {name: max(1e-9, statistics.median(some[1:])) for name, some in found.items()}


def main(argv: list[str]) -> None:
    """Print what was found; with `together`, begin when a line comes, and only reduce."""
    sizes, budget_s = [int(size) for size in argv[0].split(",")], float(argv[1])
    if argv[2:] == ["together"]:
        sys.stdout.write("ready\n")
        sys.stdout.flush()
        sys.stdin.readline()
        _say({"reduce": byte_work(sizes[-1], budget_s)["reduce"]})
        return
    found: dict[str, dict[int, float]] = {}
    for nbytes in sizes:
        several = {**byte_work(nbytes, budget_s * 2 / 3), **stream(nbytes, budget_s / 3)}
        for name, seconds in several.items():
            found.setdefault(name, {})[nbytes] = seconds
    found["matmul"] = matmul([64, 128, 192, 256, 384, 512, 768][: 3 + len(sizes)], budget_s)
    _say(found)


def matmul(widths: list[int], budget_s: float) -> dict[int, float]:
    """Of square float32 matrices, by flops."""
    seconds = {}
    for width in widths:
        a, b = np.ones((width, width), np.float32), np.ones((width, width), np.float32)
        seconds[2 * width**3] = _core_s(lambda a=a, b=b: a @ b, budget_s / len(widths))  # type: ignore[misc]
    return seconds


def _say(found: Any) -> None:
    sys.stdout.write(json.dumps(found) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
