"""Driver: queues in virtual time beside what queueing theory says of them. (Simulator, "Done when" 1.)"""

import math
from collections.abc import Callable, Iterator
from statistics import mean, stdev
from typing import Final

import numpy as np

from atoll.reproduce.api import Line, Say, judged
from atoll.rng import stream
from atoll.sim.fluid import Fluid
from atoll.sim.loop import Loop
from atoll.sim.queue import Queue

SEEDS: Final = 20
_STUDENT: Final = 2.093  # 97.5 % quantile of t with 19 degrees of freedom
_TENTH: Final = 10  # of a run is thrown away, until the queue has filled

Draw = Callable[[np.random.Generator], float]
"""A service time of mean 1."""


def memoryless(rng: np.random.Generator) -> float:
    """Exponential: squared coefficient of variation 1."""
    return float(rng.standard_exponential())


def even(rng: np.random.Generator) -> float:
    """Always the same: 0."""
    return 1.0


def mixed(rng: np.random.Generator) -> float:
    """Many short, few long: 2.5."""
    return float(rng.standard_exponential()) / (0.4 if rng.random() < 0.2 else 1.6)


def queues(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """First come first served, and processor sharing."""
    jobs = 40_000 if full else 10_000
    loads = (0.7, 0.9) if full else (0.5,)
    servers = (2, 4, 8) if full else (3,)

    say("queues of one server")
    runs = {load: [fcfs(load, 1, memoryless, jobs, seed + i) for i in range(SEEDS)] for load in loads}
    waits = [Fit(f"load {load}", [w for w, _ in runs[load]], load / (1 - load)) for load in loads]
    yield _line("1a", "M/M/1: mean wait", "rho / (mu - lambda)", waits)
    tails = [Fit(f"load {load}", [t for _, t in runs[load]], math.log(100) / (1 - load)) for load in loads]
    yield _line("1b", "M/M/1: 99th percentile of the sojourn", "ln(100) / (mu - lambda)", tails)
    halves = [Fit(f"load {load}", _waits(load, 1, even, jobs, seed), load / (1 - load) / 2) for load in loads]
    yield _line("1c", "M/D/1: mean wait", "half of M/M/1's", halves)

    say("queues of several servers")
    pairs = [(load, c) for load in loads for c in servers]
    erlang = [
        Fit(f"load {x}, c={c}", _waits(x * c, c, memoryless, jobs, seed), erlang_c_wait(x * c, c)) for x, c in pairs
    ]
    yield _line("1d", "M/M/c: mean wait", "Erlang C", erlang)
    evens = [Fit(f"load {x}, c={c}", _waits(x * c, c, even, jobs, seed), md_c_wait(x * c, c), 0.03) for x, c in pairs]
    yield _line("1e", "M/D/c: mean wait", "Cosmetatos's approximation, within 3 %", evens)

    say("processor sharing through the fluid solver")
    load = 0.7 if full else 0.5
    count = 60_000 if full else 4_000
    shared = [
        Fit(name, [sharing(load, draw, count, seed + i) for i in range(SEEDS)], 1 / (1 - load))
        for name, draw in (("constant", even), ("exponential", memoryless), ("hyperexponential", mixed))
    ]
    yield _line("1f", f"M/G/1 processor sharing, load {load}: mean sojourn", "E[S] / (1 - rho), whatever S", shared)


class Fit:
    """What came out over the seeds, beside theory."""

    def __init__(self, case: str, found: list[float], theory: float, within: float = 0.02) -> None:
        self.case, self.theory, self.within = case, theory, within
        self.mean = mean(found)
        self.half = _STUDENT * stdev(found) / math.sqrt(len(found))

    @property
    def off(self) -> float:
        """Relative."""
        return self.mean / self.theory - 1

    @property
    def ok(self) -> bool:
        """Does the 95 % interval contain the theory, or is the mean near? And does the interval say anything at all?"""
        near = abs(self.mean - self.theory) <= max(self.half, self.within * self.theory)
        return near and self.half < 0.2 * self.theory


def _line(number: str, claim: str, expected: str, fits: list[Fit]) -> Line:
    measured = "; ".join(f"{f.case}: {f.mean:.3f} +- {f.half:.3f}, theory {f.theory:.3f} ({f.off:+.1%})" for f in fits)
    return Line(number, claim, expected, measured, judged(all(fit.ok for fit in fits)), "simulated")


def _waits(rate: float, servers: int, service: Draw, jobs: int, seed: int) -> list[float]:
    return [fcfs(rate, servers, service, jobs, seed + i)[0] for i in range(SEEDS)]


def fcfs(rate: float, servers: int, service: Draw, jobs: int, seed: int) -> tuple[float, float]:
    """Mean wait and 99th percentile of the sojourn, of Poisson arrivals at `rate`."""
    loop = Loop()
    queue = Queue(loop, servers)
    gaps, lengths = (stream(seed, what, service.__name__, servers, str(rate)) for what in ("gaps", "lengths"))
    sojourns: list[float] = []
    wasted, warm_ns = jobs // _TENTH, 0

    def arrive(number: int) -> None:
        nonlocal warm_ns
        if number == wasted:
            warm_ns = queue.waiting.stays_ns
        came_s = loop.now_s
        queue.submit(round(service(lengths) * 1e9), lambda: sojourns.append(loop.now_s - came_s))
        if number < jobs:
            loop.post(round(gaps.standard_exponential() / rate * 1e9), arrive, number + 1)

    arrive(1)
    loop.run()
    if not (queue.inside.follows_little() and queue.waiting.follows_little()):
        raise AssertionError("the queue breaks Little's law")
    wait_s = (queue.waiting.stays_ns - warm_ns) / 1e9 / (jobs - wasted)
    return wait_s, float(np.percentile(sojourns[wasted:], 99))


def sharing(rate: float, work: Draw, jobs: int, seed: int) -> float:
    """Mean sojourn where all who are there share one server."""
    loop = Loop()
    fluid = Fluid(loop)
    server = fluid.resource("server", 1e6)
    gaps, lengths = (stream(seed, what, work.__name__) for what in ("gaps", "lengths"))
    total_ns = 0

    def arrive(left: int) -> None:
        came_ns = loop.now_ns

        def leave() -> None:
            nonlocal total_ns
            total_ns += loop.now_ns - came_ns

        fluid.start(round(work(lengths) * 1e6), {server: 1.0}, leave)
        if left > 1:
            loop.post(round(gaps.standard_exponential() / rate * 1e9), arrive, left - 1)

    arrive(jobs)
    loop.run()
    return total_ns / jobs / 1e9


def erlang_c_wait(rate: float, servers: int) -> float:
    """Mean wait of M/M/c with mean service 1 (Erlang, 1917)."""
    below = sum(rate**k / math.factorial(k) for k in range(servers))
    full = rate**servers / math.factorial(servers) / (1 - rate / servers)
    return full / (below + full) / (servers - rate)


def md_c_wait(rate: float, servers: int) -> float:
    """Mean wait of M/D/c with service 1, to about 1.5 % (Cosmetatos, 1975)."""
    load = rate / servers
    more = (1 - load) * (servers - 1) * (math.sqrt(4 + 5 * servers) - 2) / (16 * load * servers)
    return erlang_c_wait(rate, servers) / 2 * (1 + more)
