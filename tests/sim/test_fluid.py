"""Activities that share resources: closed forms, conservation, and what must not happen."""

import random
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from math import inf, nan

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import Deadlock, InvalidData
from atoll.sim.fluid import Activity, Fluid, Resource
from atoll.sim.loop import Loop
from atoll.sim.maxmin import rates
from tests.sim.test_maxmin import slow_rates


class World:
    """A fluid, and when things end in it."""

    def __init__(self, tie_break: int | None = None) -> None:
        self.loop = Loop(tie_break)
        self.fluid = Fluid(self.loop)
        self.ends: dict[str, float] = {}

    def ending(self, name: str) -> Callable[[], None]:
        return lambda: self.ends.__setitem__(name, self.loop.now_s)

    def at(self, seconds: float, fn: Callable[[], object]) -> None:
        self.loop.post(round(seconds * 1e9) - self.loop.now_ns, fn)

    def start(self, name: str, work: int, *resources: Resource, weight: float = 1.0, cap: float = inf) -> Activity:
        uses = dict.fromkeys(resources, 1.0)
        return self.fluid.start(work, uses, self.ending(name), weight=weight, cap=cap)


@pytest.fixture
def world() -> World:
    return World()


def test_work_takes_work_over_capacity(world: World) -> None:
    world.start("a", 500, world.fluid.resource("link", 1000))
    world.loop.run()
    assert world.ends == {"a": 0.5}


def test_two_share_until_one_ends(world: World) -> None:
    link = world.fluid.resource("link", 1000)
    world.start("short", 500, link)
    world.start("long", 1500, link)
    world.loop.run()
    assert world.ends == {"short": 1.0, "long": 2.0}


def test_a_newcomer_takes_its_share_and_gives_it_back(world: World) -> None:
    link = world.fluid.resource("link", 1000)
    world.start("first", 2000, link)
    world.at(1, lambda: world.start("second", 500, link))
    world.loop.run()
    assert world.ends == {"second": 2.0, "first": 2.5}


def test_weight_cap_and_coefficient_count(world: World) -> None:
    cores, memory = world.fluid.resource("cores", 4), world.fluid.resource("memory", 100)
    world.start("capped", 2, cores, cap=1.0)
    world.start("heavy", 4, cores, weight=2.0)
    world.start("light", 2, cores)
    world.fluid.start(10, {memory: 20.0}, world.ending("wide"))
    world.loop.run()
    assert world.ends == {"capped": 2.0, "heavy": 2.0, "light": 2.0, "wide": 2.0}


def test_no_work_takes_no_time_even_where_nothing_moves(world: World) -> None:
    world.start("none", 0, world.fluid.resource("dead", 0))
    world.start("some", 5, world.fluid.resource("link", 1))
    world.loop.run()
    assert world.ends == {"none": 0.0, "some": 5.0}


def test_equal_ends_come_as_one_event_in_the_order_of_the_starts(world: World) -> None:
    link, other = world.fluid.resource("link", 1000), world.fluid.resource("other", 1e9)
    for i in range(30):
        world.start(str(i), 100, *([link] if i % 3 else [link, other]))
    world.loop.run()
    assert list(world.ends) == [str(i) for i in range(30)]
    assert set(world.ends.values()) == {3.0}
    assert world.loop.count == 2


