"""The same program gives the same bits over real sockets and in virtual time."""

from typing import Any

import numpy as np

import atoll
from atoll.group.virtual import World
from atoll.reproduce.threads import run_peers

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
