"""Arrivals have the rates and shapes they say, follow their seed, and keep their ground truth from policies."""

import dataclasses
import math
from itertools import islice, pairwise, takewhile

import numpy as np
import pytest

from atoll.errors import InvalidConfig, InvalidData
from atoll.rng import stream
from atoll.sim import arrivals
from atoll.sim.arrivals import (
    Arrival,
    ClosedLoop,
    Demand,
    Diurnal,
    Empirical,
    Gamma,
    LogNormal,
    Mmpp,
    Poisson,
    Process,
    open_loop,
    oracle,
    read_trace,
    write_trace,
)
from atoll.sim.loop import Loop

TEN = Empirical([10])


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
    def times(prompt: arrivals.Lengths) -> list[float]:
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
        send(world.handle(demand.arrival, loop.now_s))

    def send(demand: Demand) -> None:
        loop.post(round((demand.arrival.at_s - loop.now_s + service_s) * 1e9), answer, demand)

    first = world.start()
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
            open_[str(user)] = world.handle(open_[str(user)].arrival, now_s=0)
        return said

    assert asked([0, 0, 0, 1, 1, 1]) == asked([1, 0, 1, 0, 1, 0])


def test_a_trace_comes_back_as_it_was() -> None:
    demands = [
        Demand(Arrival(0, 0.0, 7, 'a "b", c', (1, 2)), 3),
        Demand(Arrival(1, 0.1 + 0.2, 8, "d", ()), 4),
    ]
    lines = list(write_trace(demands))
    assert list(read_trace(lines)) == list(read_trace(f"{line}\r\n" for line in lines)) == demands


def test_a_trace_without_sessions_has_one_for_each_request() -> None:
    lines = ["timestamp_s,prompt_tokens,output_tokens", "0,5,6", "", "1.5,7,8"]
    assert list(read_trace(lines)) == [Demand(Arrival(0, 0, 5, "0"), 6), Demand(Arrival(1, 1.5, 7, "1"), 8)]


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([], "begins with"),
        (["time,in,out"], "begins with"),
        (["timestamp_s,prompt_tokens,output_tokens", "1,2"], "line 2.*2 columns"),
        (["timestamp_s,prompt_tokens,output_tokens", "1,2,x"], "line 2.*invalid literal"),
        (["timestamp_s,prompt_tokens,output_tokens", "1,2,0"], "line 2.*at least 1"),
        (["timestamp_s,prompt_tokens,output_tokens", "2,2,2", "1,2,2"], "line 3.*sort"),
        (["timestamp_s,prompt_tokens,output_tokens", "nan,2,2"], "line 2.*sort"),
    ],
)
def test_a_trace_that_is_none_is_refused_by_its_line(rows: list[str], complaint: str) -> None:
    with pytest.raises(InvalidData, match=complaint):
        list(read_trace(rows))


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: Poisson(0),
        lambda: Gamma(1, 0),
        lambda: Gamma(math.nan, 1),
        lambda: Mmpp((0, 0), (1, 1)),
        lambda: Mmpp((-1, 3), (1, 1)),
        lambda: Mmpp((1, 3), (0, 1)),
        lambda: Diurnal(1, 1.1),
        lambda: LogNormal(10, 1, low=11),
        lambda: Empirical([]),
        lambda: Empirical([0, 3]),
        lambda: ClosedLoop(0, 1, TEN, TEN, 0),
    ],
)
def test_impossible_settings_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidConfig):
        wrong()  # type: ignore[operator]


def test_arrivals_are_in_order() -> None:
    for process in (Poisson(2), Gamma(2, 3), Mmpp((1, 5), (1, 1)), Diurnal(2, 1)):
        assert all(a <= b for a, b in pairwise(islice(process.times(stream(0, "order")), 300)))
