"""Driver: its special cases, and itself, over real sockets against one process that does the same sums. (CO2, "Done
when" 1.)"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import inf

import numpy as np
import torch

import atoll
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.co2.late import late_loop
from atoll.reproduce.co2.reference import Loop, Vector, Workers, co2, late_nesterov, local_sgd, parallel_sgd, slowmo
from atoll.reproduce.streaming_diloco.reference import Tower, batch_of
from atoll.reproduce.threads import run_peers
from atoll.train.flat import FlatModel
from atoll.train.momentum import Kind
from atoll.train.schedule import FragmentSchedule

ROUNDS, EVERY, RATE, WORLD = 30, 4, 0.05, 4


@dataclass(frozen=True)
class Case:
    """One setting of the late loop, and the published loop that it is."""

    what: str
    reference: Loop
    every: int = EVERY
    waits: bool = False
    rate: float = 1.0
    momentum: float = 0.0
    kind: Kind = "heavy-ball"
    penalty: float | None = None
    clip: float = inf
    first_waits: bool = False


CASES = (
    Case("waiting at once, no clip = SlowMo", partial(slowmo, beta=0.5), waits=True, momentum=0.5),
    Case("waiting at once, no momentum = Local SGD", local_sgd, waits=True),
    Case("waiting after every step, no momentum = parallel SGD", parallel_sgd, every=1, waits=True),
    Case(
        "late, no penalty, no clip, Nesterov = DiLoCo a round late", partial(late_nesterov, eta=0.4, mu=0.6),
        rate=0.4, momentum=0.6, kind="nesterov", penalty=1.0,
    ),
    Case(
        "late, penalty by the gap, clipped = CO2", partial(co2, alpha=1.0, beta=0.5, phi=0.01),
        momentum=0.5, clip=0.01, first_waits=True,
    ),
)  # fmt: skip


def parity(seed: int, say: Say) -> Iterator[Line]:
    """After each of 30 rounds."""
    for letter, case in zip("abcde", CASES, strict=True):
        say(case.what)
        each = run_peers(WORLD, partial(_train, case, seed))
        expected = case.reference(Workers(seed, WORLD, RATE, case.every), ROUNDS)
        apart = max(float(np.abs(a - b).max()) for a, b in zip(each[0], expected, strict=True))
        moved = float(np.abs(expected[-1] - Workers(seed, 1, RATE, 1).start).max())
        same = sum(all(np.array_equal(mine[t], each[0][t]) for mine in each) for t in range(ROUNDS))
        yield Line(
            f"1{letter}",
            f"{case.what}: {WORLD} peers, {ROUNDS} rounds of {case.every}, against its own loop in one process; the "
            "same bits on all peers",
            "<= 1e-6 apart; equal at every round",
            f"{apart:.1e} apart where the largest parameter moved by {moved:.2g}; {same} of {ROUNDS} rounds equal",
            judged(apart <= 1e-6 and same == ROUNDS and moved > 0.01),
        )


def _train(case: Case, seed: int, group: atoll.Group) -> list[Vector]:
    """What is shared after each round."""
    schedule = FragmentSchedule(
        case.every, steps=ROUNDS * case.every, late=True, consensus=int(case.waits), first_waits=case.first_waits
    )
    loop = late_loop(
        group, Tower(seed), schedule, RATE, rate=case.rate, momentum=case.momentum, kind=case.kind,
        penalty=case.penalty, clip=case.clip,
    )  # fmt: skip
    found = []
    for step in range(ROUNDS * case.every):
        if loop.step(batch_of(seed, step, group.rank)).boundary:
            found.append(_in_order(loop.model, loop.outer.parameters))
    return found


def _in_order(model: FlatModel, flat: torch.Tensor) -> Vector:
    """As the module names its parameters."""
    kept = model.parameters.clone()
    model.parameters.copy_(flat)
    ordered = np.concatenate([p.detach().numpy().reshape(-1) for p in model.module.parameters()])
    model.parameters.copy_(kept)
    return ordered.astype(np.float64)
