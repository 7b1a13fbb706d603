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

from atoll.net import capabilities, tcp
from atoll.net.neighbour import Neighbour, address_of

BLOCK: Final = 1 << 20
_FEWEST, _MOST = 3, 30
Found = dict[str, dict[int, float]]
"""Median seconds by what was done and bytes."""


def byte_work(nbytes: int, budget_s: float) -> dict[str, float]:
    """Over as much memory as two peers have in an all-reduce of so many bytes, and each in
    turn, so that it finds in the cache what it would there. Pieces are as large as there, too."""
    n, block = nbytes // 4, min(BLOCK, nbytes) // 4
    ours, theirs, out, their_out = (np.ones(n, np.float32) for _ in range(4))
    shard = capabilities.best_shard_bytes() // 4
    scratch = np.empty(shard, np.float32)
    lent, their_result = (_lent(array) for array in (theirs, their_out))

    def add(at: int, stop: int) -> None:
        for low in range(at, stop, shard):
            few = slice(low, min(low + shard, stop))
            np.add(ours[few], theirs[few], out=out[few])

    def reduce(at: int, stop: int) -> None:
        for low in range(at, stop, shard):
            few = slice(low, min(low + shard, stop))
            got = scratch[: few.stop - few.start]
            lent.read(4 * low, memoryview(got.view(np.uint8).data))
            np.add(ours[few], got, out=out[few])

    def divide(at: int, stop: int) -> None:
        np.divide(out[at:stop], np.float32(2.0), out=out[at:stop])

    def read(at: int, stop: int) -> None:
        their_result.read(4 * at, memoryview(out[at:stop].view(np.uint8).data))

    def copy(at: int, stop: int) -> None:
        out[at:stop] = their_out[at:stop]

    each = {"reduce": reduce, "divide": divide, "read": read, "add": add, "copy": copy}
    if capabilities.direct_reads():
        each["read"], each["reduce"] = copy, add  # through slots, about
    found: dict[str, list[float]] = {name: [] for name in (*each, "send", "receive", "loopback")}
    end, round_ = time.perf_counter() + budget_s, 0
    with Connection() as stream:
        while round_ <= _FEWEST or (round_ <= _MOST and time.perf_counter() < end):
            seconds = stream.carry(*(memoryview(array.view(np.uint8).data) for array in (theirs, out)))
            for name, piece in each.items():
                began = time.thread_time()
                for at in range(0, n, block):
                    piece(at, min(at + block, n))
                seconds[name] = time.thread_time() - began
            if round_:  # the first one warms up
                for name in found:
                    found[name].append(seconds[name])
            round_ += 1
    return {name: max(1e-9, statistics.median(some)) for name, some in found.items()}


def _lent(array: Any) -> Any:
    """As another process' memory would be read."""
    return Neighbour(os.getpid()).view(address_of(memoryview(array.view(np.uint8).data)), array.nbytes)


def _core_s(call: Callable[[], object], budget_s: float) -> float:
    """The median, once warm."""
    call()
    seconds: list[float] = []
    end = time.perf_counter() + budget_s
    while len(seconds) < _FEWEST or (len(seconds) < _MOST and time.perf_counter() < end):
        began = time.thread_time()
        call()
        seconds.append(time.thread_time() - began)
    return max(1e-9, statistics.median(seconds))


class Connection:
    """A connection through loopback, tuned as a group's, with a thread at each end."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.sender = socket.create_connection(server.getsockname(), 5.0)
            self.receiver, _ = server.accept()
        for sock in (self.sender, self.receiver):
            tcp.tune(sock)
            sock.settimeout(30.0)

    def __enter__(self) -> "Connection":
        return self

    def __exit__(self, *_: object) -> None:
        self.sender.close()
        self.receiver.close()

    def carry(self, payload: memoryview, into: memoryview) -> dict[str, float]:
        """Core seconds of `send` and `receive`, and `loopback` by the clock."""
        found: dict[str, float] = {}
        ready = threading.Event()

        def send() -> None:
            ready.wait()
            before = time.thread_time()
            self.sender.sendall(payload)
            found["send"] = time.thread_time() - before

        thread = threading.Thread(target=send)
        thread.start()
        began, before, left = time.perf_counter(), time.thread_time(), into
        ready.set()
        while left:
            left = left[self.receiver.recv_into(left) :]
        found["receive"] = time.thread_time() - before
        found["loopback"] = time.perf_counter() - began
        thread.join()
        return found


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
        for name, seconds in byte_work(nbytes, budget_s).items():
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
