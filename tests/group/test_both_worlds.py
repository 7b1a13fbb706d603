"""The same program gives the same bits over real sockets and in virtual time."""

import threading
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch

import atoll
from atoll.group import operations
from atoll.group.api import LOCAL_PACE
from atoll.group.collectives.choice import choose
from atoll.group.virtual import World
from atoll.reproduce.threads import run_peers
from atoll.runtime.api import here
from atoll.train.loop import Trainer
from atoll.train.settings import TrainSettings
from tests.train.tiny import corpus, tiny

STEPS = 25


def train(group: atoll.Group) -> list[tuple[Any, ...]]:
    """Data chosen by rank, not by process, so that both worlds see the same."""
    target = np.linspace(-1, 1, 64)
    weights = np.zeros(64)
    state = atoll.SharedState({"weights": weights})
    group.sync(state)
    log = []
    for step in range(STEPS):
        data = np.random.default_rng([step, group.rank]).normal(size=(16, 64))
        error = data @ (weights - target)
        packed = np.append(data.T @ error / len(data), np.mean(error**2))
        works = [group.all_reduce_async(packed, tag=1), group.all_reduce_async(np.ones(20_000), "sum", tag=2)]
        atoll.wait_all(works)
        weights -= 0.05 * packed[:-1]
        state.revision += 1
        log.append((step, group.world, float(packed[-1]), state.digest()))
    group.barrier()
    return log


def test_real_and_virtual_peers_compute_the_same_bits() -> None:
    real = run_peers(3, train)

    def main() -> Any:
        with atoll.join("any:1", min_world=3) as group:
            return train(group)

    world = World(seed=0)
    processes = [world.start(f"peer-{i}", main) for i in range(3)]
    world.run()
    virtual = [p.program.result for p in processes]
    assert real[0] == real[1] == real[2] == virtual[0] == virtual[1] == virtual[2]
    assert real[0][-1][2] < 0.2 * real[0][0][2]  # and it learnt something


def test_sixty_four_programs_run_in_one_process() -> None:
    def main() -> float:
        with atoll.join("any:1", min_world=64) as group:
            x = np.full(1000, float(group.rank))
            group.all_reduce(x, "sum")
            return float(x[0])

    world = World(seed=0, latency_s=1e-3)
    processes = [world.start(f"peer-{i}", main) for i in range(64)]
    world.run()
    assert {p.program.result for p in processes} == {64 * 63 / 2}


