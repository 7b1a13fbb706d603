"""Cores and disks share what they have, end cleanly, and follow the laws of processor sharing."""

import math
from collections.abc import Callable

import numpy as np
import pytest

from atoll.errors import InvalidConfig
from atoll.rng import stream
from atoll.sim.fluid import Fluid
from atoll.sim.host import Cpu, Disk
from atoll.sim.loop import Loop
from atoll.sim.queue import Census
from atoll.workload.generate.processes import Poisson


def seconds(cores: float, *tasks: tuple[float, float, float], slow_at_s: float | None = None) -> list[float]:
    """When tasks of (start, core seconds, threads) end."""
    loop = Loop()
    cpu = Cpu(Fluid(loop), "host", cores)
    ends = [math.nan] * len(tasks)
    for i, (start_s, work_s, threads) in enumerate(tasks):
        end = lambda i=i: ends.__setitem__(i, loop.now_s)  # noqa: E731
        loop.post(round(start_s * 1e9), lambda w=work_s, t=threads, e=end: cpu.run(w, e, threads=t))
    if slow_at_s is not None:
        loop.post(round(slow_at_s * 1e9), cpu.set_speed, 2)
    loop.run()
    return ends


def test_a_task_has_one_core_at_most() -> None:
    assert seconds(4, (0, 1, 1), (0, 2, 1)) == pytest.approx([1, 2])


def test_more_tasks_than_cores_share_them() -> None:
    assert seconds(2, (0, 1, 1), (0, 1, 1), (0, 1, 1), (0, 1, 1)) == pytest.approx([2] * 4)
    assert seconds(1, (0, 1, 1), (0.5, 1, 1)) == pytest.approx([1.5, 2])


def test_threads_use_that_many_cores_and_weigh_that_much() -> None:
    assert seconds(8, (0, 4, 4)) == pytest.approx([1])
    assert seconds(4, (0, 3, 3), (0, 3, 3)) == pytest.approx([1.5, 1.5])
    # 3 of 4 shares of 2 cores until the small one ends.
    assert seconds(2, (0, 3, 3), (0, 1, 1)) == pytest.approx([2, 2])


def test_a_slow_host_slows_every_task_even_where_cores_are_idle() -> None:
    assert seconds(4, (0, 1, 1), slow_at_s=0.5) == pytest.approx([1.5])


def test_a_cancelled_task_leaves_nothing_behind() -> None:
    loop, seen = Loop(), []
    cpu = Cpu(Fluid(loop), "host", 1)
    task = cpu.run(10, lambda: seen.append("cancelled"))
    cpu.run(1, lambda: seen.append(loop.now_s))
    loop.post(10**9, cpu.cancel, task)
    loop.run()
    assert seen == [pytest.approx(1.5)]
    cpu.cancel(task)
    cpu.run(10, lambda: seen.append("aborted"))
    loop.run(until_ns=2 * 10**9)
    cpu.abort()
    loop.run()
    assert len(seen) == 1
    assert loop.now_s < 3


def sojourn_s(service: Callable[[np.random.Generator], float], seed: int, jobs: int = 1500, load: float = 0.6) -> float:
    """Mean time in an M/G/1 processor-sharing system with mean service 1, which must follow Little's law."""
    loop = Loop()
    cpu, census = Cpu(Fluid(loop), "host", 1), Census(loop)
    times, lengths = Poisson(load).times(stream(seed, "times")), stream(seed, "services")

    def arrive(left: int) -> None:
        entered = census.enter()
        cpu.run(service(lengths), lambda: census.leave(entered))
        if left:
            loop.post(round(next(times) * 1e9) - loop.now_ns, arrive, left - 1)

    loop.post(round(next(times) * 1e9), arrive, jobs - 1)
    loop.run()
    assert census.follows_little()
    assert census.left == jobs
    return census.mean_stay_s()


SERVICES: dict[str, Callable[[np.random.Generator], float]] = {
    "even": lambda rng: 1.0,
    "memoryless": lambda rng: rng.standard_exponential(),
    "bursty": lambda rng: 5.0 if rng.random() < 0.1 else 5 / 9,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", SERVICES)
def test_under_processor_sharing_only_the_mean_service_counts(name: str) -> None:
    means = [sojourn_s(SERVICES[name], seed, jobs=6000) for seed in range(20)]
    half = 2.093 * np.std(means, ddof=1) / math.sqrt(20)
    assert abs(np.mean(means) - 1 / 0.4) <= max(half, 0.02 / 0.4)


def test_processor_sharing_does_not_make_the_variance_pay() -> None:
    # First come first served would wait (1 + cv^2) / 2 * load / (1 - load): 1 + 0.75 for even, 1 + 2 for these.
    means = [sojourn_s(SERVICES["bursty"], seed) for seed in range(4)]
    assert np.mean(means) == pytest.approx(2.5, rel=0.1)


def transfers(disk: Disk, loop: Loop, *sizes: int) -> list[tuple[float, bool]]:
    ends: list[tuple[float, bool]] = []
    for nbytes in sizes:
        disk.transfer(nbytes, lambda ok: ends.append((round(loop.now_s, 6), ok)))
    loop.run()
    return ends


def test_a_disk_takes_its_latency_and_shares_its_bandwidth() -> None:
    loop = Loop()
    disk = Disk(Fluid(loop), "disk", bytes_per_s=1e6, latency_s=0.01)
    assert transfers(disk, loop, 500_000, 500_000) == [(1.01, True), (1.01, True)]


def test_a_disk_starts_so_many_operations_per_second() -> None:
    loop = Loop()
    disk = Disk(Fluid(loop), "disk", bytes_per_s=1e9, latency_s=0.01, depth=4)
    ends = transfers(disk, loop, *[0] * 100)
    assert ends[-1] == (0.25, True)  # 400 per second


def test_a_disk_that_fails_says_so() -> None:
    loop = Loop()
    disk = Disk(Fluid(loop), "disk", bytes_per_s=1e6, latency_s=0.01)
    loop.post(5 * 10**8, lambda: setattr(disk, "failing", True))
    assert transfers(disk, loop, 10**6) == [(1.01, False)]
    assert transfers(disk, loop, 10**6) == [(1.02, False)]
    disk.failing = False
    assert transfers(disk, loop, 10**6) == [(2.03, True)]


def test_a_disk_may_slow_down_and_be_aborted() -> None:
    loop, seen = Loop(), []
    disk = Disk(Fluid(loop), "disk", bytes_per_s=1e6, latency_s=0.01)
    loop.post(510_000_000, disk.set_speed, 2)
    assert transfers(disk, loop, 10**6) == [(1.51, True)]
    for _ in range(40):
        disk.transfer(10**6, lambda ok: seen.append(ok))
    loop.run(until_ns=2 * 10**9)
    disk.abort()
    loop.run()
    assert seen == []
    assert transfers(disk, loop, 0)[0][1]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda fluid: Cpu(fluid, "host", 0),
        lambda fluid: Cpu(fluid, "host", 1).run(1, lambda: None, threads=0),
        lambda fluid: Cpu(fluid, "host", 1).set_speed(math.inf),
        lambda fluid: Disk(fluid, "disk", 0),
        lambda fluid: Disk(fluid, "disk", 1, latency_s=-1),
        lambda fluid: Disk(fluid, "disk", 1, depth=0),
    ],
)
def test_impossible_settings_are_refused(wrong: Callable[[Fluid], object]) -> None:
    with pytest.raises(InvalidConfig):
        wrong(Fluid(Loop()))
