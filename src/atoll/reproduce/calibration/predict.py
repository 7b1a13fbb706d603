"""Driver: what the virtual group takes on a calibrated machine: the very master, peers and schedules, on its costs."""

import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

import atoll
from atoll.group.api import Algorithm
from atoll.reproduce.calibration.api import Control, HostCosts, Reduced
from atoll.reproduce.calibration.hosts import HostWorld
from atoll.runtime.api import here

_LARGE: Final = 8 << 20
_MOST_SCALE: Final = 3.0
_STEP: Final = 1.1
_ROUNDS: Final = 4

Program = Callable[[atoll.Group], Any]


def all_reduce_seconds(
    costs: HostCosts, world: int, nbytes: int, *, direct: bool = True, algorithm: Algorithm | None = None
) -> float:
    """Of float32, on rank 0: the median of some in a row, as `measure` has them."""

    def program(group: atoll.Group) -> float:
        x, out = np.zeros(nbytes // 4, np.float32), np.zeros(nbytes // 4, np.float32)
        seconds = []
        group.all_reduce(x, "avg", out=out, algorithm=algorithm)  # makes the links
        group.barrier()
        for _ in range(1 if nbytes > _LARGE else 3):
            seconds.append(group.all_reduce(x, "avg", out=out, algorithm=algorithm).seconds)
        return statistics.median(seconds)

    return float(_run(HostWorld(costs, world, nbytes, direct=direct), world, program)[0])


def barrier_seconds(costs: HostCosts, world: int = 2) -> float:
    """A vote: there and back."""

    def program(group: atoll.Group) -> float:
        group.barrier()
        return statistics.median(group.gather_bytes_async(b"").wait().seconds for _ in range(5))

    return float(_run(HostWorld(costs, world, 1 << 16), world, program)[0])


def forming_seconds(costs: HostCosts, world: int = 2) -> float:
    """A new epoch of the same members."""

    def program(group: atoll.Group) -> float:
        seconds = []
        for _ in range(3):
            group.all_reduce(np.zeros(1 << 18, np.float32))  # else links may be kept
            began = here().now()
            group.update_topology()
            seconds.append(here().now() - began)
        return statistics.median(seconds)

    return float(_run(HostWorld(costs, world, 1 << 16), world, program)[0])


def with_latencies(costs: HostCosts, control: Control) -> HostCosts:
    """`wake_s` such that a vote of two takes as long as was measured: what no process' own time explains. Then `dial_s`
    such that a new epoch does."""

    def waking(wake_s: float) -> HostCosts:
        return replace(costs, wake_s=wake_s)

    awake = waking(_solved(lambda s: barrier_seconds(waking(s)), control.vote_s))

    def dialling(dial_s: float) -> HostCosts:
        return replace(awake, dial_s=dial_s)

    return dialling(_solved(lambda s: forming_seconds(dialling(s)), control.form_s))


def _solved(seconds: Callable[[float], float], measured_s: float) -> float:
    """Where a line through two points gives what was measured; 0 where it is more already without."""
    missing = measured_s - seconds(0.0)
    if missing <= 0:
        return 0.0
    slope = (seconds(missing / 2) - seconds(0.0)) / (missing / 2)
    return missing / max(slope, 1.0)


def tuned(costs: HostCosts, seen: Sequence[Reduced]) -> tuple[HostCosts, float, float]:
    """Costs whose messages and bytes are scaled, by one factor each, to what whole all-reduces took that the fit may
    see; and the factors. In context, caches are colder than in a loop of one thing."""
    scales = np.zeros(2)

    def errors(at: Any) -> Any:
        scaled_costs = scaled(costs, *np.exp(at))
        return np.array([math.log(predicted(scaled_costs, point) / point.seconds) for point in seen])

    for _ in range(_ROUNDS):
        now = errors(scales)
        step = math.log(_STEP)
        slopes = np.stack([(errors(scales + step * unit) - now) / step for unit in np.eye(2)], axis=1)
        change = -np.linalg.lstsq(slopes, now, rcond=None)[0]
        scales = np.clip(scales + change, -math.log(_MOST_SCALE), math.log(_MOST_SCALE))
        if np.abs(change).max() < 0.01:
            break
    messages, by_bytes = (float(factor) for factor in np.exp(scales))
    return scaled(costs, messages, by_bytes), messages, by_bytes


def predicted(costs: HostCosts, point: Reduced) -> float:
    """What `all_reduce_seconds` says of a measured one."""
    return all_reduce_seconds(
        costs, point.world, point.nbytes, direct=point.direct, algorithm=None if point.direct else "ring"
    )


def scaled(costs: HostCosts, messages: float, by_bytes: float) -> HostCosts:
    """All that a message takes, and all that a byte does, so many times as much."""
    curves = {
        work: replace(curve, points=tuple((n, by_bytes * s) for n, s in curve.points))
        for work, curve in costs.bytes.items()
    }
    return replace(
        costs,
        launch_s=messages * costs.launch_s,
        vote_s=messages * costs.vote_s,
        turn_s=messages * costs.turn_s,
        message_s=messages * costs.message_s,
        frame_s=messages * costs.frame_s,
        master_turn_s=messages * costs.master_turn_s,
        master_s=messages * costs.master_s,
        wake_s=messages * costs.wake_s,
        dial_s=messages * costs.dial_s,
        bytes=curves,
    )


def _run(world: HostWorld, count: int, program: Program) -> list[Any]:
    """By rank."""
    results: list[Any] = [None] * count

    def main() -> None:
        with atoll.join("virtual", min_world=count) as group:
            results[group.rank] = program(group)
            group.barrier()

    for i in range(count):
        world.start(f"peer-{i}", main)
    world.run()
    return results
