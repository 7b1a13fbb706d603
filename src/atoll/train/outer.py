"""Program: the outer loop: one strategy of which the published ones are settings (`strategies.py`).

    every step      learn locally
    every H steps   the contribution (a gradient, or how far this peer has come) goes out; the mean comes back, at
    once or
                    one exchange later, and the outer optimiser applies it to the parameters all peers share

After Douillard et al. 2023 (DiLoCo, arXiv 2311.08105); with a delay of one, the exchange is hidden behind the next
steps (as in Keiblinger et al. 2025, arXiv 2505.14065). All that peers must agree on follows from the same bytes by
the same arithmetic, so states stay equal bit for bit.
"""

from math import isfinite
from typing import Any, Protocol

import torch

from atoll.cost import Op
from atoll.errors import Diverged
from atoll.group.facade import Group
from atoll.runtime.api import here
from atoll.train.api import Start, StepInfo
from atoll.train.exchange import Exchange, Exchanged
from atoll.train.flat import FlatModel
from atoll.train.fragments import FragmentSchedule
from atoll.train.optimisers import Optimiser


class Learner(Protocol):
    """The local half of a strategy: what a peer does with a batch, and what it then has to tell the others."""

    optimiser: Optimiser | None

    def begin(self) -> None:
        """The model stands at the parameters all share; a new round of local steps begins."""

    def learn(self, step: int) -> None:
        """The gradient of a batch is there: use it."""

    def contribution(self) -> torch.Tensor:
        """What the others should hear of the round, as a new vector that descends like a gradient."""


class OuterLoop:
    """A `Strategy`. The outer optimiser's parameters are the same bits on all peers; the model's may run ahead of
    them."""

    def __init__(
        self,
        model: FlatModel,
        learner: Learner,
        outer: Optimiser,
        schedule: FragmentSchedule,
        codec: str | None = None,
    ) -> None:
        self.model, self.learner, self.outer, self.schedule = model, learner, outer, schedule
        self.exchange = Exchange(codec)
        self.steps = torch.zeros(1, dtype=torch.int64)
        """Steps taken; part of what is shared."""
        self.reload()

    def enter(self, group: Group) -> None:
        """Train with this group from now on. What was in flight in another one is dropped."""
        self.exchange.enter(group)

    def step(self, batch: torch.Tensor) -> StepInfo:
        """Learn from `batch`, then do what the schedule says. Diverged: the loss is not a number; nothing was
        changed."""
        tokens = batch.shape[0] * (batch.shape[1] - 1)
        op = Op("train_step", flops=6.0 * self.model.parameters.numel() * tokens, tokens=tokens)
        loss = here().compute(op, lambda: self._gradient(batch))
        step = int(self.steps)
        if not isfinite(loss):
            raise Diverged(f"the loss is {loss} at step {step}: lower --lr, or look at the text of this peer")
        self.learner.learn(step)
        done: Exchanged | None = None
        actions = self.schedule.at(step)
        for action in actions:
            if isinstance(action, Start):
                self.exchange.start(self.learner.contribution())
            else:
                done = self._finish()
        self.steps += 1
        if actions:
            self.reload()
        if done is None:
            return StepInfo(loss, tokens, boundary=bool(actions))
        return StepInfo(loss, tokens, done.bytes_sent, done.waited_s, done.losses)

    def drain(self) -> tuple[str, ...]:
        """Finish what is in flight. To be called at a boundary only: local steps since then would be lost."""
        done = self._finish()
        if done is None:
            return ()
        self.reload()
        return done.losses

    def shared(self) -> dict[str, torch.Tensor]:
        """Parameters, the outer optimiser's memory, the step."""
        return {"parameters": self.outer.parameters, "steps": self.steps, **self.outer.memory("outer.")}

    def local(self) -> dict[str, Any]:
        """The inner optimiser's memory."""
        return self.learner.optimiser.memory("inner.") if self.learner.optimiser else {}

    def load_local(self, state: dict[str, Any]) -> None:
        """The reverse of `local`."""
        for name, tensor in self.local().items():
            tensor.copy_(state[name])

    def reload(self) -> None:
        """Go on from shared tensors that were written from outside."""
        self.model.parameters.copy_(self.outer.parameters)
        self.learner.begin()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _gradient(self, batch: torch.Tensor) -> float:
        loss = self.model.module.loss(batch)  # type: ignore[operator]
        self.model.backward(loss)
        return float(loss.detach())

    def _finish(self) -> Exchanged | None:
        if not self.exchange.under_way:
            return None
        done = self.exchange.finish()
        self.outer.step(done.mean, int(self.steps))
        return done
