"""Driver: descent on a quadratic under noise: what penalty and clip are good for, and how fast the error falls. (CO2,
"Done when" 3 and 6.)"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from math import inf, isfinite, sqrt

import numpy as np
import torch
from torch import nn

import atoll
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.co2.late import late_loop
from atoll.reproduce.threads import run_peers
from atoll.rng import stream
from atoll.train.schedule import FragmentSchedule


class Bowl(nn.Module):
    """Half of sum a x²; a batch is noise on the gradient."""

    def __init__(self, steepness: torch.Tensor, start: float) -> None:
        super().__init__()
        self.steepness = steepness
        self.x = nn.Parameter(torch.full_like(steepness, start))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """With the noise of the batch's mean."""
        return self.error() + (batch.mean(0) * self.x).sum()

    def error(self) -> torch.Tensor:
        """How far from the least."""
        return (self.steepness * self.x**2).sum() / 2


@dataclass(frozen=True)
class Case:
    """A run of `world` peers, `rounds` rounds of `every` steps with this learning rate."""

    world: int
    rounds: int
    every: int
    rate: float
    momentum: float = 0.0
    penalty: float | None = None
    clip: float = 1.0
    """In steps of a round."""


def ablation(seed: int, say: Say) -> Iterator[Line]:
    """The same noise with and without."""
    say("a quadratic, with and without penalty and clip")
    bowl = partial(Bowl, torch.logspace(-1, 0, 64), 3.0)
    usual = Case(4, 40, 8, 0.1, momentum=0.6)
    ways = {
        "both": usual,
        "penalty alone": Case(4, 40, 8, 0.1, 0.6, clip=inf),
        "clip alone": Case(4, 40, 8, 0.1, 0.6, penalty=1.0),
        "neither": Case(4, 40, 8, 0.1, 0.6, penalty=1.0, clip=inf),
    }
    ends = {name: float(np.mean(_errors(case, bowl, seed)[-10:])) for name, case in ways.items()}
    yield Line(
        "3",
        "a quadratic under noise, outer rate 1, momentum 0.6, steps large enough: the error of the last ten rounds",
        "neither: diverges or > 2x of both",
        ", ".join(f"{name} {end:.3g}" for name, end in ends.items()),
        judged(isfinite(ends["both"]) and not ends["neither"] <= 2 * ends["both"]),  # it may be no number any more
    )


def rate(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """Error by the number of samples, in all: peers x rounds x steps."""
    shapes = [(2, 64, 2), (2, 128, 2), (2, 256, 2), (4, 256, 2), (4, 256, 4)]
    shapes += [(4, 512, 4), (4, 1024, 4)] if full else []
    bowl = partial(Bowl, torch.linspace(0.5, 1.0, 256), 0.3)
    found = []
    for world, rounds, every in shapes:
        say(f"{world} peers, {rounds} rounds of {every}")
        case = Case(world, rounds, every, 0.4 * sqrt(world / (rounds * every)))
        errors = _errors(case, bowl, seed)
        found.append((world * rounds * every, float(np.mean(errors[-rounds // 4 :]))))
    samples, errors = np.log(np.array(found)).T
    slope = float(np.polyfit(samples, errors, 1)[0])
    yield Line(
        "6",
        "a convex problem under noise, learning rate as the theory sets it: error by peers x rounds x steps, from "
        f"{found[0][0]} to {found[-1][0]}",
        "slope -0.5 +- 0.1 in log-log",
        f"{slope:.2f}; error {found[0][1]:.3g} to {found[-1][1]:.3g}",
        judged(abs(slope + 0.5) <= 0.1),
    )


def _errors(case: Case, bowl: "partial[Bowl]", seed: int) -> list[float]:
    """After each round, where all are."""
    return list(run_peers(case.world, partial(_descend, case, bowl, seed), timeout_s=300.0)[0])


def _descend(case: Case, bowl: "partial[Bowl]", seed: int, group: atoll.Group) -> list[float]:
    module, errors = bowl(), list[float]()
    schedule, clip = FragmentSchedule(case.every, late=True, first_waits=True), case.clip * case.rate * case.every
    loop = late_loop(group, module, schedule, case.rate, momentum=case.momentum, penalty=case.penalty, clip=clip)
    noise = stream(seed, "noise", group.rank)
    for _ in range(case.rounds * case.every):
        batch = torch.from_numpy(noise.normal(size=(1, len(module.x))).astype(np.float32))
        if loop.step(batch).boundary:
            errors.append(float(module.error().detach()))
    return errors
