"""What programs and actors may rely on in whichever world they run: each behaviour holds in real and in virtual time.

Behaviours are written once, as actors; a blocking program is one whose awaits never suspend.
"""

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from atoll.cost import Op
from atoll.group.virtual import World as VirtualGroup
from atoll.runtime.api import Node, Runtime, here
from atoll.runtime.real import RealNode, RealRuntime
from atoll.sim.aio import VirtualRuntime, run
from atoll.sim.loop import Loop

COST_S = 0.25
OP = Op("matmul", flops=1e6)

Behaviour = Callable[[Any], Coroutine[Any, Any, Any]]
"""Takes what `Node` and `Runtime` have in common, or a `Runtime`."""


class Awaited:
    """A `Node` with the awaitable face of a `Runtime`."""

    def __init__(self, node: Node) -> None:
        self.now, self.rng = node.now, node.rng
        self._node = node

    async def sleep(self, seconds: float) -> None:
        self._node.sleep(seconds)

    async def compute(self, op: Op, fn: Callable[[], Any]) -> Any:
        return self._node.compute(op, fn)


def run_on(node: Node, behaviour: Behaviour) -> Any:
    """Run it as a blocking program."""
    try:
        behaviour(Awaited(node)).send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("a program can't suspend")


def real_program(behaviour: Behaviour, seed: int) -> Any:
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(run_on, RealNode(seed), behaviour).result()


def virtual_program(behaviour: Behaviour, seed: int) -> Any:
    group = VirtualGroup(seed, cost=lambda op: COST_S)
    process = group.start("program", lambda: run_on(here(), behaviour))
    group.run()
    return process.program.result


def real_actor(behaviour: Behaviour, seed: int) -> Any:
    runtime: Runtime = RealRuntime(seed)
    return asyncio.run(behaviour(runtime))


def virtual_actor(behaviour: Behaviour, seed: int) -> Any:
    heap = Loop()
    runtime: Runtime = VirtualRuntime(heap, seed, lambda op: COST_S)
    return run(behaviour(runtime), heap=heap)


@dataclass(frozen=True)
class World:
    run_seeded: Callable[[Behaviour, int], Any]
    virtual: bool

    def run(self, behaviour: Behaviour, seed: int = 5) -> Any:
        return self.run_seeded(behaviour, seed)


PROGRAMS = {"real program": World(real_program, False), "virtual program": World(virtual_program, True)}
ACTORS = {"real actor": World(real_actor, False), "virtual actor": World(virtual_actor, True)}
WORLDS = PROGRAMS | ACTORS


@pytest.fixture(params=WORLDS)
def world(request: pytest.FixtureRequest) -> World:
    return WORLDS[request.param]


@pytest.fixture(params=ACTORS)
def actors(request: pytest.FixtureRequest) -> World:
    return ACTORS[request.param]


def test_time_never_runs_backwards(world: World) -> None:
    async def look(here: Any) -> list[float]:
        times = []
        for i in range(100):
            times.append(here.now())
            await here.sleep(1e-5 * (i % 3))
        return times

    times = world.run(look)
    assert times == sorted(times)
    assert times[-1] > times[0]


@pytest.mark.parametrize("seconds", [0, 0.001, 0.02])
def test_a_sleep_lasts_as_long_as_asked(world: World, seconds: float) -> None:
    async def nap(here: Any) -> Any:
        start = here.now()
        await here.sleep(seconds)
        return here.now() - start

    passed = world.run(nap)
    assert passed == pytest.approx(seconds, abs=1e-9) if world.virtual else passed >= seconds - 1e-3


@pytest.mark.parametrize("seconds", [-1, -1e-9])
def test_a_negative_sleep_is_refused(world: World, seconds: float) -> None:
    async def nap(here: Any) -> None:
        await here.sleep(seconds)

    with pytest.raises(ValueError, match="sleep"):
        world.run(nap)


async def draw(here: Any) -> dict[tuple[str | int, ...], list[float]]:
    names: list[tuple[str | int, ...]] = [("a",), ("b",), ("a", 0), ("a", 1)]
    return {name: here.rng(*name).random(4).tolist() for name in names}


def test_equal_seeds_and_names_give_equal_numbers_in_all_worlds() -> None:
    numbers = [world.run(draw) for world in WORLDS.values()]
    assert all(other == numbers[0] for other in numbers)


def test_streams_differ_by_name_and_by_seed(world: World) -> None:
    one, other = world.run(draw, seed=1), world.run(draw, seed=2)
    assert len({tuple(stream) for stream in [*one.values(), *other.values()]}) == 2 * len(one)


def test_drawing_from_one_stream_does_not_shift_another(world: World) -> None:
    async def draw_a_lot(here: Any) -> Any:
        here.rng("a").random(1000)
        return await draw(here)

    assert world.run(draw_a_lot) == world.run(draw)


def test_a_computation_gives_its_value_and_runs_once(world: World) -> None:
    calls = []

    def add() -> np.ndarray[Any, Any]:
        calls.append(1)
        return np.arange(3) + 1

    async def compute(here: Any) -> Any:
        return await here.compute(OP, add)

    assert world.run(compute).tolist() == [1, 2, 3]
    assert len(calls) == 1


def test_a_computation_that_fails_raises_its_error(world: World) -> None:
    def fail() -> None:
        raise LookupError("on purpose")

    async def compute(here: Any) -> str:
        with pytest.raises(LookupError, match="on purpose"):
            await here.compute(OP, fail)
        return "and life goes on"

    assert world.run(compute) == "and life goes on"


def test_only_in_virtual_time_a_computation_takes_what_the_model_says(world: World) -> None:
    async def compute(here: Any) -> Any:
        start = here.now()
        await here.compute(OP, lambda: None)
        return here.now() - start

    passed = world.run(compute)
    assert passed == pytest.approx(COST_S, abs=1e-9) if world.virtual else passed < COST_S


def test_spawned_actors_run_beside_each_other(actors: World) -> None:
    async def meet(runtime: Runtime) -> list[str]:
        said: list[str] = []
        mine, yours = asyncio.Event(), asyncio.Event()

        async def other() -> str:
            said.append("other")
            yours.set()
            await mine.wait()
            return "returned"

        task = runtime.spawn(other(), name="other")
        assert task.get_name() == "other"
        await yours.wait()
        said.append("me")
        mine.set()
        said.append(await task)
        return said

    assert actors.run(meet) == ["other", "me", "returned"]


def test_a_spawned_actor_may_be_cancelled(actors: World) -> None:
    async def cancel(runtime: Runtime) -> bool:
        task = runtime.spawn(runtime.sleep(1e6), name="sleeper")
        await runtime.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        return bool(task.cancelled())

    assert actors.run(cancel)


def test_a_spawned_actor_lives_though_nobody_keeps_its_task(actors: World) -> None:
    async def wait_for_ever() -> None:
        await asyncio.get_running_loop().create_future()

    async def forget(runtime: Runtime) -> bool:
        task = weakref.ref(runtime.spawn(wait_for_ever(), name="forgotten"))
        await runtime.sleep(0)
        gc.collect()
        return task() is not None

    assert actors.run(forget)


def test_others_go_on_while_one_computes(actors: World) -> None:
    async def both(runtime: Runtime) -> list[str]:
        order: list[str] = []

        async def compute() -> None:
            await runtime.compute(OP, lambda: None)
            order.append("computed")

        task = runtime.spawn(compute(), name="computing")
        await runtime.sleep(0)
        order.append("meanwhile")
        await task
        return order

    assert actors.run(both) == ["meanwhile", "computed"]
