"""A peer in a process of its own for tests: reduces, syncs, lets newcomers in; one JSON line per step on standard
output.

python -m tests.group.peer_script ADDRESS STEPS [--size N] [--pace S] [--tags N] [--min-world N] [--rejoin]
"""

import argparse
import json
import time
from typing import Any

import numpy as np

import atoll
from atoll.errors import AtollError, Expelled, PeerLost


def say(**fields: Any) -> None:
    print(json.dumps({"at": time.time(), **fields}), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("steps", type=int)
    parser.add_argument("--size", type=int, default=16)
    parser.add_argument("--pace", type=float, default=0.0)
    parser.add_argument("--tags", type=int, default=1)
    parser.add_argument("--min-world", type=int, default=1)
    parser.add_argument("--rejoin", action="store_true")
    options = parser.parse_args()
    weights = np.zeros(options.size)
    state = atoll.SharedState({"weights": weights})
    while True:
        try:
            with atoll.join(options.address, min_world=options.min_world) as group:
                say(event="joined", id=group.id, world=group.world)
                train(group, state, weights, options)
                group.barrier()
            return
        except Expelled as error:
            say(event="expelled", message=str(error))
            if not options.rejoin:
                raise SystemExit(3) from None
        except AtollError as error:
            say(event="failed", kind=type(error).__name__, message=str(error))
            raise SystemExit(2) from None


def train(group: atoll.Group, state: atoll.SharedState, weights: Any, options: argparse.Namespace) -> None:
    seen = -1
    while state.revision < options.steps:
        gradients = [
            np.full(options.size, float(state.revision + tag) * (group.rank + 1)) for tag in range(options.tags)
        ]
        before = [g.copy() for g in gradients]
        try:
            if group.peers_pending():
                group.update_topology()
            if group.epoch != seen:
                result = group.sync(state)
                seen = group.epoch
                say(event="synced", received=result.bytes_received, revision=state.revision)
                continue
            atoll.wait_all([group.all_reduce_async(g, "sum", tag=t) for t, g in enumerate(gradients)])
        except PeerLost as error:
            intact = all((g == b).all() or t for t, (g, b) in enumerate(zip(gradients, before, strict=True)))
            say(event="lost", message=str(error), intact=bool(intact), world=group.world)
            continue
        for gradient in gradients:
            weights += 1e-3 * gradient
        state.revision += 1
        say(event="step", revision=state.revision, world=group.world, hash=state.digest(), first=float(gradients[0][0]))
        if options.pace:
            time.sleep(options.pace)


if __name__ == "__main__":
    main()
