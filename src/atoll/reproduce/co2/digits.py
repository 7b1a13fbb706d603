"""Driver: handwritten digits learnt a round late, and by synchronous descent. (CO2, "Done when" 5.)"""

from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
from torch import nn

import atoll
from atoll.reproduce.api import Line, Say, judged, missing
from atoll.reproduce.co2.late import late_loop
from atoll.reproduce.threads import run_peers
from atoll.rng import stream
from atoll.train.exchange import Exchange
from atoll.train.flat import FlatModel
from atoll.train.learners import Gradients
from atoll.train.momentum import Whole
from atoll.train.optimisers import constant, descent
from atoll.train.outer import OuterLoop
from atoll.train.schedule import FragmentSchedule

WORLD, EVERY, STEPS, BATCH, RATE = 4, 8, 2400, 16, 0.2


class Digits(nn.Module):
    """Two layers on 8 x 8 pixels. A row of a batch: the pixels, then the digit."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.hidden, self.out = nn.Linear(64, 32), nn.Linear(32, 10)
        for name, parameter in self.named_parameters():
            drawn = stream(seed, "digits", name).normal(0, 0.15, tuple(parameter.shape)).astype(np.float32)
            parameter.data.copy_(torch.from_numpy(drawn))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """In nats."""
        return nn.functional.cross_entropy(self._scores(batch), batch[:, -1].long())

    def accuracy(self, batch: torch.Tensor) -> float:
        """Share that is right."""
        with torch.no_grad():
            return float((self._scores(batch).argmax(1) == batch[:, -1].long()).float().mean())

    def _scores(self, batch: torch.Tensor) -> torch.Tensor:
        return torch.as_tensor(self.out(torch.relu(self.hidden(batch[:, :-1]))))


def digits(seed: int, say: Say) -> Iterator[Line]:
    """The same samples in the same order."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        yield missing("5", "digits", "within 1 point", "scikit-learn's digits: pip install 'atoll[reproduce]'")
        return
    say(f"{WORLD} peers learn digits")
    pixels, labels = load_digits(return_X_y=True)
    rows = np.concatenate([pixels / 16, labels[:, None]], axis=1).astype(np.float32)
    stream(seed, "digits").shuffle(rows)
    train, test = torch.from_numpy(rows[:1400]), torch.from_numpy(rows[1400:])
    late, together = (run_peers(WORLD, partial(_learn, how, train, test, seed))[0] for how in (True, False))
    yield Line(
        "5",
        f"a perceptron on digits, {WORLD} peers, {STEPS} steps, exchanges every {EVERY} against synchronous SGD on the "
        f"same samples: right of {len(test)} not learnt from",
        "within 1 point",
        f"{late:.1%} against {together:.1%}",
        judged(abs(late - together) <= 0.01 and together > 0.9),
    )


def _learn(late: bool, train: torch.Tensor, test: torch.Tensor, seed: int, group: atoll.Group) -> float:
    torch.set_num_threads(1)
    module = Digits(seed)
    if late:
        schedule = FragmentSchedule(EVERY, steps=STEPS, late=True, first_waits=True)
        loop = late_loop(group, module, schedule, RATE, clip=RATE * EVERY)
    else:
        model = FlatModel(module)
        whole = Whole(descent(model.parameters.clone(), constant(RATE)))
        loop = OuterLoop(model, Gradients(model, whole), whole, FragmentSchedule(), Exchange())
        loop.enter(group)
    for step in range(STEPS):
        chosen = stream(seed, "batch", step, group.rank).integers(0, len(train), BATCH)
        loop.step(train[chosen])
    return module.accuracy(test)
