"""Arrivals have the rates and shapes they say, follow their seed, and keep their ground truth from policies."""

import dataclasses
import math
from itertools import islice, pairwise, takewhile

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import InvalidConfig
from atoll.rng import stream
from atoll.sim.loop import Loop
from atoll.workload.api import Arrival, Demand, Lengths, Process
from atoll.workload.generate.lengths import Empirical, Geometric, Joint, LogNormal, Zipf
from atoll.workload.generate.loops import ClosedLoop, open_loop, oracle
from atoll.workload.generate.processes import (
    AnyProcess,
    Diurnal,
    Gamma,
    Mmpp,
    Poisson,
    Seasonal,
    Windows,
    scaled,
)

TEN = Empirical([10])
PROCESSES: list[AnyProcess] = [
    Poisson(2),
    Gamma(2, 3),
    Mmpp((1, 5), (1, 1)),
    Diurnal(2, 1),
    Windows(10, (4.0, 0.0, 1.0), (2.0, 1.0, 0.5)),
    Seasonal(Gamma(2, 2), (0.0, 3.0, 1.0), 5.0, 7.0),
]


def gaps(process: Process, n: int, seed: int = 0) -> np.ndarray:
    return np.diff(np.array([0.0, *islice(process.times(stream(seed, "test")), n)]))


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.5])
def test_gaps_have_the_rate_and_the_variation_they_should(cv: float) -> None:
    drawn = gaps(Gamma(4.0, cv), 20_000)
    assert drawn.mean() == pytest.approx(0.25, rel=3 * cv / math.sqrt(len(drawn)))
    assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.1)


def test_poisson_counts_vary_as_much_as_their_mean() -> None:
    times = takewhile(lambda t: t < 5000, Poisson(3.0).times(stream(0, "poisson")))
    counts = np.histogram(list(times), bins=np.arange(0, 5001))[0]
    assert counts.mean() == pytest.approx(3, rel=0.03)
    assert counts.var() == pytest.approx(3, rel=0.06)


def test_a_modulated_process_has_its_stationary_mean_and_is_burstier_than_poisson() -> None:
    process = Mmpp(rates_per_s=(1.0, 20.0), stays_s=(30.0, 10.0))
    assert process.mean_rate_per_s == (1 * 30 + 20 * 10) / 40
    drawn = gaps(process, 60_000)
    # Index of dispersion for a long window: 1 + 2 m (r0-r1)^2 f0 f1 tau / mean, with 1/tau the sum of the jump rates.
    tau, f0, f1 = 1 / (1 / 30 + 1 / 10), 0.75, 0.25
    dispersion = 1 + 2 * 19**2 * f0 * f1 * tau / process.mean_rate_per_s
    sigma = math.sqrt(dispersion / len(drawn))
    assert 1 / drawn.mean() == pytest.approx(process.mean_rate_per_s, rel=3 * sigma)
    window = 400.0
    counts = np.histogram(drawn.cumsum(), bins=np.arange(0, drawn.sum(), window))[0]
    assert counts.var() / counts.mean() == pytest.approx(dispersion, rel=0.5)
    assert drawn.std() / drawn.mean() > 1.5


def test_a_state_without_arrivals_is_silent() -> None:
    drawn = gaps(Mmpp(rates_per_s=(0.0, 50.0), stays_s=(10.0, 1.0)), 20_000)
    assert 1 / drawn.mean() == pytest.approx(50 / 11, rel=0.15)
    assert (drawn > 1).sum() > 300


def test_a_day_has_its_shape() -> None:
    process = Diurnal(mean_rate_per_s=2.0, swing=0.8, peak_s=600, period_s=1000)
    times = np.array(list(takewhile(lambda t: t < 40_000, process.times(stream(0, "day")))))
    counts, edges = np.histogram(times % 1000, bins=10)
    # The mean of the cosine over each tenth of the period.
    tenth = 2 * math.pi / 10
    middles = (edges[:-1] + edges[1:]) / 2
    expected = 40 * 200 * (1 + 0.8 * np.cos(2 * math.pi * (middles - 600) / 1000) * math.sin(tenth / 2) / (tenth / 2))
    assert (np.abs(counts - expected) < 4 * np.sqrt(expected)).all()
    assert process.rate_per_s(600) == pytest.approx(3.6)
    assert process.rate_per_s(100) == pytest.approx(0.4)


