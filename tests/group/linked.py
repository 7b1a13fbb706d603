"""One peer in a process of its own that does what it is told: a JSON line per command, one per answer.

python -m tests.group.linked
"""

import functools
import json
import os
import signal
import sys
import time
from typing import Any

import numpy as np
import xxhash

import atoll
from atoll.errors import AtollError
from atoll.group.collectives.execution import Execution
from atoll.group.wiring.wire import Wire
from atoll.net.neighbour import Neighbour
from tests.net.holdings import descriptors, mapped_arenas

HOLDS, LANDED = Neighbour.holds, Execution.landed


@functools.lru_cache(8)
def numbers(n: int, rank: int) -> np.ndarray[Any, np.dtype[np.float32]]:
    return np.random.default_rng(rank).standard_normal(n, np.float32)


class Peer:
    """Commands are methods; what they return is said."""

    group: atoll.Group

    def join(self, address: str, way: str, min_world: int) -> dict[str, Any]:
        Neighbour.holds = HOLDS if way == "direct reads" else lambda *_: False  # type: ignore[method-assign]
        self.group = atoll.join(address, min_world=min_world, shared_memory=way != "TCP", timeout_s=60.0)
        wire = self.group._membership.port
        assert isinstance(wire, Wire)
        copies = wire._links._copies
        return {"world": self.group.world, "arena": os.fstat(copies.arena.fd).st_ino if copies else 0}

    def let_in(self) -> dict[str, Any]:
        self.group.update_topology(timeout_s=60.0)
        return {"world": self.group.world}

    def reduce(
        self, n: int, algorithm: str, codec: str | None = None, end_at: int = 0, by: str = "SIGKILL"
    ) -> dict[str, Any]:
        """`end_at`: the frame at whose arrival this process gets that signal."""
        left = end_at

        def landed(run: Execution, key: Any, data: Any) -> Any:
            nonlocal left
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.Signals[by])
            return LANDED(run, key, data)

        Execution.landed = landed if end_at else LANDED  # type: ignore[method-assign]
        rank = self.group.rank
        x = numbers(n, rank).copy()
        try:
            self.group.all_reduce(x, "sum", codec=codec, algorithm=algorithm, timeout_s=60.0)  # type: ignore[arg-type]
        except AtollError:
            intact = np.array_equal(x, numbers(n, rank))
            self.after = {"at": time.time(), "world": self.group.world, "intact": intact}
            raise
        finally:
            Execution.landed = LANDED  # type: ignore[method-assign]
        return {"hash": xxhash.xxh3_128_hexdigest(x), "sample": x[:: n // 7].tolist()}

    def holds(self) -> dict[str, Any]:
        return {"descriptors": descriptors(), "arenas": sorted(mapped_arenas())}

    def leave(self) -> dict[str, Any]:
        self.group.barrier(timeout_s=60.0)
        self.group.close()
        return {}


def main() -> None:
    peer = Peer()
    for line in sys.stdin:
        name, options = json.loads(line)
        peer.after = {}
        try:
            answer = getattr(peer, name)(**options)
        except AtollError as error:
            answer = {"error": type(error).__name__, "message": str(error)}
        print(json.dumps({**peer.after, **answer}), flush=True)


if __name__ == "__main__":
    main()
