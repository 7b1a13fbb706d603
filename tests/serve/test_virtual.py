"""Virtual engines take the very decisions of real ones, and leaps over like steps change nothing."""

import numpy as np
import pytest

from atoll.cost import Op
from atoll.endpoint.api import Request, Sampling, Tokens
from atoll.route.balance import Fewest
from atoll.route.dispatch import Dispatch
from atoll.runtime.api import settle
from atoll.serve.engine import Engine
from atoll.serve.scheduler import Limits
from atoll.serve.virtual import Logged, VirtualDrive, VirtualEngine, prompt_tokens
from atoll.sim.loop import Loop
from atoll.workload.api import Arrival, Demand, Outcome
from atoll.workload.generate.lengths import Empirical
from atoll.workload.generate.loops import ClosedLoop, Replay
from tests.serve.bytes_model import Bytes
from tests.serve.page_model import VOCAB, PageModel

ROOMY = Limits()


def fewest(n: int) -> Dispatch:
    return Dispatch([str(i) for i in range(n)], Fewest())


class Prices:
    """Seconds of a step, all different, so that a wrong one is seen."""

    def seconds(self, op: Op) -> float:
        return 1e-3 + 1.7e-5 * op.prefill_tokens + 3.1e-5 * op.batch + 1.3e-7 * op.context_tokens


def demands(seed: int, n: int, gap_s: float) -> list[Demand]:
    rng = np.random.default_rng(seed)
    at = np.cumsum(rng.exponential(gap_s, n))
    return [
        Demand(Arrival(i, float(at[i]), int(rng.integers(1, 120)), f"{i}"), int(rng.integers(1, 90))) for i in range(n)
    ]


def play(some: list[Demand], pages: int, limits: Limits, *, leaps: bool) -> tuple[list[Logged], list[Outcome], int]:
    loop, log, ended = Loop(), list[Logged](), list[Outcome]()
    engine = VirtualEngine(loop, Prices(), pages, limits, ended.append, log=log, leaps=leaps)
    for demand in some:
        loop.post(round(demand.arrival.at_s * 1e9), engine.ask, demand, demand.arrival.at_s)
    loop.run()
    assert engine.load == 0
    assert engine.scheduler.pool.free == pages
    return log, ended, loop.count


@pytest.mark.parametrize("seed", range(20))
def test_leaps_change_nothing(seed):
    rng = np.random.default_rng(seed)
    limits = Limits(
        batch=int(rng.integers(1, 9)),
        step_tokens=None if rng.random() < 0.2 else int(rng.integers(1, 90)),
        waiting=int(rng.integers(1, 30)),
        preemption=str(rng.choice(["recompute", "swap"])),
    )
    some = demands(seed, 40, gap_s=float(rng.choice([0.005, 0.05, 0.3])))
    pages = int(rng.integers(14, 60))
    one_by_one = play(some, pages, limits, leaps=False)
    leaping = play(some, pages, limits, leaps=True)
    assert leaping[0] == one_by_one[0]
    assert leaping[1] == one_by_one[1]
    assert leaping[2] <= one_by_one[2]


def crashed(some: list[Demand], at_s: list[float], *, leaps: bool) -> tuple[list[Logged], list[Outcome], int]:
    loop, log, ended = Loop(), list[Logged](), list[Outcome]()
    engine = VirtualEngine(loop, Prices(), 40, Limits(batch=4, waiting=9), ended.append, log=log, leaps=leaps)
    for demand in some:
        loop.post(round(demand.arrival.at_s * 1e9), engine.ask, demand, demand.arrival.at_s)
    for at in at_s:
        loop.post(round(at * 1e9), engine.crash, 0.05)
    loop.run()
    assert engine.load == 0
    assert engine.ready
    assert engine.scheduler.pool.free == 40
    return log, ended, engine.steps


@pytest.mark.parametrize("seed", range(8))
def test_leaps_change_nothing_where_an_engine_crashes(seed):
    rng = np.random.default_rng(seed)
    some = demands(seed, 40, gap_s=0.06)
    at_s = sorted(rng.uniform(0, 2.5, 3).tolist())
    assert crashed(some, at_s, leaps=True) == crashed(some, at_s, leaps=False)


