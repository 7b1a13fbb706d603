"""Program: outer optimisers: what a mean of contributions does to the parameters all peers share.

Written in sums and products of float32, each rounded by itself: the same bits on every machine.
"""

from typing import Literal, Protocol

import torch

from atoll.train.optimisers import Optimiser

Kind = Literal["nesterov", "heavy-ball"]


class Outer(Protocol):
    """Owns the parameters all peers share."""

    parameters: torch.Tensor

    def step(self, part: slice, gradient: torch.Tensor, step: int) -> None:
        """Apply the mean contribution of one fragment, `part` of the parameters. It may be overwritten."""

    def memory(self, prefix: str) -> dict[str, torch.Tensor]:
        """What it remembers, shared too: views, so that writing to them restores it."""


class Momentum:
    """v <- mu v + gradient; the parameters then go back by `rate` times v (heavy ball: SlowMo, CO2) or times gradient +
    mu v (Nesterov: DiLoCo). `momentum` mu = 0: plain descent, which remembers nothing."""

    def __init__(self, parameters: torch.Tensor, rate: float, momentum: float = 0.0, kind: Kind = "nesterov") -> None:
        self.parameters, self.rate, self.momentum, self.kind = parameters, rate, momentum, kind
        self.velocity = torch.zeros_like(parameters) if momentum else None

    def step(self, part: slice, gradient: torch.Tensor, step: int) -> None:
        """The same at every step."""
        direction = gradient
        if self.velocity is not None:
            v = self.velocity[part]
            v.mul_(self.momentum).add_(gradient)
            direction = gradient + v * self.momentum if self.kind == "nesterov" else v
        self.parameters[part].sub_(direction * self.rate)

    def memory(self, prefix: str) -> dict[str, torch.Tensor]:
        """The velocity, if there is one."""
        return {} if self.velocity is None else {f"{prefix}momentum": self.velocity}

    def twin(self) -> "Momentum":
        """Another one that has come as far."""
        made = Momentum(self.parameters.clone(), self.rate, self.momentum, self.kind)
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
        self.optimiser, self.parameters = optimiser, optimiser.parameters

    def step(self, part: slice, gradient: torch.Tensor, step: int) -> None:
        """With the learning rate of that step."""
        self.optimiser.step(gradient, step)

    def memory(self, prefix: str) -> dict[str, torch.Tensor]:
        """Of the optimiser."""
        return self.optimiser.memory(prefix)
