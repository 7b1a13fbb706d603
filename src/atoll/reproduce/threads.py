"""Driver: several peers as threads of this process, each with its own sockets and wire thread, over real TCP."""

import threading
import time
from collections.abc import Callable
from typing import Any

import atoll


def run_peers(world: int, body: Callable[[atoll.Group], Any], *, timeout_s: float = 60.0) -> list[Any]:
    """Run `body(group)` on `world` peers under a master of their own; results by rank. The first error is raised."""
    results: list[Any] = [None] * world
    errors: list[BaseException] = []

    def peer(address: str) -> None:
        try:
            with atoll.join(address, min_world=world) as group:
                rank = group.rank
                results[rank] = body(group)
        except BaseException as error:
            errors.append(error)

    with atoll.Master() as master:
        threads = [threading.Thread(target=peer, args=(master.address,), daemon=True) for _ in range(world)]
        for thread in threads:
            thread.start()
        deadline = time.monotonic() + timeout_s
        for thread in threads:
            thread.join(max(0.0, deadline - time.monotonic()))
        if errors:
            raise errors[0]
        if any(thread.is_alive() for thread in threads):
            raise atoll.AtollError(f"peers were still running after {timeout_s:g} s")
    return results