def test_a_crash_ends_all_and_refuses_what_comes_until_it_is_back():
    """The wait before it is started again is the real one: a second for an engine that died young, a tenth for one that
    didn't."""
    some = [Demand(Arrival(i, at, 20, f"{i}"), 30) for i, at in enumerate((1.0, 1.01, 1.5, 2.04, 2.06, 40.0, 40.2))]
    _, ended, _ = crashed(some, [1.02, 40.01], leaps=True)
    ends = [outcome.end for outcome in sorted(ended, key=lambda outcome: outcome.number)]
    assert ends == ["aborted", "aborted", "refused", "refused", "refused", "aborted", "answered"]
    first, second = ended[:2]
    assert (first.last_s, second.last_s) == (1.02, 1.02)
    assert first.first_s == pytest.approx(1.0 + Prices().seconds(Op("engine_step", prefill_tokens=20)))


class Charged:
    """A node whose time passes by prices; requests are added while it does."""

    def __init__(self, arrive):
        self.now_ns, self.arrive, self.log = 0, arrive, list[Logged]()

    def now(self) -> float:
        return self.now_ns * 1e-9

    def compute(self, op: Op, fn):
        self.now_ns += max(1, round(Prices().seconds(op) * 1e9))
        result = fn()
        self.arrive(self.now_ns)
        return result


@pytest.mark.parametrize("seed", range(10))
def test_a_real_engine_takes_the_same_steps(seed):
    """Its model is passed real pages; its time is charged by the same prices. The sequence of decisions is equal."""
    rng = np.random.default_rng(seed)
    limits = Limits(batch=4, step_tokens=int(rng.integers(8, 60)), preemption="recompute")
    some = demands(seed, 25, gap_s=0.03)
    pages = int(rng.integers(14, 40))
    wanted, _, _ = play(some, pages, limits, leaps=True)

    engine = Engine(PageModel(pages), Bytes(), limits)
    coming = list(some)
    log: list[Logged] = []

    def arrive(until_ns: int) -> None:
        while coming and round(coming[0].arrival.at_s * 1e9) <= until_ns:
            demand = coming.pop(0)
            tokens = [
                (demand.arrival.number * 31 + i * 7) % (VOCAB - 1) + 1 for i in range(demand.arrival.prompt_tokens)
            ]
            engine.add(
                Request(
                    id=str(demand.arrival.number), model="m", prompt=Tokens(tuple(tokens)), ignore_end=True,
                    max_tokens=demand.output_tokens, sampling=Sampling(temperature=0),
                )
            )  # fmt: skip

    node = Charged(lambda now_ns: None)
    schedule = engine.scheduler.schedule

    def noted():
        step = schedule()
        if step.runs:
            log.append((node.now_ns, tuple((run.sequence.id, len(run.tokens)) for run in step.runs)))
        return step

    engine.scheduler.schedule = noted
    node.arrive = arrive
    settle(node)
    try:
        while coming or engine.busy:
            if not engine.busy:
                node.now_ns = round(coming[0].arrival.at_s * 1e9)
                arrive(node.now_ns)
            engine.step()
    finally:
        settle(None)
    assert log == wanted


def test_shared_blocks_are_the_same_tokens():
    first = prompt_tokens(Arrival(0, 0.0, 700, "a", (5, 9)))
    second = prompt_tokens(Arrival(1, 0.0, 1200, "b", (5, 7, 8)))
    third = prompt_tokens(Arrival(2, 0.0, 30, "c"))
    assert len(first) == 700
    assert len(second) == 1200
    assert len(third) == 30
    assert first[:512] == second[:512]
    assert not set(first[512:]) & set(second[512:])
    assert not set(third) & set(first)
    small = [prompt_tokens(Arrival(i, 0.0, 60, "", (5, last), block_tokens=32)) for i, last in enumerate((6, 7))]
    assert [a == b for a, b in zip(*small, strict=True)] == [True] * 32 + [False] * 28


def test_what_never_fits_or_comes_when_too_many_wait_is_refused():
    limits = Limits(batch=1, waiting=1)
    some = [Demand(Arrival(i, 1e-6 * i, 10, f"{i}"), 50) for i in range(4)] + [Demand(Arrival(9, 0.0, 900, "9"), 5)]
    _, ended, _ = play(some, 10, limits, leaps=True)
    assert {outcome.number: outcome.end for outcome in ended} == {
        0: "answered", 1: "answered", 2: "refused", 3: "refused", 9: "refused",
    }  # fmt: skip


def driven(some: list[Demand], pages: int = 60, engines: int = 1, limits: Limits = ROOMY, **options: object):
    loop, told = Loop(), list[Outcome]()
    made = [VirtualEngine(loop, Prices(), pages, limits) for _ in range(engines)]
    drive = VirtualDrive(made, fewest(engines), Replay(some), lambda arrival, outcome: told.append(outcome), **options)
    pacer = drive.run()
    return made, sorted(told, key=lambda outcome: outcome.number), pacer, drive


