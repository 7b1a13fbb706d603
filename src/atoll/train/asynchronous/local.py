"""Program: a worker's own half: parameters in, steps of AdamW, how far they have come out."""

from math import isfinite

import numpy as np
import torch

from atoll import codec
from atoll.cost import Op
from atoll.errors import Diverged, ProtocolError
from atoll.train.api import Task
from atoll.train.exchange import finite
from atoll.train.flat import FlatModel
from atoll.train.learners import Runner
from atoll.train.momentum import Momentum
from atoll.train.optimisers import adamw, warm_up_then_cosine
from atoll.train.settings import TrainSettings
from atoll.train.shards import Shards

WIRE: np.dtype[np.float32] = np.dtype("<f4")
ALL = slice(None)


class Local:
    """AdamW's memory stays here and goes on from one assignment to the next."""

    def __init__(self, settings: TrainSettings, task: Task) -> None:
        self.settings, self.task = settings, task
        self.model = FlatModel(task.model)
        rate = warm_up_then_cosine(settings.lr, settings.steps, settings.warm_up)
        inner = adamw(self.model.parameters, self.model.matrices, self.model.vectors, rate)
        self.given = Momentum(self.model.parameters.clone(), 1.0)
        """Holds the parameters that the server gave."""
        self.runner = Runner(self.model, self.given, inner)
        self.shards = Shards(task.examples, settings.seed)
        self.codec = codec.get(settings.codec)

    @property
    def nbytes(self) -> int:
        """Of the parameters, as they travel."""
        return 4 * self.model.parameters.numel()

    def op(self) -> Op:
        """A step's work."""
        tokens = self.settings.batch * self.settings.model.context
        return Op("train_step", flops=6.0 * self.model.parameters.numel() * tokens, tokens=tokens)

    def begin(self, data: memoryview) -> None:
        """Go on from these parameters. ProtocolError: they are of another model."""
        if len(data) != self.nbytes:
            raise ProtocolError(f"the server gave {len(data)} bytes of parameters, {self.nbytes} are expected")
        self.given.parameters.numpy()[:] = np.frombuffer(data, WIRE)
        self.runner.restart()

    def step(self, first: int, step: int) -> tuple[float, int]:
        """Learn from the windows from number `first` on, as step `step` of the run; loss and tokens. Diverged: the loss
        is not a number."""
        batch = self.task.batch(self.shards.indices(first, 0, 1, self.settings.batch))
        loss = self.model.module.loss(batch)  # type: ignore[operator]
        self.model.backward(loss)
        found = float(loss.detach())
        if not isfinite(found):
            raise Diverged(f"the loss is {found} at step {step}: lower --lr, or look at the text of this peer")
        self.runner.learn(step)
        return found, batch.shape[0] * (batch.shape[1] - 1)

    def contribution(self, first: int) -> bytes | memoryview:
        """How far it came, encoded; empty: that is no number, and is forgotten. `first`: of the assignment, which
        decides where what travels is rounded at random."""
        delta = self.runner.contribution(ALL)
        if not bool(torch.isfinite(delta).all()):
            self.runner.forget()
            return b""
        vector = delta.numpy()
        if self.codec is None:
            return vector.astype(WIRE, copy=False).data.cast("B")
        out = np.empty(self.codec.encoded_size(len(vector)), np.uint8)
        s = self.settings
        self.codec.encode(vector, out, (s.seed << 64 | first) if s.rounding == "random" else None)
        return out.data


def decoded(name: str, data: memoryview, n: int) -> torch.Tensor | None:
    """The vector that a worker pushed; None: it holds what is no number. ProtocolError: it is none of `n` numbers."""
    if not len(data):
        return None
    found = codec.get(name)
    expected = 4 * n if found is None else found.encoded_size(n)
    if len(data) != expected:
        raise ProtocolError(f"a push of {len(data)} bytes where {expected} are expected")
    out = np.empty(n, np.float32)
    if found is None:
        out[:] = np.frombuffer(data, WIRE)
    else:
        found.decode(np.frombuffer(data, np.uint8), out)
    vector = torch.from_numpy(out)
    return vector if finite(vector) else None
