"""Driver: CO2's loop around any small model, from the parts that `atoll train` is made of."""

from math import inf

import torch
from torch import nn

import atoll
from atoll.train.exchange import Exchange
from atoll.train.flat import FlatModel
from atoll.train.learners import Late
from atoll.train.momentum import Kind, Momentum
from atoll.train.optimisers import constant, descent
from atoll.train.outer import OuterLoop
from atoll.train.schedule import FragmentSchedule


def late_loop(
    group: atoll.Group, module: nn.Module, schedule: FragmentSchedule, inner_rate: float, *,
    rate: float = 1.0, momentum: float = 0.0, kind: Kind = "heavy-ball", penalty: float | None = None,
    clip: float = inf, learner: type[Late] = Late,
) -> OuterLoop:  # fmt: skip
    """Plain descent by `inner_rate` within rounds; the rest as `Momentum` takes it. With one thread."""
    torch.set_num_threads(1)
    model = FlatModel(module)
    outer = Momentum(model.parameters.clone(), rate, momentum, kind, penalty, clip)
    learns = learner(model, outer, descent(model.parameters, constant(inner_rate)))
    loop = OuterLoop(model, learns, outer, schedule, Exchange())
    loop.enter(group)
    return loop
