"""Program: torch's optimisers over a flat vector, with all their memory in tensors that exist from the start.

So a state can be compared, sent and saved before the first step as after it. Matrices decay, vectors (norms) don't.
"""

from collections.abc import Callable, Sequence
from math import cos, pi

import torch
from torch import nn

LearningRate = Callable[[int], float]


def warm_up_then_cosine(peak: float, steps: int, warm_up: int, floor: float = 0.1) -> LearningRate:
    """Linear from 0 to `peak` over `warm_up` steps, then down to `floor * peak` at `steps` along half a cosine."""

    def rate(step: int) -> float:
        if step < warm_up:
            return peak * (step + 1) / warm_up
        done = min(1.0, (step - warm_up) / max(1, steps - warm_up))
        return peak * (floor + (1 - floor) * (1 + cos(pi * done)) / 2)

    return rate


def constant(rate: float) -> LearningRate:
    """The same at every step."""
    return lambda step: rate


class Optimiser:
    """Applies gradients to `parameters`, a flat tensor, in place. `clip`: the gradient's largest Euclidean norm."""

    def __init__(
        self, parameters: torch.Tensor, slices: Sequence[slice], parts: list[nn.Parameter],
        optimiser: torch.optim.Optimizer, rate: LearningRate, clip: float | None = None,
    ) -> None:  # fmt: skip
        self.parameters, self.rate, self.clip = parameters, rate, clip
        self._slices, self._parts, self._optimiser = slices, parts, optimiser

    def step(self, gradient: torch.Tensor, step: int) -> None:
        """One update with the learning rate of step number `step`. The gradient may be scaled in place."""
        if self.clip is not None:
            norm = torch.linalg.vector_norm(gradient)
            gradient.mul_(torch.clamp(self.clip / (norm + 1e-6), max=1.0))
        for part, place in zip(self._parts, self._slices, strict=True):
            part.grad = gradient[place]
        for group in self._optimiser.param_groups:
            group["lr"] = self.rate(step)
        self._optimiser.step()

    def memory(self, prefix: str) -> dict[str, torch.Tensor]:
        """Its state: views, so that writing to them restores it."""
        return {
            f"{prefix}{name}.{i}": tensor
            for i, part in enumerate(self._parts)
            for name, tensor in self._optimiser.state[part].items()
        }


def adamw(
    parameters: torch.Tensor, matrices: Sequence[slice], vectors: Sequence[slice], rate: LearningRate, *,
    weight_decay: float = 0.1, clip: float = 1.0,
) -> Optimiser:  # fmt: skip
    """AdamW (Loshchilov and Hutter 2019, arXiv 1711.05101). Matrices decay."""
    slices = [*matrices, *vectors]
    parts = [nn.Parameter(parameters[place]) for place in slices]
    cut = len(matrices)
    groups = [{"params": parts[:cut], "weight_decay": weight_decay}, {"params": parts[cut:], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW([g for g in groups if g["params"]], lr=rate(0), betas=(0.9, 0.95))
    for part in parts:
        optimiser.state[part] = {
            "step": torch.zeros(()),
            "exp_avg": torch.zeros_like(part),
            "exp_avg_sq": torch.zeros_like(part),
        }
    return Optimiser(parameters, slices, parts, optimiser, rate, clip)


def descent(parameters: torch.Tensor, rate: LearningRate) -> Optimiser:
    """Plain gradient descent; remembers nothing."""
    part = nn.Parameter(parameters)
    return Optimiser(parameters, [slice(0, parameters.numel())], [part], torch.optim.SGD([part], lr=rate(0)), rate)
