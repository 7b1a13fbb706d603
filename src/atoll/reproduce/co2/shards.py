"""Driver: the memory of the outer optimiser split among peers. (CO2, "Done when" 4.)"""

from collections.abc import Iterator
from functools import partial
from typing import Final

import torch
from torch import nn

import atoll
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.threads import run_peers
from atoll.rng import stream
from atoll.train.flat import FlatModel
from atoll.train.learners import Late
from atoll.train.momentum import BLOCK, Momentum
from atoll.train.optimisers import constant, descent
from atoll.train.outer import OuterLoop
from atoll.train.schedule import FragmentSchedule
from atoll.train.sharded import ShardedExchange, Taken

WORLD: Final = 4
EVERY, ROUNDS, RATE = 6, 8, 0.02
Found = tuple[list[torch.Tensor], int]
"""What is shared after each round, and numbers of momentum on a peer."""


class Layers(nn.Module):
    """Some 33,000 parameters."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(128, 128), nn.Linear(128, 128)
        for name, parameter in self.named_parameters():
            drawn = stream(seed, "layers", name).normal(0, 0.1, tuple(parameter.shape)).astype("float32")
            parameter.data.copy_(torch.from_numpy(drawn))

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Of a batch whose columns are to be found again in reverse."""
        return nn.functional.mse_loss(self.second(torch.tanh(self.first(batch))), batch.flip(1))


def shards(seed: int, say: Say) -> Iterator[Line]:
    """One, two and four."""
    found: dict[int, list[Found]] = {}
    for count in (1, 2, 4):
        say(f"momentum in {count} shards")
        found[count] = run_peers(WORLD, partial(_train, count, seed))
    one = found[1][0][0]
    same = sum(
        all(torch.equal(mine[t], one[t]) for each in found.values() for mine, _ in each) for t in range(len(one))
    )
    n = len(one[0])
    sizes = {count: max(size for _, size in each) for count, each in found.items()}
    small = all(n / count <= size <= n / count + BLOCK for count, size in sizes.items())
    yield Line(
        "4",
        f"{WORLD} peers, {ROUNDS} rounds of {EVERY}, momentum of {n} parameters in 1, 2 and 4 shards, summed by rank",
        f"the same bits at every round; 1 / shards on each peer, up to {BLOCK}",
        f"{same} of {len(one)} the same; "
        + ", ".join(f"{count}: {4 * size / 1024:.0f} KiB" for count, size in sizes.items()),
        judged(same == len(one) and small and len(one) == ROUNDS),
    )


def _train(count: int, seed: int, group: atoll.Group) -> Found:
    torch.set_num_threads(1)
    model = FlatModel(Layers(seed))
    outer = Taken(model.parameters.clone())
    exchange = ShardedExchange(
        outer, lambda of: Momentum(of, 1.0, 0.5, "heavy-ball", penalty=None, clip=RATE * EVERY), count
    )
    schedule = FragmentSchedule(EVERY, steps=EVERY * ROUNDS, late=True, first_waits=True, stages=3)
    learner = Late(model, outer, descent(model.parameters, constant(RATE)))
    loop, shared = OuterLoop(model, learner, outer, schedule, exchange), []
    loop.enter(group)
    loop.meet(group)
    for step in range(EVERY * ROUNDS):
        batch = torch.from_numpy(stream(seed, "rows", step, group.rank).normal(size=(8, 128)).astype("float32"))
        if loop.step(batch).boundary:
            shared.append(outer.parameters.clone())
    assert exchange.mine.velocity is not None
    return shared, len(exchange.mine.velocity)
