"""Driver: one peer of a demonstration, in a process of its own: reduces, syncs, lets newcomers in; a JSON line per
step.

python -m atoll.reproduce.peer ADDRESS STEPS [--size N] [--pace S] [--tags N] [--min-world N] [--rejoin]
    [--token-file FILE] [--certificates FOLDER]
"""

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import atoll
from atoll.errors import AtollError, Expelled, PeerLost, Unfit
from atoll.net.guard import read_token
from atoll.net.tls import Tls


def say(**fields: Any) -> None:
    """One event."""
    sys.stdout.write(json.dumps({"at": time.time(), **fields}) + "\n")
    sys.stdout.flush()


def main() -> None:
    """Train as told by the arguments. Exit codes: 0 done, 2 an error, 3 expelled."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("steps", type=int)
    parser.add_argument("--size", type=int, default=16, help="elements per tensor")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds of make-believe computing per step")
    parser.add_argument("--tags", type=int, default=1, help="tensors reduced at once")
    parser.add_argument("--min-world", type=int, default=1)
    parser.add_argument("--reconnect", type=float, default=30.0, help="seconds for which a lost master is looked for")
    parser.add_argument("--rejoin", action="store_true", help="join again when expelled")
    parser.add_argument("--token-file", type=Path, help="join with the token in it")
    parser.add_argument("--certificates", type=Path, help="a folder with cert.pem, key.pem and ca.pem: speak TLS")
    options = parser.parse_args()
    token = read_token(options.token_file) if options.token_file else None
    certificates: Path | None = options.certificates
    tls = Tls(*(certificates / f"{name}.pem" for name in ("cert", "key", "ca"))) if certificates else None
    weights = np.zeros(options.size)
    state = atoll.SharedState({"weights": weights})
    while True:
        try:
            with atoll.join(
                options.address,
                min_world=options.min_world,
                timeout_s=None,
                reconnect_s=options.reconnect,
                token=token,
                tls=tls,
            ) as group:
                say(event="joined", id=group.id, world=group.world)
                train(group, state, weights, options)
                group.barrier()
            return
        except Unfit as error:  # to come back with the same state won't help
            say(event="failed", kind="Unfit", message=str(error))
            raise SystemExit(2) from None
        except Expelled as error:
            say(event="expelled", message=str(error))
            if not options.rejoin:
                raise SystemExit(3) from None
        except AtollError as error:
            say(event="failed", kind=type(error).__name__, message=str(error))
            raise SystemExit(2) from None


def train(group: atoll.Group, state: atoll.SharedState, weights: Any, options: argparse.Namespace) -> None:
    """The loop of the documentation, with several tensors in flight."""
    seen = -1
    while state.revision < options.steps:
        gradients = [np.full(options.size, float(state.revision + t) * (group.rank + 1)) for t in range(options.tags)]
        before = [g.copy() for g in gradients]
        try:
            if group.peers_pending():
                group.update_topology()
            if group.epoch != seen:
                result = group.sync(state)
                seen = group.epoch
                say(event="synced", received=result.bytes_received, revision=state.revision, hash=state.digest())
                continue
            atoll.wait_all([group.all_reduce_async(g, "sum", tag=t) for t, g in enumerate(gradients)])
        except PeerLost as error:
            # all works of one epoch fail together, but those already decided keep their result
            intact = all(_same(g, b) or _reduced(g, b, options) for g, b in zip(gradients, before, strict=True))
            say(event="lost", message=str(error), intact=intact, world=group.world)
            continue
        for gradient in gradients:
            weights += 1e-3 * gradient
        state.revision += 1
        say(event="step", revision=state.revision, world=group.world, hash=state.digest(), first=float(gradients[0][0]))
        if options.pace:
            time.sleep(options.pace)


def _same(tensor: Any, before: Any) -> bool:
    return bool((tensor == before).all())


def _reduced(tensor: Any, before: Any, options: argparse.Namespace) -> bool:
    """A whole result rather than a mixture: all elements were equal before, so they are after."""
    return options.tags > 1 and bool((tensor == tensor[0]).all())


if __name__ == "__main__":
    main()
