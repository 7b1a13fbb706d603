"""Driver: what more workers are worth, by schedules of real collectives over a simulated network. (CO2, "Done when" 7.)

A 7-billion-parameter model whose step takes what it took in the paper on one A100; each worker has a link of its own.
"""

from collections.abc import Iterator
from functools import cache, partial
from typing import Final

from atoll.fabric import star
from atoll.group.collectives.schedules import ring_all_reduce
from atoll.group.virtual import Sized, simulate
from atoll.reproduce.api import Line, Say, judged
from atoll.runtime.schedule import Schedule
from atoll.sim.loop import Loop
from atoll.sim.net import Network
from atoll.train.forecast import Transfer, forecast
from atoll.train.schedule import FragmentSchedule

PARAMETERS: Final = 7_000_000_000
STEP_S: Final = 0.86
"""2,048 tokens at the 2,380 a second that each of 128 devices came to, with 48 steps in a round."""
LATENCY_S: Final = 25e-6
OUTER_S: Final = 3 * 4 * PARAMETERS / 1.5e12
"""Three passes over parameters in fp32 at what the memory of such a device gives."""
WORLDS: Final = (16, 32, 64, 128)


def scaling(say: Say) -> Iterator[Line]:
    """Throughput of 128 workers over eight times that of 16."""
    claim = "7 B parameters in fp32, 16 to 128 workers, {} Gbit/s each, ring: throughput of a worker over that among 16"
    for letter, gbits in (("a", 80), ("b", 800)):
        say(f"16 to 128 workers at {gbits} Gbit/s")
        schedules = {
            "every 48": FragmentSchedule(48, late=True, first_waits=True),
            "every 12": FragmentSchedule(12, late=True, first_waits=True),
            "every 3": FragmentSchedule(3, late=True, first_waits=True),
            "data-parallel": FragmentSchedule(),
        }
        ratio = {
            name: per_worker(schedule, 128, gbits) / per_worker(schedule, 16, gbits)
            for name, schedule in schedules.items()
        }
        shown = ", ".join(f"{name} {found:.3f}" for name, found in ratio.items())
        table = "; ".join(f"{n}: {per_worker(schedules['every 48'], n, gbits):.3f}" for n in WORLDS)
        visible = max(ratio["every 3"], ratio["data-parallel"]) < ratio["every 48"] - 0.02
        yield Line(
            f"7{letter}",
            claim.format(gbits),
            ">= 0.98 every 48; visibly lower every 3 and data-parallel" if gbits == 80 else ">= 0.98 every 48",
            f"{shown} (share of the time computing, every 48: {table})",
            judged(ratio["every 48"] >= 0.98 and (visible or gbits != 80)),
            "simulated",
        )


def per_worker(schedule: FragmentSchedule, world: int, gbits: float) -> float:
    """Share of the time in which a worker computes, as `atoll strategies` foretells it."""
    step_s = STEP_S + OUTER_S / schedule.every
    found = forecast(schedule, step_s, [Transfer(0.0, exchange_s(world, gbits), 0.0)])
    return found.utilisation * STEP_S / step_s


@cache
def exchange_s(world: int, gbits: float) -> float:
    """Of the mean of all parameters, by the schedule of a real ring."""
    whole = Sized(4 * PARAMETERS)
    fabric = star(world, gbits * 1e9 / 8, LATENCY_S / 2)
    took = simulate(partial(_ring, world), whole.pieces(world, 1), fabric.hosts, Network(Loop(), fabric))
    return took.seconds


def _ring(world: int, rank: int) -> Schedule:
    return ring_all_reduce(rank, world, 1)
