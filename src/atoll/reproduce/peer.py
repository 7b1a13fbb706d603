"""Driver: one peer of a demonstration, in a process of its own: reduces, syncs, lets newcomers in; a JSON line per
step.

python -m atoll.reproduce.peer ADDRESS STEPS [--size N[,N...]] [--pace S] [--tags N] [--carry N] [--rejoin] ...
"""

import argparse
import json
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np

import atoll
from atoll.errors import AtollError, Expelled, MasterLost, PeerLost, Unfit
from atoll.net.guard import read_token
from atoll.net.tls import Tls

PAUSE_S: Final = 0.3
"""Before joining again: who can't be reached would else disturb all the others ten times a second."""


def say(**fields: Any) -> None:
    """One event."""
    sys.stdout.write(json.dumps({"at": time.time(), **fields}) + "\n")
    sys.stdout.flush()


def sizes(text: str) -> list[int]:
    """ "16,600": as many elements as that, in turns."""
    return [int(part) for part in text.split(",")]


def parser() -> argparse.ArgumentParser:
    """What a peer can be told."""
    parser = argparse.ArgumentParser()
    parser.add_argument("address")
    parser.add_argument("steps", type=int)
    parser.add_argument("--size", type=sizes, default=[16], help="elements per tensor; several, with commas: in turns")
    parser.add_argument("--pace", type=float, default=0.0, help="seconds of make-believe computing per step")
    parser.add_argument("--tags", type=int, default=1, help="tensors reduced at once")
    parser.add_argument("--carry", type=int, default=0, help="so many more are awaited only one or two steps later")
    parser.add_argument("--tell-begun", action="store_true", help="say so when the tensors of a step are on their way")
    parser.add_argument("--name", default="")
    parser.add_argument("--min-world", type=int, default=1)
    parser.add_argument("--reconnect", type=float, default=30.0, help="seconds for which a lost master is looked for")
    parser.add_argument("--rejoin", action="store_true", help="join again when expelled")
    parser.add_argument("--listen", default="", help="where other peers reach this one")
    parser.add_argument("--advertise", default="", help="where they are told to dial")
    parser.add_argument("--shared-memory", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--token-file", type=Path, help="join with the token in it")
    parser.add_argument("--certificates", type=Path, help="a folder with cert.pem, key.pem and ca.pem: speak TLS")
    return parser


def main() -> None:
    """Train as told by the arguments. Exit codes: 0 done, 2 an error, 3 expelled."""
    options = parser().parse_args()
    token = read_token(options.token_file) if options.token_file else None
    certificates: Path | None = options.certificates
    tls = Tls(*(certificates / f"{name}.pem" for name in ("cert", "key", "ca"))) if certificates else None
    weights = np.zeros(max(options.size))
    state = atoll.SharedState({"weights": weights})
    while True:
        group = None
        try:
            with atoll.join(
                options.address,
                name=options.name,
                min_world=options.min_world,
                timeout_s=None,
                listen=options.listen,
                advertise=options.advertise,
                shared_memory=options.shared_memory,
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
            time.sleep(PAUSE_S)
        except AtollError as error:
            if options.rejoin and group is None and isinstance(error, MasterLost):
                say(event="turned away", message=str(error))  # it went while we stood at its door
                time.sleep(PAUSE_S)
                continue
            say(event="failed", kind=type(error).__name__, message=str(error))
            raise SystemExit(2) from None


class Carried:
    """Reduces launched in one step and awaited in the next or the one after. Alike on all peers: revisions are the
    clock, and at a change of epoch nothing is under way."""

    def __init__(self, group: atoll.Group, tags: range) -> None:
        self._group, self._tags = group, tags
        self._under_way: dict[int, tuple[int, Any, atoll.Work]] = {}

    def launch(self, revision: int, gradients: list[Any]) -> None:
        """Those that are not under way."""
        for tag, gradient in zip(self._tags, gradients, strict=True):
            if tag not in self._under_way:
                work = self._group.all_reduce_async(gradient, "sum", tag=tag)
                self._under_way[tag] = revision + 1 + tag % 2, gradient, work

    def wait(self, revision: float = float("inf")) -> list[Any]:
        """Results that are due by then; or all."""
        due = [tag for tag, (when, _, _) in self._under_way.items() if when <= revision]
        atoll.wait_all([self._under_way[tag][2] for tag in due])
        return [self._under_way.pop(tag)[1] for tag in due]

    def abandon(self) -> None:
        """Their epoch has ended: whatever they came to, all drop it."""
        with suppress(PeerLost):
            atoll.wait_all([work for _, _, work in self._under_way.values()])
        self._under_way.clear()


def train(group: atoll.Group, state: atoll.SharedState, weights: Any, options: argparse.Namespace) -> None:
    """The loop of the documentation, with several tensors in flight."""
    seen = -1
    carried = Carried(group, range(options.tags, options.tags + options.carry))

    def advance(reduced: list[Any]) -> None:
        for gradient in reduced:
            weights[: gradient.size] += 1e-3 * gradient
        state.revision += 1
        say(event="step", revision=state.revision, world=group.world, hash=state.digest(), first=float(reduced[0][0]))

    while state.revision < options.steps:
        now: list[Any] = []
        before: list[Any] = []
        try:
            if group.peers_pending():
                if reduced := carried.wait():  # nothing may be under way when others come in
                    advance(reduced)
                group.update_topology()
            if group.epoch != seen:
                result = group.sync(state)
                seen = group.epoch
                say(event="synced", received=result.bytes_received, revision=state.revision, hash=state.digest())
                if state.revision >= options.steps:
                    break
            # a step in any case: newcomers who come one by one must not keep us from it
            gradients = [_gradient(state.revision, t, group.rank, options) for t in range(options.tags + options.carry)]
            now, later = gradients[: options.tags], gradients[options.tags :]
            before = [g.copy() for g in now]
            works = [group.all_reduce_async(g, "sum", tag=t) for t, g in enumerate(now)]
            if options.tell_begun:
                say(event="begun", revision=state.revision)
            carried.launch(state.revision, later)
            atoll.wait_all(works)
            advance([*now, *carried.wait(state.revision)])
        except PeerLost as error:
            carried.abandon()
            # all works of one epoch fail together, but those already decided keep their result
            intact = all(_same(g, b) or _reduced(g, b, options) for g, b in zip(now, before, strict=True))
            say(event="lost", message=str(error), intact=intact, world=group.world)
            continue
        if options.pace:
            time.sleep(options.pace)


def _gradient(revision: int, tag: int, rank: int, options: argparse.Namespace) -> Any:
    return np.full(options.size[tag % len(options.size)], float(revision + tag) * (rank + 1))


def _same(tensor: Any, before: Any) -> bool:
    return bool((tensor == before).all())


def _reduced(tensor: Any, before: Any, options: argparse.Namespace) -> bool:
    """A whole result rather than a mixture: all elements were equal before, so they are after."""
    return options.tags + options.carry > 1 and bool((tensor == tensor[0]).all())


if __name__ == "__main__":
    main()
