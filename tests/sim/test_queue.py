"""Queues in virtual time wait as long as queueing theory says; Little's law holds to the nanosecond."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from atoll.errors import InvalidConfig
from atoll.reproduce.simulator.queues import erlang_c_wait, md_c_wait
from atoll.rng import stream
from atoll.sim.loop import Loop
from atoll.sim.queue import Census, Queue
from atoll.workload.generate.processes import Poisson

SEEDS = 20
Service = Callable[[np.random.Generator], float]


def memoryless(rng: np.random.Generator) -> float:
    return rng.standard_exponential()


def even(rng: np.random.Generator) -> float:
    return 1.0


def waits(rate: float, servers: int, service: Service, jobs: int, seed: int) -> tuple[float, list[float]]:
    """Mean wait and all sojourns of a queue with mean service 1, without its first tenth."""
    loop = Loop()
    queue = Queue(loop, servers)
    times = Poisson(rate).times(stream(seed, "times"))
    lengths = stream(seed, "services")
    sojourns: list[float] = []
    wasted = jobs // 10
    warm_ns = 0

    def arrive(number: int) -> None:
        nonlocal warm_ns
        if number == wasted:
            warm_ns = queue.waiting.stays_ns
        seconds, came_s = service(lengths), loop.now_s
        queue.submit(round(seconds * 1e9), lambda: sojourns.append(loop.now_s - came_s) if number >= wasted else None)
        if number < jobs:
            loop.post(round(next(times) * 1e9) - loop.now_ns, arrive, number + 1)

    loop.post(round(next(times) * 1e9), arrive, 1)
    loop.run()
    assert queue.inside.follows_little()
    assert queue.waiting.follows_little()
    assert (queue.inside.left, queue.inside.inside) == (jobs, 0)
    return (queue.waiting.stays_ns - warm_ns) / 1e9 / (jobs - wasted), sojourns


def agrees(values: list[float], theory: float, within: float = 0.02) -> bool:
    """Does the 95 % interval (Student's t, 19 degrees) contain the theory, or is the mean that near?"""
    half = 2.093 * np.std(values, ddof=1) / math.sqrt(len(values))
    mean = np.mean(values)
    return bool(abs(mean - theory) <= max(half, within * theory) and half < 0.2 * theory)


def mean_waits(rate: float, servers: int, service: Service, jobs: int) -> list[float]:
    return [waits(rate, servers, service, jobs, seed)[0] for seed in range(SEEDS)]


def test_one_memoryless_server() -> None:
    rate = 0.7
    runs = [waits(rate, 1, memoryless, 4000, seed) for seed in range(SEEDS)]
    assert agrees([wait for wait, _ in runs], rate / (1 - rate))
    assert agrees([float(np.percentile(sojourns, 99)) for _, sojourns in runs], math.log(100) / (1 - rate))


def test_one_even_server_halves_the_wait() -> None:
    assert agrees(mean_waits(0.7, 1, even, 3000), 0.7 / 0.3 / 2)


def test_several_memoryless_servers() -> None:
    assert agrees(mean_waits(3 * 0.7, 3, memoryless, 3000), erlang_c_wait(2.1, 3))


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.7, 0.9, 0.95])
@pytest.mark.parametrize("servers", [1, 2, 4, 8])
def test_memoryless_servers_at_length(servers: int, load: float) -> None:
    rate = load * servers
    assert erlang_c_wait(load, 1) == pytest.approx(load / (1 - load))
    assert agrees(mean_waits(rate, servers, memoryless, 40_000), erlang_c_wait(rate, servers))


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.7, 0.9])
@pytest.mark.parametrize("servers", [1, 2, 4, 8])
def test_even_servers_at_length(servers: int, load: float) -> None:
    rate = load * servers
    assert agrees(mean_waits(rate, servers, even, 40_000), md_c_wait(rate, servers), within=0.03)


@pytest.mark.slow
@pytest.mark.parametrize("load", [0.7, 0.9])
def test_the_tail_of_one_memoryless_server_at_length(load: float) -> None:
    tails = [float(np.percentile(waits(load, 1, memoryless, 40_000, seed)[1], 99)) for seed in range(SEEDS)]
    assert agrees(tails, math.log(100) / (1 - load))


def test_a_line_is_first_come_first_served() -> None:
    loop, seen = Loop(), []
    queue = Queue(loop, servers=2)
    for number, service in enumerate([5, 1, 1, 1, 9]):
        queue.submit(service, lambda n=number: seen.append((n, loop.now_ns)))
    loop.run()
    assert seen == [(1, 1), (2, 2), (3, 3), (0, 5), (4, 12)]


def test_a_census_counts_exactly() -> None:
    loop = Loop()
    census = Census(loop)
    first = census.enter()
    loop.post(4, lambda: census.leave(first))
    loop.post(2, census.enter)
    loop.post(10, lambda: None)
    loop.run()
    assert census.mean_inside() == (4 + 8) / 10
    assert (census.inside, census.left, census.stays_ns) == (1, 1, 4)
    assert census.follows_little()


def test_a_census_that_lost_somebody_does_not_follow_little() -> None:
    loop = Loop()
    census = Census(loop)
    entered = census.enter()
    loop.post(5, lambda: census.leave(entered))
    loop.post(7, lambda: census.leave(entered))
    loop.post(9, lambda: None)
    loop.run()
    assert not census.follows_little()


def test_aborting_leaves_nothing_behind() -> None:
    loop, seen = Loop(), []
    queue = Queue(loop)
    for service in (5, 5):
        queue.submit(service, lambda: seen.append("old"))
    loop.run(until_ns=2)
    queue.abort()
    assert loop.pending() == 0
    queue.submit(5, lambda: seen.append("new"))
    loop.run()
    assert seen == ["new"]
    assert queue.inside.follows_little()


def test_a_queue_without_servers_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="1 server or more"):
        Queue(Loop(), servers=0)