def test_lengths_are_log_normal_within_their_bounds() -> None:
    rng = stream(0, "lengths")
    drawn = np.array([LogNormal(400, 0.7).draw(rng) for _ in range(5000)])
    assert np.median(drawn) == pytest.approx(400, rel=0.05)
    assert np.log(drawn).std() == pytest.approx(0.7, rel=0.05)
    assert np.percentile(drawn, 97.5) == pytest.approx(400 * math.exp(1.96 * 0.7), rel=0.1)
    tight = [LogNormal(400, 0.7, low=300, high=500).draw(rng) for _ in range(500)]
    assert 300 <= min(tight) < 310
    assert 490 < max(tight) <= 500


def test_measured_lengths_come_in_their_proportions() -> None:
    rng = stream(0, "lengths")
    drawn = [Empirical([5, 5, 5, 80]).draw(rng) for _ in range(4000)]
    assert set(drawn) == {5, 80}
    assert drawn.count(80) == pytest.approx(1000, abs=4 * math.sqrt(750))


def test_a_policy_can_not_see_how_long_an_answer_will_be_unless_it_has_an_oracle() -> None:
    assert "output_tokens" not in {field.name for field in dataclasses.fields(Arrival)}
    demands = list(islice(open_loop(Poisson(1), TEN, LogNormal(100, 1), seed=0), 50))
    assert not any(isinstance(getattr(d.arrival, f.name), Demand) for d in demands for f in dataclasses.fields(Arrival))
    know = oracle(demands)
    assert [know(demand.arrival) for demand in demands] == [demand.output_tokens for demand in demands]


def test_changing_the_lengths_leaves_the_times_as_they_were() -> None:
    def times(prompt: Lengths) -> list[float]:
        return [d.arrival.at_s for d in islice(open_loop(Poisson(1), prompt, TEN, seed=3), 20)]

    assert times(TEN) == times(LogNormal(100, 1))
    other = [d.arrival.at_s for d in islice(open_loop(Poisson(1), TEN, TEN, seed=4), 20)]
    named = [d.arrival.at_s for d in islice(open_loop(Poisson(1), TEN, TEN, seed=3, name="b"), 20)]
    assert len({tuple(times(TEN)), tuple(other), tuple(named)}) == 3


def test_a_closed_loop_has_the_throughput_of_the_interactive_law() -> None:
    users, think_s, service_s = 8, 2.0, 0.5  # each has a server of their own: no queue
    loop, world = Loop(), ClosedLoop(users, think_s, TEN, TEN, seed=0)
    done = 0

    def answer(demand: Demand) -> None:
        nonlocal done
        done += 1
        for follower in world.handle(demand.arrival, loop.now_s):
            send(follower)

    def send(demand: Demand) -> None:
        loop.post(round((demand.arrival.at_s - loop.now_s + service_s) * 1e9), answer, demand)

    first = list(world.start())
    assert [d.arrival.at_s for d in first] == sorted(d.arrival.at_s for d in first)
    assert {d.arrival.session for d in first} == {str(user) for user in range(users)}
    for demand in first:
        send(demand)
    loop.run(until_ns=2000 * 10**9)
    assert done / 2000 == pytest.approx(users / (think_s + service_s), rel=0.03)


def test_what_a_user_asks_does_not_hang_on_who_is_answered_first() -> None:
    def asked(order: list[int]) -> dict[str, list[int]]:
        world = ClosedLoop(2, 1.0, LogNormal(100, 1), TEN, seed=0)
        said: dict[str, list[int]] = {"0": [], "1": []}
        open_ = {d.arrival.session: d for d in world.start()}
        for user in order:
            said[str(user)].append(open_[str(user)].arrival.prompt_tokens)
            (open_[str(user)],) = world.handle(open_[str(user)].arrival, now_s=0)
        return said

    assert asked([0, 0, 0, 1, 1, 1]) == asked([1, 0, 1, 0, 1, 0])


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Poisson(0),
        lambda: Gamma(1, 0),
        lambda: Gamma(math.nan, 1),
        lambda: Mmpp((0, 0), (1, 1)),
        lambda: Mmpp((-1, 3), (1, 1)),
        lambda: Mmpp((1, 3), (0, 1)),
        lambda: Mmpp((0, 1e-9), (1e-3, 1e-3)),
        lambda: Diurnal(1, 1.1),
        lambda: Windows(60, (1.0,), (1.0, 2.0)),
        lambda: Windows(60, (), ()),
        lambda: Windows(60, (0.0, 0.0), (1.0, 1.0)),
        lambda: Windows(60, (2.0, -1.0), (1.0, 1.0)),
        lambda: Seasonal(Poisson(1), ()),
        lambda: Seasonal(Poisson(1), (1.0, -0.1)),
        lambda: scaled(Poisson(1), 0),
        lambda: LogNormal(10, 1, low=11),
        lambda: Zipf(1.0, 100),
        lambda: Zipf(0.5, 100),
        lambda: Zipf(1.1, 0),
        lambda: Geometric(0.9),
        lambda: Joint([2], [TEN]),
        lambda: Joint([1, 1], [TEN, TEN]),
        lambda: Joint([], []),
        lambda: Empirical([]),
        lambda: Empirical([0, 3]),
        lambda: ClosedLoop(0, 1, TEN, TEN, 0),
    ],
)
def test_impossible_settings_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidConfig):
        wrong()  # type: ignore[operator]


