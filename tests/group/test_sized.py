"""Collectives of ranks without programs take what theory says, and send what programs with real tensors send."""

from collections.abc import Callable
from math import log2
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.errors import Deadlock
from atoll.fabric import Fabric, leaf_spine, star
from atoll.group.api import BLOCK
from atoll.group.collectives import schedules
from atoll.group.collectives.rounds import lanes_of
from atoll.group.virtual import Sized, Took, World, simulate
from atoll.runtime.schedule import Recv, Schedule, Send
from atoll.sim.loop import Loop
from atoll.sim.net import Network

MIB = 1 << 20
ALPHA, RATE, SIZE = 10e-6, 1e9, 64 * MIB
LANES = 8

Case = tuple[Callable[[int], Schedule], list[int]]
"""The schedule of a rank, and how large the pieces are."""


def cases(n: int, size: int = SIZE, lanes: int = 1) -> dict[str, Case]:
    """Collectives of `n` ranks over a tensor of `size` bytes in all."""
    whole = Sized(size)

    def in_chunks(make: Callable[[int, int, int], Schedule]) -> Case:
        return lambda rank: make(rank, n, lanes), whole.pieces(n, lanes)

    return {
        "ring all-reduce": in_chunks(schedules.ring_all_reduce),
        "ring reduce-scatter": in_chunks(schedules.ring_reduce_scatter),
        "ring all-gather": in_chunks(schedules.ring_all_gather),
        "halving all-reduce": in_chunks(schedules.halving_all_reduce),
        "direct all-reduce": in_chunks(schedules.direct_all_reduce),
        "direct reduce-scatter": in_chunks(schedules.direct_reduce_scatter),
        "direct all-gather": in_chunks(schedules.direct_all_gather),
        "all-to-all": (
            lambda rank: schedules.all_to_all(rank, n, lambda a, b: range(a * n + b, a * n + b + 1)),
            whole.pieces(n) * n,
        ),
        "broadcast": (lambda rank: schedules.broadcast(rank, range(n), range(LANES)), whole.pieces(1, LANES)),
        "direct broadcast": (lambda rank: schedules.direct_broadcast(rank, n, 0), whole.pieces(1)),
    }


def theory(n: int) -> dict[str, float]:
    """Rings, and exchanges that wait for each other, pay a latency each round; all that is given at once pays one."""
    part = SIZE / (n * RATE)
    return {
        "ring all-reduce": 2 * (n - 1) * (ALPHA + part),
        "ring reduce-scatter": (n - 1) * (ALPHA + part),
        "ring all-gather": (n - 1) * (ALPHA + part),
        "halving all-reduce": 2 * log2(n) * ALPHA + 2 * (n - 1) * part,
        "direct all-reduce": 2 * (ALPHA + (n - 1) * part),
        "direct reduce-scatter": ALPHA + (n - 1) * part,
        "direct all-gather": ALPHA + (n - 1) * part,
        "all-to-all": ALPHA + (n - 1) * part,
        "broadcast": (n - 1) * ALPHA + (n - 2 + LANES) * SIZE / LANES / RATE,
        "direct broadcast": ALPHA + (n - 1) * SIZE / RATE,
    }


def took(fabric: Fabric, case: Case, tie_break: int | None = None) -> Took:
    return simulate(*case, fabric.hosts, Network(Loop(tie_break), fabric))


@pytest.mark.parametrize("name", cases(2))
@pytest.mark.parametrize("n", [2, 8, 64])
def test_a_collective_alone_takes_what_theory_says(n: int, name: str) -> None:
    """After Thakur, Rabenseifner and Gropp (2005), with alpha the latency of the whole way."""
    found = took(star(n, RATE, ALPHA / 2), cases(n)[name])
    assert found.seconds == pytest.approx(theory(n)[name], rel=0.01)


@pytest.mark.parametrize("n", [2, 8, 64])
def test_lanes_hide_the_latency_of_a_ring(n: int) -> None:
    """While one piece is on its way the others leave: links are never idle, where the others take long enough."""
    found = took(star(n, RATE, ALPHA / 2), cases(n, lanes=LANES)["ring all-reduce"])
    assert (LANES - 1) * SIZE / (n * LANES * RATE) > ALPHA
    assert found.seconds == pytest.approx(2 * (n - 1) * SIZE / (n * RATE) + ALPHA, rel=1e-3)


