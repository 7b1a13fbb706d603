"""Program: the published strategies as settings of the one outer loop.

| | contribution | every | outer optimiser |
|---|---|---|---|
| `ddp` | the gradient | 1 step | AdamW |
| `diloco` | how far H steps of AdamW have come | H steps | Nesterov |

`delay=1` applies each exchange one exchange later and so hides it behind the next steps.
"""

import torch

from atoll.train.flat import FlatModel
from atoll.train.fragments import FragmentSchedule
from atoll.train.optimisers import LearningRate, Optimiser, adamw, constant, nesterov
from atoll.train.outer import OuterLoop


class Gradients:
    """Contributes the gradient of the batch; learns nothing on its own."""

    def __init__(self, model: FlatModel) -> None:
        self.model = model
        self.optimiser: Optimiser | None = None

    def begin(self) -> None:
        """Nothing to remember."""

    def learn(self, step: int) -> None:
        """The outer optimiser will."""

    def contribution(self) -> torch.Tensor:
        return self.model.gradient.clone()


class Displacement:
    """Takes steps of its own and contributes how far they led: where the round began minus where it ended."""

    def __init__(self, model: FlatModel, optimiser: Optimiser) -> None:
        self.model = model
        self.optimiser: Optimiser | None = optimiser
        self._began = torch.empty_like(model.parameters)

    def begin(self) -> None:
        self._began.copy_(self.model.parameters)

    def learn(self, step: int) -> None:
        assert self.optimiser is not None
        self.optimiser.step(self.model.gradient, step)

    def contribution(self) -> torch.Tensor:
        return self._began - self.model.parameters


def ddp(model: FlatModel, rate: LearningRate, *, delay: int = 0, codec: str | None = None) -> OuterLoop:
    """Data-parallel training: every step's gradients are averaged; all peers take the same AdamW step."""
    outer = adamw(model.parameters.clone(), model.matrices, rate)
    return OuterLoop(model, Gradients(model), outer, FragmentSchedule(1, delay), codec)


def diloco(
    model: FlatModel,
    rate: LearningRate,
    *,
    every: int = 20,
    steps: int | None = None,
    delay: int = 0,
    codec: str | None = None,
    outer_rate: float = 0.7,
    outer_momentum: float = 0.9,
) -> OuterLoop:
    """DiLoCo (Douillard et al. 2023, arXiv 2311.08105): H = `every` local AdamW steps, then one Nesterov step
    together; also after `steps`, the last."""
    outer = nesterov(model.parameters.clone(), model.matrices, constant(outer_rate), momentum=outer_momentum)
    learner = Displacement(model, adamw(model.parameters, model.matrices, rate))
    return OuterLoop(model, learner, outer, FragmentSchedule(every, delay, steps), codec)