def test_arrivals_are_in_order() -> None:
    for process in PROCESSES:
        assert all(a <= b for a, b in pairwise(islice(process.times(stream(0, "order")), 300)))


def test_windows_keep_the_counts_and_the_burstiness_they_should() -> None:
    process = Windows(100.0, (50.0, 0.0, 10.0), (2.0, 1.0, 0.5))
    times = np.array(list(takewhile(lambda t: t < 300 * 20, process.times(stream(0, "windows")))))
    window = (times // 100).astype(int) % 3
    assert [(window == w).sum() / 20 for w in range(3)] == [
        pytest.approx(5000, rel=3 * 2 / math.sqrt(5000 * 20)),
        0,
        pytest.approx(1000, rel=0.01),
    ]
    inside = np.diff(times // 100) == 0
    for w, cv in ((0, 2.0), (2, 0.5)):
        drawn = np.diff(times)[inside & (window[1:] == w)]
        assert drawn.std() / drawn.mean() == pytest.approx(cv, rel=0.05)


def test_windows_that_are_alike_are_one_gamma() -> None:
    plain = list(islice(Gamma(3.0, 2.0).times(stream(0, "a")), 200))
    cut = list(islice(Windows(1.0, (3.0, 3.0), (2.0, 2.0)).times(stream(0, "a")), 200))
    assert cut == pytest.approx(plain)


def test_a_rare_window_costs_no_time() -> None:
    process = Windows(1e-3, (1e-9, 0.0), (1.0, 1.0))
    assert next(process.times(stream(0, "rare"))) > 1e6


def test_seasons_give_each_hour_its_share() -> None:
    process = Seasonal(Gamma(4.0, 2.0), (0.0, 3.0, 1.0), step_s=50.0, begins_s=75.0)
    times = np.array(list(takewhile(lambda t: t < 150 * 100, process.times(stream(0, "seasons")))))
    step = ((times + 75) // 50).astype(int) % 3
    assert np.bincount(step, minlength=3) / len(times) == pytest.approx([0, 0.75, 0.25], abs=0.015)
    assert len(times) == pytest.approx(4 * 150 * 100, rel=0.03)


@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
@settings(deadline=None)
@given(factor=st.floats(0.1, 10))
def test_scaling_changes_the_mean_rate_and_nothing_else(process: AnyProcess, factor: float) -> None:
    assert scaled(scaled(process, factor), 1 / factor) == approximately(process)
    if isinstance(process, Poisson | Gamma):  # where nothing else has a length of its own
        times = np.array(list(islice(process.times(stream(1, "scaled")), 50)))
        quick = np.array(list(islice(scaled(process, factor).times(stream(1, "scaled")), 50)))
        assert quick * factor == pytest.approx(times)


def approximately(process: AnyProcess) -> object:
    class Near:
        def __eq__(self, other: object) -> bool:
            pairs = zip(numbers(process), numbers(other), strict=True)
            return type(process) is type(other) and all(math.isclose(a, b, rel_tol=1e-9) for a, b in pairs)

    return Near()


def numbers(value: object) -> list[float]:
    if isinstance(value, int | float):
        return [value]
    parts = value if isinstance(value, tuple) else msgspec.structs.astuple(value)  # type: ignore[arg-type]
    return [number for part in parts for number in numbers(part)]


@pytest.mark.parametrize("factor", [0.5, 3.0])
@pytest.mark.parametrize("process", PROCESSES, ids=lambda process: type(process).__name__)
def test_a_scaled_process_has_so_many_times_as_many_arrivals(process: AnyProcess, factor: float) -> None:
    def counted(which: AnyProcess) -> int:
        return sum(1 for _ in takewhile(lambda t: t < 3000, which.times(stream(2, "counted"))))

    assert counted(scaled(process, factor)) == pytest.approx(factor * counted(process), rel=0.15)
