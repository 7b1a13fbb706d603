"""Program: the published strategies as settings of the one outer loop.

| | tells the others | when | outer optimiser | goes on from |
|---|---|---|---|---|
| `ddp` | its gradient | each step | AdamW | what all share |
| `local-sgd` | how far H steps of AdamW have come | each H steps | the mean of all models | what all share |
| `slowmo` | the same | the same | heavy-ball momentum | what all share |
| `diloco` | the same | the same, or some steps late | Nesterov momentum | what all share, mixed with its own if late |
| `streaming` | the same of one fragment | fragment by fragment, some steps late | Nesterov | the mixture |
| `eager` | the same of its round | each H steps, a round late | Nesterov | what the mean should come to |
| naive `eager` | the same | the same | Nesterov | what all share, a round old |
| `co2` | the same | the same | heavy ball, clipped; steps the smaller the staler | what all share, a round old |
"""

import torch

from atoll.model.transformer import Transformer
from atoll.train.exchange import Exchange
from atoll.train.flat import FlatModel
from atoll.train.fragments import FragmentPlan
from atoll.train.learners import Eager, Gradients, Late, Learner, Runner
from atoll.train.momentum import Kind, Momentum, Whole
from atoll.train.optimisers import LearningRate, adamw, warm_up_then_cosine
from atoll.train.outer import OuterLoop
from atoll.train.pace import Pace
from atoll.train.settings import TrainSettings
from atoll.train.sharded import ShardedExchange, Taken


def make_strategy(s: TrainSettings, module: Transformer) -> OuterLoop:
    """The strategy the settings name."""
    schedule = s.schedule
    model = FlatModel(module, FragmentPlan.of(module, schedule.fragments, s.pattern))
    rate = warm_up_then_cosine(s.lr, s.steps, s.warm_up)
    owed = [torch.zeros_like(model.parameters[part]) for part in model.fragments] if s.error_feedback else None
    exchange = Exchange(None if s.codec == "none" else s.codec, None if s.down == "same" else s.down, owed=owed)
    seed = s.seed if s.rounding == "random" else None
    if s.strategy == "ddp":
        together = Whole(adamw(model.parameters.clone(), model.matrices, model.vectors, rate))
        return OuterLoop(model, Gradients(model, together), together, schedule, exchange, seed)
    kind: Kind = "heavy-ball" if s.strategy in ("slowmo", "co2") else "nesterov"
    stale = (s.penalty, s.outer_clip * s.lr * s.every) if s.strategy == "co2" else ()

    def outer_of(parameters: torch.Tensor) -> Momentum:
        return Momentum(parameters, s.outer.rate, s.outer.momentum, kind, *stale)

    outer = outer_of(model.parameters.clone())
    if s.shards > 1:
        outer = Taken(model.parameters.clone())
        exchange = ShardedExchange(outer, outer_of, s.shards)
    pace = Pace(s.most_every) if s.most_every else None
    return OuterLoop(model, _learner(s, model, outer, rate), outer, schedule, exchange, seed, pace)


def _learner(s: TrainSettings, model: FlatModel, outer: Momentum, rate: LearningRate) -> Learner:
    inner = adamw(model.parameters, model.matrices, model.vectors, rate)
    if s.strategy == "co2" or (s.strategy == "eager" and s.naive):
        return Late(model, outer, inner)
    if s.strategy == "eager":
        return Eager(model, outer, inner)
    return Runner(model, outer, inner, s.mix if s.schedule.delay else 0.0, s.on_abort)
