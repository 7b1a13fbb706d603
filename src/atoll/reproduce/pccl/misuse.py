"""Driver: does every wrong call get a clear error, and does the group go on? (PCCL, "Done when" 8.)"""

import socket
from collections.abc import Callable, Iterator
from typing import Any, Final

import numpy as np
import xxhash

import atoll
from atoll.errors import AtollError, Busy, InvalidTensor, MasterLost, Mismatch
from atoll.net import preamble
from atoll.net.channel import CONTROL, HEADER
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.threads import run_peers
from atoll.version import VERSION

_KICKED_S: Final = 5.0


def wrong_use(say: Say) -> Iterator[Line]:
    say("wrong use")

    def raised(call: Callable[[], Any]) -> str:
        try:
            call()
        except (AtollError, ValueError) as error:
            return type(error).__name__
        return "nothing"

    def body(group: atoll.Group) -> list[str]:
        x = np.ones(8, np.float32)
        seen = []
        work = group.all_reduce_async(x.copy(), tag=1)
        seen.append(raised(group.update_topology))
        seen.append(raised(lambda: group.sync(atoll.SharedState({"w": x}))))
        seen.append(raised(lambda: group.all_reduce(x, tag=1)))
        work.wait()
        seen.append(raised(lambda: group.all_reduce(np.ones(8 + group.rank, np.float32))))
        seen.append(raised(lambda: group.all_reduce(x if group.rank else x.astype(np.float64))))
        seen.append(raised(lambda: group.all_reduce(x, "sum" if group.rank else "max")))
        seen.append(raised(lambda: group.all_reduce(np.ones((4, 4))[:, ::2])))
        seen.append(raised(lambda: group.all_reduce(np.array([1.0, np.nan]), codec="uint8")))
        group.all_reduce(x, "sum")
        seen.append(f"usable: {float(x[0]) == group.world}")
        return seen

    expected = ["Busy"] * 3 + ["Mismatch"] * 3 + ["InvalidTensor"] * 2 + ["usable: True"]
    outcomes = run_peers(3, body)
    yield Line(
        "8j",
        "calls during a reduce, a tag twice; other sizes, types, ops; bad tensors: clear errors, then on",
        f"{Busy.__name__} x3, {Mismatch.__name__} x3, {InvalidTensor.__name__} x2, usable",
        "as expected on 3 peers" if outcomes == [expected] * 3 else str(outcomes),
        judged(outcomes == [expected] * 3),
    )

    def tiny(group: atoll.Group) -> list[float]:
        return [float(group.all_reduce(np.full(n, 1.0), "sum").value[-1]) for n in (2, 3)]

    right = all(run_peers(w, tiny) == [[float(w)] * 2] * w for w in (2, 3, 4))
    yield Line("8k", "2 to 4 peers with 2 or 3 elements", "right", "right" if right else "wrong", judged(right))

    def tags(group: atoll.Group) -> bytes:
        tensors = [np.full(1000 + t, float(t + group.rank)) for t in range(16)]
        order = range(16) if group.rank % 2 else reversed(range(16))
        atoll.wait_all([group.all_reduce_async(tensors[t], "sum", tag=t) for t in order])
        return xxhash.xxh3_128_digest(b"".join(t.tobytes() for t in tensors))

    equal = len(set(run_peers(4, tags))) == 1
    yield Line(
        "8l",
        "16 operations at once, begun in different orders: none is lost",
        "equal",
        "equal" if equal else "unequal",
        judged(equal),
    )

    with atoll.Master() as master:
        taken = raised(lambda: atoll.Master(master.address))
    gone = raised(lambda: atoll.join(master.address, timeout_s=0.3))
    yield Line(
        "8m",
        "a port in use, a master that isn't there: one clear line",
        f"AtollError, {MasterLost.__name__}",
        f"{taken}, {gone}",
        judged((taken, gone) == ("AtollError", "MasterLost")),
    )

    def average(group: atoll.Group) -> list[int]:
        x = np.array([-7, 7, -8, 3] if group.rank else [0] * 4, np.int32)
        found: list[int] = group.all_reduce(x, "avg").value.tolist()
        return found

    averages = run_peers(2, average)
    yield Line(
        "8n",
        "averages of integers go towards zero",
        "[-3, 3, -4, 1]",
        " and ".join(map(str, averages)),
        judged(averages == [[-3, 3, -4, 1]] * 2),
    )


def strangers(say: Say) -> Iterator[Line]:
    """Who greets as we do and goes on with what no member says."""
    say("strangers")
    head = preamble.encode(preamble.Greeting(VERSION))
    says = {
        "a message of 2 GiB": head + HEADER.pack(CONTROL, 0x7FFFFFFF, 0),
        "an empty one": head + HEADER.pack(CONTROL, 0, 0),
        "one nobody knows": head + HEADER.pack(CONTROL, 4, 0) + b"what",
    }
    with atoll.Master() as master, atoll.join(master.address) as group:
        kicked = [name for name, said in says.items() if _kicked(master.address, said)]
        went_on = float(group.all_reduce(np.ones(3), "sum").value[0]) == 1.0
    yield Line(
        "8o",
        f"to the master: {', '.join(says)}",
        f"each kicked within {_KICKED_S:g} s; the group goes on",
        f"kicked: {', '.join(kicked) or 'none'}; the group {'went' if went_on else 'did not go'} on",
        judged(len(kicked) == len(says) and went_on),
    )


def _kicked(address: str, said: bytes) -> bool:
    host, _, port = address.rpartition(":")
    with socket.create_connection((host, int(port)), _KICKED_S) as stranger:
        try:
            stranger.sendall(said)
            while stranger.recv(1 << 16):
                pass
        except TimeoutError:
            return False
        except ConnectionError:
            return True
    return True