def test_a_drive_tells_what_a_client_would_see():
    (alone,) = driven([Demand(Arrival(0, 1.5, 40, "a"), 3)])[1]
    (far,) = driven([Demand(Arrival(0, 1.5, 40, "a"), 3)], ask_s=0.25, answer_s=0.125)[1]
    chunk = Prices().seconds(Op("engine_step", prefill_tokens=40))
    words = [Prices().seconds(Op("engine_step", batch=1, context_tokens=n)) for n in (41, 42)]
    assert (alone.due_s, alone.end, alone.output_tokens) == (1.5, "answered", 3)
    assert alone.ttft_s == pytest.approx(chunk, abs=1e-8)
    assert alone.latency_s == pytest.approx(chunk + sum(words), abs=1e-8)
    assert far.sent_s == alone.sent_s
    assert far.ttft_s == pytest.approx(alone.ttft_s + 0.375, abs=1e-8)
    assert far.latency_s == pytest.approx(alone.latency_s + 0.375, abs=1e-8)


def test_a_drive_asks_the_engine_with_the_fewest():
    some = [Demand(Arrival(i, 0.0, 10, f"{i}"), 5) for i in range(6)]
    engines, told, _, _ = driven(some, engines=3)
    assert [outcome.end for outcome in told] == ["answered"] * 6
    assert len({outcome.last_s for outcome in told}) == 1
    assert len({engine.steps for engine in engines}) == 1


def test_an_engine_that_crashes_is_gone_round_by_those_who_have_heard_nothing():
    loop, told = Loop(), list[Outcome]()
    limits = Limits(batch=1)
    engines = [VirtualEngine(loop, Prices(), 60, limits) for _ in range(2)]
    some = [Demand(Arrival(i, 0.0, 20, f"{i}"), 50) for i in range(4)]
    loop.post(20_000_000, engines[0].crash, 0.5)
    VirtualDrive(engines, fewest(2), Replay(some), lambda arrival, outcome: told.append(outcome)).run()
    by_number = sorted(told, key=lambda outcome: outcome.number)
    assert [outcome.end for outcome in by_number] == ["aborted", "answered", "answered", "answered"]
    assert by_number[3].first_s < by_number[2].first_s, "who came late from the other engine is last"
    loop = Loop()
    told.clear()
    alone = [VirtualEngine(loop, Prices(), 60, limits)]
    loop.post(20_000_000, alone[0].crash, 0.5)
    VirtualDrive(alone, fewest(1), Replay(some), lambda arrival, outcome: told.append(outcome)).run()
    assert [outcome.end for outcome in told] == ["aborted"] * 4, "there is nobody else"


def test_who_waits_too_long_gives_up_and_frees_the_engine():
    limits = Limits(batch=2)
    some = [Demand(Arrival(i, 0.0, 30, f"{i}"), 800) for i in range(2)] + [Demand(Arrival(2, 0.0, 30, "2"), 5)]
    (engine,), told, _, _ = driven(some, pages=200, limits=limits, patience_s=0.2)
    assert [outcome.end for outcome in told] == ["timed out"] * 3
    engine.loop.run()  # to the end of the step under way
    assert engine.load == 0
    (engine,), told, _, _ = driven([*some, Demand(Arrival(3, 0.5, 30, "3"), 5)], 200, limits=limits, patience_s=0.2)
    assert [outcome.end for outcome in told] == ["timed out"] * 3 + ["answered"]
    assert engine.scheduler.pool.free == 200


def test_what_is_longer_than_a_model_has_room_for_is_cut():
    _, told, _, drive = driven(
        [Demand(Arrival(0, 0.0, 500, "a"), 30), Demand(Arrival(1, 0.0, 9, "b"), 5)], most_tokens=100
    )
    assert [outcome.output_tokens for outcome in told] == [30, 5]
    assert drive.cut == 1


def test_a_closed_loop_asks_again_when_it_has_its_answer():
    loop = ClosedLoop(3, 0.5, Empirical([20]), Empirical([4]), seed=1)
    made, told = VirtualEngine(Loop(), Prices(), 60, Limits()), list[Outcome]()
    pacer = VirtualDrive(
        [made], fewest(1), loop, lambda arrival, outcome: told.append(outcome), until_s=20.0, answer_s=0.1
    ).run()
    assert pacer.sent == len(told) > 60
    assert pacer.lateness_s.max() < 1e-8
    by_number = sorted(told, key=lambda outcome: outcome.number)
    assert all(outcome.end == "answered" for outcome in by_number)