def test_changes_of_one_instant_are_solved_together_and_repeated_steps_once(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    solved: list[int] = []
    monkeypatch.setattr("atoll.sim.fluid.rates", lambda *a: solved.append(len(a[0])) or rates(*a))
    up, down = ([world.fluid.resource(f"{d}{i}", 1000) for i in range(8)] for d in ("up", "down"))
    for step in range(5):
        for i in range(8):
            world.at(2 * step, lambda i=i: world.start(f"{i}", 1000, up[i], down[(i + 1) % 8]))
    world.loop.run()
    assert solved == [8]


def test_other_components_are_left_alone(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[int] = []
    monkeypatch.setattr("atoll.sim.fluid.rates", lambda *a: solved.append(len(a[0])) or rates(*a))
    a, b, c = (world.fluid.resource(name, 1000) for name in "abc")
    for name, link in (("a", a), ("b", b), ("c", c)):
        world.start(name, 5000, link)
    world.at(1, lambda: world.start("joins a and b", 500, a, b))
    world.loop.run()
    assert solved == [3, 3, 2]  # all; a, b and the newcomer; a and b, apart again
    assert world.ends == {"joins a and b": 2.0, "a": 5.5, "b": 5.5, "c": 5.0}


def test_capacity_may_change_and_come_back(world: World) -> None:
    link = world.fluid.resource("link", 1000)
    activity = world.start("a", 4000, link)
    world.at(1, lambda: world.fluid.set_capacity(link, 500))
    world.at(2, lambda: world.fluid.set_capacity(link, 0))
    world.at(7, lambda: world.fluid.set_capacity(link, 2500))
    world.loop.run(4_000_000_000)
    assert (world.fluid.remaining(activity), world.fluid.rate(activity)) == (2500, 0.0)
    assert world.fluid.stalled() == ["link"]
    world.loop.run()
    assert world.ends == {"a": 8.0}
    assert world.fluid.stalled() == []


def test_a_stall_is_reported_instead_of_hanging(world: World) -> None:
    dead, fine = world.fluid.resource("dead", 0), world.fluid.resource("fine", 10)
    world.start("a", 10, dead, fine)
    world.start("b", 10, fine)
    world.loop.run()
    assert world.ends == {"b": 1.0}
    with pytest.raises(Deadlock, match=r"stalled at 1\.0+ s: no capacity at dead \(1 waiting\)"):
        world.fluid.check_stall()


def test_cancelled_leaves_nothing_behind(world: World) -> None:
    link = world.fluid.resource("link", 1000)
    gone, stays = world.start("gone", 100_000, link), world.start("stays", 1500, link)
    world.at(1, lambda: world.fluid.cancel(gone))
    world.loop.run()
    assert world.ends == {"stays": 2.0}
    assert world.loop.now_s == 2.0
    assert world.loop.pending() == 0
    assert (world.fluid.rate(gone), world.fluid.remaining(gone)) == (0.0, 99_500)
    world.fluid.cancel(gone)
    world.fluid.cancel(stays)
    world.loop.run()
    assert world.fluid.usage(link) == (2000.0, 2.0, 1.0)


def test_whom_an_equal_end_cancels_does_not_end(world: World) -> None:
    link = world.fluid.resource("link", 1000)
    later: list[Activity] = []
    world.fluid.start(100, {link: 1.0}, lambda: world.fluid.cancel(later[0]))
    later.append(world.start("cancelled", 100, link))
    world.loop.run()
    assert world.ends == {}


def test_cancelled_at_the_instant_of_its_start(world: World) -> None:
    link = world.fluid.resource("link", 1000)
    world.fluid.cancel(world.start("gone", 1000, link))
    world.start("stays", 1000, link)
    world.loop.run()
    assert world.ends == {"stays": 1.0}


def test_a_cap_may_rise(world: World) -> None:
    activity = world.start("a", 3500, world.fluid.resource("link", 1000), cap=500)
    world.at(1, lambda: world.fluid.set_cap(activity, 2000))
    world.loop.run()
    assert world.ends == {"a": 4.0}


def test_usage_counts_units_time_and_what_could_have_been(world: World) -> None:
    link = world.fluid.resource("link", 1000)
    world.at(1, lambda: world.fluid.start(1000, {link: 2.0}, world.ending("a")))
    world.at(2, lambda: world.fluid.set_capacity(link, 500))
    world.loop.run(1_500_000_000)
    world.loop.now_ns = 1_500_000_000
    assert world.fluid.usage(link) == (500.0, 0.5, 1 / 3)
    world.loop.run()
    assert world.ends == {"a": 4.0}
    assert world.fluid.usage(link) == (2000.0, 3.0, 2000 / 3000)


@pytest.mark.parametrize("work", [nan, -1, inf, 0.5])
def test_work_that_is_no_whole_number_is_refused(world: World, work: float) -> None:
    with pytest.raises(InvalidData, match="work="):
        world.fluid.start(work, {world.fluid.resource("link", 1): 1.0}, print)  # type: ignore[arg-type]


@pytest.mark.parametrize("capacity", [nan, -1.0, inf])
def test_capacity_must_be_a_number_of_at_least_0(world: World, capacity: float) -> None:
    with pytest.raises(InvalidData, match="of 'link' must be"):
        world.fluid.resource("link", capacity)
    with pytest.raises(InvalidData, match="of 'link' must be"):
        world.fluid.set_capacity(world.fluid.resource("link", 1), capacity)


def test_demands_that_make_no_sense_are_refused(world: World) -> None:
    link = world.fluid.resource("link", 1)
    for uses in ({link: nan}, {link: -1.0}, {link: inf}):
        with pytest.raises(InvalidData, match="of 'link' per unit"):
            world.fluid.demand(uses)
    for weight in (0.0, nan, inf):
        with pytest.raises(InvalidData, match="weight="):
            world.fluid.demand({link: 1.0}, weight=weight)
    for cap in (0.0, nan):
        with pytest.raises(InvalidData, match="cap="):
            world.fluid.demand({link: 1.0}, cap=cap)
    with pytest.raises(InvalidData, match="must have a cap"):
        world.fluid.demand({link: 0.0})


@pytest.mark.parametrize(("work", "rate"), [(10**18, 1e15), (3, 7e11), (10**15, 1e-3), (1, 1e-9)])
def test_no_size_of_numbers_needs_more_than_a_few_events(world: World, work: int, rate: float) -> None:
    link = world.fluid.resource("link", 1e15)
    world.start("a", work, link, cap=1e15)
    world.loop.run(1000)
    world.fluid.set_capacity(link, rate)
    world.loop.run()
    assert world.loop.count <= 5


@pytest.mark.parametrize("seed", range(30))
def test_components_alone_give_the_rates_of_all_together(seed: int) -> None:
    luck = random.Random(seed)
    world = World(tie_break=seed)
    links = [world.fluid.resource(str(i), luck.choice([0.0, 10.0, luck.uniform(1, 50)])) for i in range(12)]
    live: dict[Activity, None] = {}

    def start() -> None:
        uses = {link: luck.choice([1.0, luck.uniform(0.1, 5)]) for link in luck.sample(links, luck.randint(1, 3))}
        ended: list[Activity] = []
        activity = world.fluid.start(luck.randint(0, 50), uses, lambda: live.pop(ended[0]), weight=luck.randint(1, 3))
        ended.append(activity)
        live[activity] = None

    def check() -> None:
        demands = [a.demand for a in live]
        expected = rates(
            [d.coefficients for d in demands],
            [link.capacity for link in links],
            [d.weight for d in demands],
            [d.cap for d in demands],
        )
        assert [world.fluid.rate(a) for a in live] == pytest.approx(expected, rel=1e-9, abs=1e-12)

    for _ in range(60):
        what = luck.random()
        if what < 0.6:
            start()
        elif what < 0.75 and live:
            gone = luck.choice(list(live))
            world.fluid.cancel(gone)
            del live[gone]
        else:
            world.fluid.set_capacity(luck.choice(links), luck.choice([0.0, 5.0, 20.0]))
        check()
        world.loop.run(world.loop.now_ns + luck.randint(0, 2_000_000_000))
        check()


def slow_ends(capacity: list[float], jobs: list[tuple[Fraction, int, dict[int, float], float]]) -> list[float]:
    """When each of (begin, work, uses, weight) ends, all of it worked out anew at each begin and end, in fractions."""
    now, left, ends = Fraction(0), {i: Fraction(job[1]) for i, job in enumerate(jobs)}, {}
    while left:
        live = [i for i in left if jobs[i][0] <= now]
        found = slow_rates([jobs[i][2] for i in live], capacity, [jobs[i][3] for i in live], [inf] * len(live))
        rate = dict(zip(live, found, strict=True))
        events = [now + left[i] / rate[i] for i in live] + [jobs[i][0] for i in left if i not in rate]
        passed, now = min(events) - now, min(events)
        for i in live:
            left[i] -= rate[i] * passed
            if not left[i]:
                del left[i]
                ends[i] = float(now)
    return [ends[i] for i in range(len(jobs))]


@pytest.mark.parametrize("seed", range(20))
def test_ends_are_those_of_exact_arithmetic(seed: int) -> None:
    luck = random.Random(seed)
    world = World()
    capacity = [luck.uniform(1e6, 1e8) for _ in range(6)]
    links = [world.fluid.resource(str(i), c) for i, c in enumerate(capacity)]
    jobs = []
    for i in range(25):
        begin_ms, work, weight = luck.randint(0, 1000), luck.randint(10**4, 10**7), luck.choice([1.0, 2.5])
        uses = {j: luck.choice([1.0, 0.3]) for j in luck.sample(range(6), luck.randint(1, 3))}
        jobs.append((Fraction(begin_ms, 1000), work, uses, weight))
        real = {links[j]: a for j, a in uses.items()}
        world.at(begin_ms / 1e3, partial(world.fluid.start, work, real, world.ending(str(i)), weight=weight))
    world.loop.run()
    assert [world.ends[str(i)] for i in range(25)] == pytest.approx(slow_ends(capacity, jobs), abs=100e-9)


@given(
    capacities=st.lists(st.integers(1, 10**6), min_size=1, max_size=4),
    jobs=st.lists(
        st.tuples(
            st.integers(0, 10**7), st.integers(0, 3 * 10**9), st.sets(st.integers(0, 3), min_size=1), st.booleans()
        ),
        max_size=12,
    ),
    tie_break=st.integers(0, 99),
)
def test_work_is_neither_lost_nor_made(
    capacities: list[int], jobs: list[tuple[int, int, set[int], bool]], tie_break: int
) -> None:
    """Per resource, what it gave is what its activities did, by the end and halfway; nobody gets more than there is."""
    world = World(tie_break)
    links = [world.fluid.resource(str(i), c) for i, c in enumerate(capacities)]
    activities: dict[str, tuple[Activity, set[int]]] = {}

    def start(i: int, work: int, places: set[int], cancelled: bool) -> None:
        numbers = {n % len(links) for n in places}
        activity = world.start(str(i), work, *(links[n] for n in sorted(numbers)))
        activities[str(i)] = activity, numbers
        if cancelled:
            world.loop.post(10**9, world.fluid.cancel, activity)

    def check() -> None:
        for n, link in enumerate(links):
            did = sum(a.work - world.fluid.remaining(a) for a, numbers in activities.values() if n in numbers)
            usage = world.fluid.usage(link)
            assert usage.work == pytest.approx(did, abs=len(activities) * 0.5 + 1e-6)
            assert usage.work <= link.capacity * usage.busy_s * (1 + 1e-9) + 1.5 * len(activities)

    for i, (work, when_ns, places, cancelled) in enumerate(jobs):
        world.loop.post(when_ns, start, i, work, places, cancelled)
    world.loop.run(2 * 10**9)
    check()
    world.loop.run()
    check()
    for i, (_, _, _, cancelled) in enumerate(jobs):
        assert str(i) in world.ends or cancelled
    assert all(world.fluid.remaining(activities[name][0]) == 0 for name in world.ends)
    assert world.loop.pending() == 0


def sojourns(seed: int, jobs: int, rho: float, work: Callable[[random.Random], float]) -> float:
    """Mean seconds in an M/G/1 queue with processor sharing, of works of mean 1 s."""
    world, luck = World(), random.Random(seed)
    cpu = world.fluid.resource("cpu", 1e6)
    total_ns = 0

    def arrive(left: int) -> None:
        begin_ns = world.loop.now_ns

        def leave() -> None:
            nonlocal total_ns
            total_ns += world.loop.now_ns - begin_ns

        world.fluid.start(round(work(luck) * 1e6), {cpu: 1.0}, leave)
        if left > 1:
            world.loop.post(round(luck.expovariate(rho) * 1e9), arrive, left - 1)

    arrive(jobs)
    world.loop.run()
    return total_ns / jobs / 1e9


WORKS: dict[str, Callable[[random.Random], float]] = {
    "constant": lambda luck: 1.0,
    "exponential": lambda luck: luck.expovariate(1.0),
    "hyperexponential": lambda luck: luck.expovariate(0.4 if luck.random() < 0.2 else 1.6),
}


@pytest.mark.sampled(1)
@pytest.mark.parametrize("name", WORKS)
def test_processor_sharing_does_not_feel_the_distribution(name: str) -> None:
    """M/G/1-PS: the mean sojourn is E[S] / (1 - rho), whatever S (Kleinrock, 1976, section 4.4)."""
    means = [sojourns(seed, 8000, 0.5, WORKS[name]) for seed in range(12)]
    assert sum(means) / len(means) == pytest.approx(2.0, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("rho", [0.7, 0.8])
@pytest.mark.parametrize("name", WORKS)
def test_processor_sharing_under_load(name: str, rho: float) -> None:
    means = [sojourns(seed, 60_000, rho, WORKS[name]) for seed in range(20)]
    assert sum(means) / len(means) == pytest.approx(1 / (1 - rho), rel=0.02)
