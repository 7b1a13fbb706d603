"""Program: outer optimisers: what a mean of contributions does to the parameters all peers share.

Written in sums, products and quotients of float32, each rounded by itself, and norms summed in one order: the same bits
on every machine.
"""

from math import sqrt
from typing import Final, Literal, Protocol

import numpy as np
import torch

from atoll.train.optimisers import Optimiser

Kind = Literal["nesterov", "heavy-ball"]
LARGEST_PENALTY: Final = 10.0
BLOCK: Final = 1024
"""Numbers whose squares are summed together."""


class Outer(Protocol):
    """Owns the parameters all peers share."""

    parameters: torch.Tensor
    span: float
    """How many times as long contributions are as it was made for."""

    def step(self, part: slice, gradient: torch.Tensor, step: int) -> None:
        """Apply the mean contribution of one fragment, `part` of the parameters. It may be overwritten."""

    def move(self, part: slice, by: torch.Tensor) -> None:
        """No step, but back by this vector."""

    def measured(self, part: slice) -> None:
        """The next contribution to this part is measured from its parameters as they are now, not from earlier ones."""

    def memory(self, prefix: str) -> dict[str, torch.Tensor]:
        """What it remembers, shared too: views, so that writing to them restores it."""


class Momentum:
    """v <- mu v + gradient; the parameters then go back by `rate` times v (heavy ball: SlowMo, CO2) or times gradient +
    mu v (Nesterov: DiLoCo). `momentum` mu = 0: plain descent, which remembers nothing.

    `penalty`: what gradients are divided by; None: by how stale they are, that is how far the parameters have moved
    since they were measured (Sun et al. 2024, CO2, arXiv 2401.16265).
    `clip`: the largest entry of v, or of what takes its place, either way, `span` times; what was clipped is what is
    remembered.
    """

    def __init__(
        self, parameters: torch.Tensor, rate: float, momentum: float = 0.0, kind: Kind = "nesterov",
        penalty: float | None = 1.0, clip: float = float("inf"),
    ) -> None:  # fmt: skip
        self.parameters, self.rate, self.momentum, self.kind = parameters, rate, momentum, kind
        self.penalty, self.clip, self.span = penalty, clip, 1.0
        self.velocity = torch.zeros_like(parameters) if momentum else None
        self._moved: dict[int, float] = {}

    def step(self, part: slice, gradient: torch.Tensor, step: int) -> None:
        """The same at every step."""
        stale = staleness(self.moved(part), norm(gradient)) if self.penalty is None else self.penalty
        self.move(part, self.direction(part, gradient, stale))

    def direction(self, part: slice, gradient: torch.Tensor, stale: float) -> torch.Tensor:
        """What to go back by; the velocity takes the gradient in."""
        gradient /= stale
        v = gradient
        if self.velocity is not None:
            v = self.velocity[part]
            v.mul_(self.momentum).add_(gradient)
        v.clamp_(-self.clip * self.span, self.clip * self.span)
        nesterov = self.velocity is not None and self.kind == "nesterov"
        return (gradient + v * self.momentum if nesterov else v) * self.rate

    def move(self, part: slice, by: torch.Tensor) -> None:
        self.parameters[part].sub_(by)
        if self.penalty is None:
            self._moved[part.start] = norm(by)

    def measured(self, part: slice) -> None:
        self._moved.pop(part.start, None)

    def moved(self, part: slice) -> float:
        """How far (Euclidean) this part has gone since the next contribution to it was measured."""
        return self._moved.get(part.start, 0.0)

    def memory(self, prefix: str) -> dict[str, torch.Tensor]:
        """The velocity, if there is one."""
        return {} if self.velocity is None else {f"{prefix}momentum": self.velocity}

    def twin(self) -> "Momentum":
        """Another one that has come as far."""
        made = Momentum(self.parameters.clone(), self.rate, self.momentum, self.kind, self.penalty, self.clip)
        made.follow(self)
        return made

    def follow(self, other: "Momentum") -> None:
        """Come as far as `other`, of the same kind."""
        self.parameters.copy_(other.parameters)
        if self.velocity is not None and other.velocity is not None:
            self.velocity.copy_(other.velocity)


class Whole:
    """An optimiser of all parameters as the outer one of a single fragment."""

    def __init__(self, optimiser: Optimiser) -> None:
        self.optimiser, self.parameters, self.span = optimiser, optimiser.parameters, 1.0

    def step(self, part: slice, gradient: torch.Tensor, step: int) -> None:
        """With the learning rate of that step."""
        self.optimiser.step(gradient, step)

    def move(self, part: slice, by: torch.Tensor) -> None:
        self.parameters[part].sub_(by)

    def measured(self, part: slice) -> None:
        """It doesn't ask how stale a gradient is."""

    def memory(self, prefix: str) -> dict[str, torch.Tensor]:
        """Of the optimiser."""
        return self.optimiser.memory(prefix)


def staleness(moved: float, length: float) -> float:
    """What to divide a late step by that was good where it was measured: 1 + how far all has moved since / its length,
    at most `LARGEST_PENALTY`. No step at all: 1."""
    if not length:
        return 1.0
    return min(1.0 + moved / length, LARGEST_PENALTY)


def norm(vector: torch.Tensor) -> float:
    """Euclidean, with one order of additions on every machine."""
    return sqrt(total(squares(vector)))


def squares(vector: torch.Tensor) -> torch.Tensor:
    """Sums of squares of each `BLOCK` numbers, float64."""
    blocks = torch.zeros(-(-len(vector) // BLOCK) * BLOCK, dtype=torch.float64)
    blocks[: len(vector)] = vector
    rows = blocks.square_().view(-1, BLOCK)
    while (half := rows.shape[1] // 2) > 0:
        rows = rows[:, :half] + rows[:, half:]
    return rows[:, 0]


def total(sums: torch.Tensor) -> float:
    """One by one."""
    return float(np.add.accumulate(sums.numpy())[-1]) if len(sums) else 0.0
