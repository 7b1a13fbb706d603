"""The router of endpoints and the drive of virtual engines send each request to the same engines, crashes and all."""

import asyncio

import numpy as np
import pytest

from atoll.cost import Op
from atoll.endpoint.api import Delta, Load, Request, Served
from atoll.endpoint.driving import Drive, Prompts
from atoll.errors import Draining, EngineLost, Overloaded
from atoll.route.api import Balance
from atoll.route.balance import BALANCES
from atoll.route.dispatch import Dispatch
from atoll.route.router import Router
from atoll.serve.scheduler import Limits
from atoll.serve.virtual import VirtualDrive, VirtualEngine
from atoll.sim.aio import VirtualRuntime, run
from atoll.sim.loop import Loop
from atoll.workload.api import Arrival, Demand, Outcome
from atoll.workload.generate.loops import Replay

NAMES = ("0", "1", "2")
CRASHES = ((0, 1.0), (1, 1.3), (0, 2.9))
LIMITS = Limits(batch=2, waiting=3)
ASK_S, ANSWER_S = 1e-3, 0.5e-3


class Prices:
    def seconds(self, op: Op) -> float:
        return 2e-3 + 3e-5 * op.prefill_tokens + 5e-4 * op.batch


class Behind:
    """A virtual engine as an endpoint of actors."""

    def __init__(self, engine: VirtualEngine, demands: dict[str, Demand]) -> None:
        self.engine, self.demands = engine, demands
        self.heard: dict[int, asyncio.Queue[Outcome | None]] = {}
        engine.began = lambda number: self.heard[number].put_nowait(None)
        engine.answered = lambda outcome: self.heard[outcome.number].put_nowait(outcome)

    async def generate(self, request: Request):
        demand = self.demands[request.id]
        number = demand.arrival.number
        heard = self.heard[number] = asyncio.Queue()
        await asyncio.sleep(ASK_S)
        self.engine.ask(demand, self.engine.loop.now_s)
        try:
            while (outcome := await heard.get()) is None:
                await asyncio.sleep(ANSWER_S)
                yield Delta(text="x")
            await asyncio.sleep(ANSWER_S)
        finally:
            self.engine.drop(number)
        if outcome.end == "aborted":
            raise EngineLost("it crashed")
        if outcome.end == "refused":
            raise Overloaded("full") if self.engine.ready else Draining("it is not back yet")
        yield Delta(finish="length")

    def describe(self):
        return (Served(name="m", context=4096, created=1),) if self.engine.ready else ()

    def load(self):
        return Load()

    def tokenizer(self, model: str):
        return None


class Noted(Dispatch):
    """Notes who was asked, in order."""

    def __init__(self, names, balance) -> None:
        super().__init__(names, balance)
        self.log: list[tuple[str, int | None]] = []

    def choose(self, key, ready, tried, now_s):
        which = super().choose(key, ready, tried, now_s)
        self.log.append((key, which))
        return which


def workload(seed: int) -> list[Demand]:
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(0.012, 300))
    return [
        Demand(Arrival(i, float(at[i]), int(rng.integers(2, 90)), f"{rng.integers(12)}"), int(rng.integers(1, 60)))
        for i in range(len(at))
    ]


def engines(heap: Loop) -> list[VirtualEngine]:
    made = [VirtualEngine(heap, Prices(), 100, LIMITS) for _ in NAMES]
    for which, at_s in CRASHES:
        heap.post(round(at_s * 1e9), made[which].crash, 0.4)
    return made


def by_drive(some: list[Demand], balance: Balance) -> tuple[Noted, dict[int, str]]:
    heap, noted, ends = Loop(), Noted(NAMES, balance), dict[int, str]()
    told = lambda _, outcome: ends.update({outcome.number: outcome.end})  # noqa: E731
    VirtualDrive(engines(heap), noted, Replay(some), told, ask_s=ASK_S, answer_s=ANSWER_S).run()
    return noted, ends


def by_actors(some: list[Demand], balance: Balance) -> tuple[Noted, dict[int, str]]:
    heap, noted, ends = Loop(), Noted(NAMES, balance), dict[int, str]()
    runtime = VirtualRuntime(heap, 1, lambda op: 0.0)
    demands = {f"load-{demand.arrival.number}": demand for demand in some}

    async def main() -> None:
        behind = [Behind(engine, demands) for engine in engines(heap)]
        router = Router(runtime, dict(zip(NAMES, behind, strict=True)), balance)
        router.dispatch = noted
        told = lambda _, outcome: ends.update({outcome.number: outcome.end})  # noqa: E731
        await Drive(runtime, router, "m", Replay(some), Prompts(1), told).run()

    run(main(), heap=heap)
    return noted, ends


@pytest.mark.parametrize("name", BALANCES)
def test_both_send_each_request_to_the_same_engines(name):
    some = workload(3)
    (virtual, ends), (actor, actor_ends) = (by(some, BALANCES[name]()) for by in (by_drive, by_actors))
    assert actor.log == virtual.log
    assert actor_ends == ends
    assert actor.failures == virtual.failures
    assert set(ends.values()) == {"answered", "aborted", "refused"}, "all that can happen did"
    assert len(virtual.log) > len(some), "some were sent on"