def test_each_rank_sends_the_least_there_can_be() -> None:
    n, size = 64, 63 * 64 * 4
    ring, halving, direct = (
        took(star(n, RATE), cases(n, size)[f"{way} all-reduce"]).sent for way in ("ring", "halving", "direct")
    )
    assert ring == halving == direct == [2 * (n - 1) * size // n] * n


WAYS = ["ring", "halving", "direct"]


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("n", "elements"), [(2, 300_000), (3, 100_001), (5, 1_000_003), (8, 4_000_000)])
def test_programs_send_what_sized_tensors_send_and_take_as_long(n: int, elements: int, way: Any) -> None:
    """But for the votes: a program says it is ready, hears that all are, says it has all, and hears that all have."""
    latency_s, results = 1e-4, {}

    def main() -> None:
        with atoll.join("any:1", min_world=n) as group:
            for _ in range(2):  # the second time all links stand
                group.barrier()
                result = group.all_reduce(np.ones(elements, np.float32), "sum", algorithm=way)
            results[group.rank] = result.bytes_sent, result.seconds
            group.barrier()

    world = World(latency_s=latency_s, bytes_per_s=RATE)
    for i in range(n):
        world.start(f"peer-{i}", main)
    world.run()

    nbytes = 4 * elements
    lanes = lanes_of(-(-nbytes // n), BLOCK)
    found = took(star(n, RATE, latency_s / 2), cases(n, nbytes, lanes)[f"{way} all-reduce"])
    assert [results[rank][0] for rank in range(n)] == found.sent
    assert max(seconds for _, seconds in results.values()) == pytest.approx(found.seconds + 4 * latency_s, rel=0.01)


def test_programs_that_exchange_all_to_all_send_what_sized_tensors_send() -> None:
    n, elements = 4, 30_000

    def main() -> int:
        with atoll.join("any:1", min_world=n) as group:
            sent = group.all_to_all([np.ones(elements, np.float32)] * n).bytes_sent
            group.barrier()
            return sent

    world = World()
    for i in range(n):
        world.start(f"peer-{i}", main)
    world.run()
    found = took(star(n, RATE), cases(n, 4 * elements * n)["all-to-all"])
    assert [p.program.result for p in world.processes] == found.sent


def test_luck_changes_nothing() -> None:
    fabric = leaf_spine(16, 4, 2, RATE, oversub=2.0, latency_s=ALPHA / 4)
    for name in ("ring all-reduce", "halving all-reduce", "all-to-all"):
        assert len({took(fabric, cases(16)[name], tie).seconds for tie in (None, 1, 2)}) == 1, name


def test_placement_matters() -> None:
    """The same ring, in order and interleaved, where a leaf can send a quarter of what its hosts can."""
    fabric = leaf_spine(16, 4, 1, RATE, oversub=4.0)
    interleaved = [f"host{4 * (i % 4) + i // 4}" for i in range(16)]
    case = cases(16)["ring all-reduce"]
    good = simulate(*case, fabric.hosts, Network(Loop(), fabric)).seconds
    bad = simulate(*case, interleaved, Network(Loop(), fabric)).seconds
    assert bad == pytest.approx(4 * good, rel=1e-3)


def test_one_after_the_other_on_one_network() -> None:
    fabric = star(8, RATE, ALPHA / 2)
    network = Network(Loop(), fabric)
    first, second = (simulate(*cases(8)["ring all-reduce"], fabric.hosts, network).seconds for _ in range(2))
    assert first == pytest.approx(second, rel=1e-6)
    assert network.loop.now_s == pytest.approx(first + second)


def test_a_link_without_capacity_is_named() -> None:
    fabric = star(4, RATE)
    network = Network(Loop(), fabric)
    network.set_link(fabric.links["switch->host2"], 0)
    with pytest.raises(Deadlock, match="no capacity at switch->host2"):
        simulate(*cases(4)["ring all-reduce"], fabric.hosts, network)


def test_ranks_that_wait_for_what_nobody_sends_are_named() -> None:
    def schedule(rank: int) -> Schedule:
        return [iter([Recv(1 - rank, 0), Send(1 - rank, 0)])]

    with pytest.raises(Deadlock, match="rank 0 waits for 1; rank 1 waits for 0"):
        took(star(2, RATE), (schedule, [10]))


@pytest.mark.slow
@pytest.mark.timeout(600)  # some 20 s, where nothing else runs
def test_a_ring_of_1024_ranks_takes_what_theory_says() -> None:
    n, size = 1024, 1 << 30
    found = took(leaf_spine(n, 32, 16, RATE, latency_s=ALPHA / 4), cases(n, size)["ring all-reduce"])
    assert found.seconds == pytest.approx(2 * (n - 1) * (ALPHA + size / n / RATE), rel=0.01)
    assert found.sent == [2 * (n - 1) * size // n] * n
