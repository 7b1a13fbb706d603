"""Program: Delayed Nesterov: momentum for pushes that come one by one (Liu et al. 2024, arXiv 2401.09135).

N   workers           b  <- b + g / N                                   each push g
ε   rate              Θ  <- Θ - ε (c β v + g / N)                       but for each N-th:
β   momentum          v  <- β v + b;   b <- 0;   Θ <- Θ - ε ((1 - c N + c) β v + g / N)
"""

from typing import Final

import torch

from atoll.errors import InvalidConfig

MOST_WORKERS: Final = 1 << 20


class DelayedNesterov:
    """N pushes come to one Nesterov step on their mean; momentum waits for all of them, and stale ones don't kick it.

    N is who is there when the first of N pushes comes: whoever comes or goes counts from the next N on, so each mean is
    whole. `share`, from 0 to 1: of the momentum, goes with the pushes in equal parts (c = share / N), the rest with the
    last one. `parameters` are a new tensor after each push: whoever holds the old one may go on sending it.
    """

    def __init__(self, parameters: torch.Tensor, rate: float, momentum: float, share: float = 0.0) -> None:
        for name, value, fits in (
            ("rate", rate, rate > 0), ("momentum", momentum, 0 <= momentum < 1), ("share", share, 0 <= share <= 1)
        ):  # fmt: skip
            if not fits:
                raise InvalidConfig(f"the {name} of delayed Nesterov can't be {value}")
        self.parameters, self.rate, self.momentum, self.share = parameters, rate, momentum, share
        self.velocity, self.buffer = torch.zeros_like(parameters), torch.zeros_like(parameters)
        self.counts = torch.zeros(2, dtype=torch.int64)
        """Pushes since the last momentum step, and of how many it will be."""

    def push(self, gradient: torch.Tensor, workers: int) -> None:
        """Apply one, which may be overwritten, while there are so many workers."""
        if not 1 <= workers <= MOST_WORKERS:
            raise ValueError(f"a push with {workers} workers there")
        if not self.counts[0]:
            self.counts[1] = workers
        self.counts[0] += 1
        n = int(self.counts[1])
        c, last = self.share / n, int(self.counts[0]) == n
        step = gradient.div_(n)
        self.buffer += step
        if last:
            self.velocity.mul_(self.momentum).add_(self.buffer)
            self.buffer.zero_()
            self.counts.zero_()
        part = 1 - c * n + c if last else c
        if part:
            step = step.add_(self.velocity, alpha=part * self.momentum)
        self.parameters = self.parameters.sub(step, alpha=self.rate)

    def memory(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs: the parameters as they are, the rest as views."""
        return {
            "parameters": self.parameters, "outer.velocity": self.velocity, "outer.buffer": self.buffer,
            "outer.counts": self.counts,
        }  # fmt: skip

    def restore(self, state: dict[str, torch.Tensor]) -> None:
        """The reverse. KeyError, RuntimeError: it is of something else."""
        for name, tensor in self.memory().items():
            tensor.copy_(state[name])