def test_an_all_reduce_takes_as_long_as_its_bytes_do() -> None:
    """2 (W - 1) / W of the data leave each peer: virtual time against the closed form."""
    nbytes, rate, latency, world_size = 8 << 20, 1e8, 1e-3, 4
    took = {}

    def main() -> None:
        with atoll.join("any:1", min_world=world_size) as group:
            group.barrier()
            took[group.rank] = group.all_reduce(np.ones(nbytes // 8), "sum").seconds

    world = World(seed=0, latency_s=latency, bytes_per_s=rate)
    for i in range(world_size):
        world.start(f"peer-{i}", main)
    world.run()
    bytes_on_a_link = 2 * (world_size - 1) / world_size * nbytes
    votes_s = 4 * latency  # initiate, commence, complete, verdict
    assert bytes_on_a_link / rate + votes_s <= max(took.values()) <= 1.1 * bytes_on_a_link / rate + 12 * latency


# -- the training program, with one that comes late -------------------------------------------------------------------

PEERS, HELD_AT = 3, 5


@dataclass
class Training:
    """A run in one of the worlds: `PEERS` begin together; when all have taken `HELD_AT` steps and nothing is under way,
    one more comes, and they go on once the master knows of it. So it is let in at the same step in every world."""

    settings: TrainSettings
    start: Callable[[Callable[[], None]], object]
    """Begin a program."""
    members: Callable[[], int]
    """How many the master knows."""
    address: str = "any:1"
    told: dict[int, list[tuple[Any, ...]]] = field(default_factory=lambda: defaultdict(list))
    """By rank: joined and synced with (epoch, world), steps with their losses, bytes and hashes, outcomes."""
    held: Any = field(default_factory=count)

    def begin(self) -> None:
        for _ in range(PEERS):
            self.start(lambda: self.train(PEERS))

    def train(self, min_world: int) -> None:
        said: list[tuple[Any, ...]] = []
        rank = -1

        def report(event: str, **about: Any) -> None:
            nonlocal rank
            rank = about.get("rank", rank)
            chosen = ("step", "epoch", "world", "loss", "sent", "hash", "revision", "received", "message")
            said.append((event, *((name, about[name]) for name in chosen if name in about)))
            if event == "step" and about["step"] == HELD_AT and min_world == PEERS:
                self.hold(trainer)

        trainer = Trainer(self.settings, corpus(), report)
        trainer.run(lambda: atoll.join(self.address, min_world=min_world))
        self.told[rank] = said

    def hold(self, trainer: Trainer) -> None:
        while not trainer.strategy.exchange.landed():
            here().sleep(0.01)
        if next(self.held) == PEERS - 1:
            self.start(lambda: self.train(1))
        while self.members() < PEERS + 1:
            here().sleep(0.01)


def told_in_reality(settings: TrainSettings) -> dict[int, list[tuple[Any, ...]]]:
    errors: list[BaseException] = []
    threads: list[threading.Thread] = []

    def start(main: Callable[[], None]) -> None:
        def body() -> None:
            try:
                main()
            except BaseException as error:
                errors.append(error)

        threads.append(threading.Thread(target=body, daemon=True))
        threads[-1].start()

    with atoll.Master() as master:
        training = Training(settings, start, lambda: len(master._policy.roster.members), master.address)
        training.begin()
        for thread in threads:  # grows by the newcomer
            thread.join(60.0)
    assert not errors, errors
    return dict(training.told)


def told_in_virtual_time(settings: TrainSettings, **options: Any) -> dict[int, list[tuple[Any, ...]]]:
    world = World(**options)
    names = count()
    training = Training(
        settings,
        lambda main: world.start(f"peer-{next(names)}", main),
        lambda: len(world.master.roster.members),
    )
    training.begin()
    world.run()
    return dict(training.told)


@pytest.mark.parametrize(
    "how",
    [
        {"strategy": "ddp"},
        {"strategy": "ddp", "delay": 1},
        {"strategy": "diloco"},
        {"strategy": "diloco", "delay": 2},
        {"strategy": "streaming", "every": 2, "codec": "e3m0"},
        {"strategy": "eager", "consensus": 2},
    ],
    ids=str,
)
def test_a_training_run_is_the_same_in_both_worlds(how: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Losses bit for bit, bytes of each step, and who was in which epoch, though one comes late."""
    torch.set_num_threads(1)
    monkeypatch.setattr(  # else a machine that has much to do may choose another way than one that has not
        operations, "choose", lambda kind, nbytes, world, pace, hops=True: choose(kind, nbytes, world, LOCAL_PACE, hops)
    )
    settings = tiny(**how)
    real, virtual = told_in_reality(settings), told_in_virtual_time(settings)
    assert sorted(real) == sorted(virtual) == [0, 1, 2, 3]
    for rank, said in real.items():
        assert said == virtual[rank], f"rank {rank}"
    worlds = [(dict(e[1:])["epoch"], dict(e[1:])["world"]) for e in real[0] if e[0] == "synced"]
    assert [world for _, world in worlds] == [PEERS, PEERS + 1]
    assert dict(real[3][0][1:])["world"] == PEERS + 1
    assert all(dict(e[1:])["sent"] > 0 for e in real[0] if e[0] == "done")
    assert told_in_virtual_time(settings, seed=3, jitter=3.0, tie_break=3, latency_s=0.02) == virtual
