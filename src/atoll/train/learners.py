"""Program: the local half of a strategy: what a peer learns by itself, what it tells the others, where it goes on from.

θ   the model's parameters, this peer's own
Θ   the parameters all peers share, which the outer optimiser owns
"""

from typing import Literal, Protocol

import torch

from atoll.train.exchange import Exchanged
from atoll.train.flat import FlatModel
from atoll.train.momentum import Momentum, Outer
from atoll.train.optimisers import Optimiser

OnAbort = Literal["again", "reset"]


class Learner(Protocol):
    """`part`: where a fragment lies in the flat parameters."""

    def learn(self, step: int) -> None:
        """The gradient of a batch is there: use it."""

    def contribution(self, part: slice) -> torch.Tensor:
        """What the others should hear, as a new vector that descends like a gradient."""

    def again(self, part: slice, vector: torch.Tensor) -> torch.Tensor | None:
        """The same after a loss, when `vector` has come to nothing; None: nothing more of this fragment."""

    def took(self, part: slice, done: Exchanged) -> None:
        """The outer optimiser has moved this part of Θ."""

    def settle(self, under_way: bool, world: int) -> None:
        """All that was due after this step is done; is something `under_way`, among so many?"""

    def restart(self) -> None:
        """Go on from Θ, whatever there was."""

    def memory(self) -> dict[str, torch.Tensor]:
        """What a checkpoint needs besides what all share: views, so that writing to them restores it."""

    def forget(self) -> None:
        """What was learnt by oneself was refused, so it is no good to oneself either: go back to what all share."""


class Gradients:
    """Learns nothing by itself: contributes the gradient of the batch, and always is where all are."""

    def __init__(self, model: FlatModel, outer: Outer) -> None:
        self.model, self.outer = model, outer

    def learn(self, step: int) -> None:
        """The outer optimiser will."""

    def contribution(self, part: slice) -> torch.Tensor:
        return self.model.gradient[part].clone()

    def again(self, part: slice, vector: torch.Tensor) -> torch.Tensor | None:
        return vector

    def took(self, part: slice, done: Exchanged) -> None:
        """See `settle`."""

    def settle(self, under_way: bool, world: int) -> None:
        self.restart()

    def restart(self) -> None:
        self.model.parameters.copy_(self.outer.parameters)

    def memory(self) -> dict[str, torch.Tensor]:
        return {}

    def forget(self) -> None:
        self.restart()


class Runner:
    """Runs on by itself: contributes how far it has come from Θ, and mixes the new Θ into θ when that is there.

    `mix` α: θ <- α θ + (1 - α) Θ. Each part is measured from its Θ, not from where the mixing led.
    """

    def __init__(
        self, model: FlatModel, outer: Outer, optimiser: Optimiser, mix: float = 0.0, on_abort: OnAbort = "again"
    ) -> None:
        self.model, self.outer, self.optimiser = model, outer, optimiser
        self.mix, self.on_abort = mix, on_abort

    def learn(self, step: int) -> None:
        self.optimiser.step(self.model.gradient, step)

    def contribution(self, part: slice) -> torch.Tensor:
        return self.outer.parameters[part] - self.model.parameters[part]

    def again(self, part: slice, vector: torch.Tensor) -> torch.Tensor | None:
        """Measured anew from the same Θ; or θ goes back there."""
        return None if self.on_abort == "reset" else self.contribution(part)

    def took(self, part: slice, done: Exchanged) -> None:
        mine, shared = self.model.parameters[part], self.outer.parameters[part]
        if self.mix and done.mean is not None:
            mine.mul_(self.mix).add_(shared * (1 - self.mix))
        else:
            mine.copy_(shared)

    def settle(self, under_way: bool, world: int) -> None:
        """Nothing: it runs on."""

    def restart(self) -> None:
        self.model.parameters.copy_(self.outer.parameters)

    def memory(self) -> dict[str, torch.Tensor]:
        """With θ, where it is not Θ after an exchange."""
        runs_on = self.mix > 0 or len(self.model.fragments) > 1
        return self.optimiser.memory("inner.") | ({"local.parameters": self.model.parameters} if runs_on else {})

    def forget(self) -> None:
        for tensor in self.optimiser.memory("").values():
            tensor.zero_()
        self.restart()


class Late(Runner):
    """Whole rounds of the whole model, each from what is known when it begins: the result of the round before is still
    on its way."""

    def again(self, part: slice, vector: torch.Tensor) -> torch.Tensor | None:
        """The round is over; θ is in the next one."""
        return vector

    def took(self, part: slice, done: Exchanged) -> None:
        """See `settle`."""

    def settle(self, under_way: bool, world: int) -> None:
        self.restart()


class Eager(Late):
    """Takes the outer step that should come, before it is known: the last mean, with its own stale share replaced by
    the fresh one.

    So it runs ahead of Θ, which takes the true means one round late; when nothing is under way, it is back there.
    """

    def __init__(self, model: FlatModel, outer: Momentum, optimiser: Optimiser) -> None:
        super().__init__(model, outer, optimiser)
        self.shared, self.ahead = outer, outer.twin()
        self.fresh: torch.Tensor | None = None
        """Our part in the mean under way."""
        self.stale: torch.Tensor | None = None
        """Our part in the last one."""
        self.last: Exchanged | None = None

    def contribution(self, part: slice) -> torch.Tensor:
        self.fresh = self.ahead.parameters[part] - self.model.parameters[part]
        return self.fresh.clone()

    def took(self, part: slice, done: Exchanged) -> None:
        self.last = done

    def settle(self, under_way: bool, world: int) -> None:
        if not under_way or self.fresh is None:
            self.restart()
            return
        estimate = self.fresh / world
        if self.last is not None and self.last.mean is not None:
            news = self.fresh if self.stale is None else self.fresh - self.stale
            estimate = self.last.mean + news / self.last.given
        self.ahead.step(slice(None), estimate, 0)
        self.model.parameters.copy_(self.ahead.parameters)
        self.stale, self.last = self.fresh, None

    def restart(self) -> None:
        super().restart()
        self.ahead.follow(self.shared)
        self.fresh = self.stale = self.last = None
