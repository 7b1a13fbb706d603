"""Driver: how fast the simulator itself is. (Simulator, "Done when" 9.)"""

import asyncio
import time
from collections.abc import Iterator

from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.server import workload_run
from atoll.sim.aio import run
from atoll.sim.loop import Loop

_YEAR_NS = 365 * 24 * 3600 * 10**9
_MANY = (
    *("--virtual", "--cost", "opt-13b-a100", "--engines", "16", "--max-batch", "64", "--chunk", "512"),
    *("--rate", "101.5", "--seconds", "1000"),
)


def pace(say: Say) -> Iterator[Line]:
    """Raw events, wake-ups of tasks, and time in which nothing happens."""
    say("the simulator's own speed")
    events = max(raw_events_per_s() for _ in range(3))
    yield Line(
        "9a",
        "raw events with 100 actors, the best of 3",
        ">= 0.5 M/s",
        f"{events / 1e6:.2f} M/s",
        judged(events >= 0.5e6),
    )
    wakes = max(wake_ups_per_s() for _ in range(3))
    yield Line(
        "9b", "wake-ups of asyncio tasks, the best of 3", ">= 40 k/s", f"{wakes / 1e3:.0f} k/s", judged(wakes >= 40e3)
    )
    began = time.perf_counter()
    loop = Loop()
    loop.post(_YEAR_NS, lambda: None)
    loop.run()
    took_s = time.perf_counter() - began
    yield Line("9c", "an idle year of virtual time", "< 1 s", f"{took_s * 1e6:.0f} us", judged(took_s < 1))


def raw_events_per_s(actors: int = 100, rounds: int = 3000) -> float:
    """Each actor is called again and again, at times of its own."""
    loop = Loop()

    def tick(left: int, every_ns: int) -> None:
        if left:
            loop.post(every_ns, tick, left - 1, every_ns)

    for i in range(actors):
        loop.post(i, tick, rounds, 1000 + 7 * i)
    began = time.perf_counter()
    loop.run()
    return loop.count / (time.perf_counter() - began)


def wake_ups_per_s(tasks: int = 100, rounds: int = 300) -> float:
    """Each task sleeps again and again."""

    async def actor(i: int) -> None:
        for _ in range(rounds):
            await asyncio.sleep(0.001 + 0.00001 * i)

    async def main() -> None:
        await asyncio.gather(*(actor(i) for i in range(tasks)))

    began = time.perf_counter()
    run(main())
    return tasks * rounds / (time.perf_counter() - began)


def many_requests(say: Say) -> Iterator[Line]:
    """By the command that anybody would use, from its start to its end."""
    say("100,000 requests to 16 virtual engines")
    began = time.perf_counter()
    report = workload_run(*_MANY)
    took_s = time.perf_counter() - began
    offered, answered, mean = report["offered"], report["answered"], report["ttft_s"]["mean"]
    yield Line(
        "9e",
        f"{offered:,} requests on 16 engines by `atoll workload run --virtual`",
        ">= 100,000 in < 60 s",
        f"{took_s:.0f} s; {answered:,} answered, {report['tokens_per_s']:.0f} tokens/s, mean TTFT {mean:.3f} s",
        judged(took_s < 60 and offered >= 100_000),
        "simulated",
    )
