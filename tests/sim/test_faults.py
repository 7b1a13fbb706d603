"""Faults strike by their clocks, together where they share a rack, and only as they were written in a trace."""

import math
from collections import defaultdict
from itertools import islice, pairwise, takewhile

import numpy as np
import pytest

from atoll.errors import InvalidConfig, InvalidData
from atoll.rng import stream
from atoll.sim.clocks import Clock, Exponential, Fixed, LogNormal, Weibull
from atoll.sim.faults import (
    Crash,
    DiskError,
    Fault,
    Hang,
    LinkDegrade,
    LinkDown,
    MessageLoss,
    Partition,
    Preempt,
    Slow,
    Timed,
    Trigger,
    by_clock,
    each,
    from_entries,
    merge,
    repeated,
    to_entry,
    together,
)

ONE_OF_EACH: list[Fault] = [
    Crash("a", silent=True),
    Hang("a"),
    Slow("a", 2.5),
    Preempt("a", 30),
    DiskError("a"),
    LinkDown("a-b"),
    LinkDegrade("a-b", bandwidth=0.1, latency_s=0.2),
    MessageLoss("a-b", 0.01),
    Partition((("a", "b"), ("c",))),
]


@pytest.mark.parametrize(
    ("clock", "spread"),
    [
        (Fixed(7.0), 0.0),
        (Exponential(7.0), 7.0),
        (Weibull(7.0, 0.7), 7.0 * math.sqrt(math.gamma(1 + 2 / 0.7) / math.gamma(1 + 1 / 0.7) ** 2 - 1)),
        (Weibull(7.0, 3.0), 7.0 * math.sqrt(math.gamma(1 + 2 / 3) / math.gamma(1 + 1 / 3) ** 2 - 1)),
        (LogNormal(7.0, 0.5), 7.0 * math.sqrt(math.exp(0.25) - 1)),
    ],
)
def test_a_clock_has_its_mean_and_spread(clock: Clock, spread: float) -> None:
    rng = stream(0, "clock")
    drawn = np.array([clock.draw(rng) for _ in range(20_000)])
    assert drawn.mean() == pytest.approx(7, abs=1e-9 + 4 * spread / math.sqrt(len(drawn)))
    assert drawn.std() == pytest.approx(spread, rel=0.06)


def test_weibull_of_shape_one_has_no_memory_and_of_less_fails_young() -> None:
    def survival(shape: float, at: float) -> float:
        rng = stream(1, "clock")
        return float(np.mean([Weibull(1.0, shape).draw(rng) > at for _ in range(10_000)]))

    for at in (0.1, 1.0, 2.0):
        assert survival(1.0, at) == pytest.approx(math.exp(-at), abs=0.02)
        scale = 1 / math.gamma(1 + 1 / 0.5)
        assert survival(0.5, at) == pytest.approx(math.exp(-math.sqrt(at / scale)), abs=0.02)


def test_the_next_failure_is_counted_from_the_end_of_the_last() -> None:
    faults = list(islice(by_clock(Crash("a"), Exponential(90), LogNormal(10, 1), stream(0, "x")), 3000))
    assert all(a.over_s <= b.at_s for a, b in pairwise(faults))
    # Availability of an alternating renewal process: up / (up + down).
    down = sum(fault.for_s for fault in faults)
    assert down / faults[-1].over_s == pytest.approx(0.1, rel=0.1)
    preempted = list(islice(by_clock(Preempt("a", 30), Fixed(100), Fixed(5), stream(0, "x")), 3))
    assert [fault.at_s for fault in preempted] == [100, 235, 370]


def test_what_never_ends_happens_once() -> None:
    assert len(list(by_clock(Crash("a"), Exponential(90), Fixed(math.inf), stream(0, "x")))) == 1
    assert list(by_clock(Crash("a"), Fixed(math.inf), Fixed(1), stream(0, "x"))) == []


def test_another_node_shifts_nobody_and_another_factor_no_time() -> None:
    def times(faults: list[Fault], node: str) -> list[float]:
        stream_ = each(faults, Exponential(10), Exponential(1), seed=5)
        return [t.at_s for t in takewhile(lambda t: t.at_s < 1000, stream_) if t.fault.node == node]  # type: ignore[union-attr]

    alone = times([Slow("a", 2)], "a")
    assert len(alone) > 50
    assert times([Crash("z"), Slow("b", 2), Slow("a", 9)], "a") == alone
    assert times([Slow("b", 2)], "b") != alone


def test_the_pooled_rate_of_many_clocks_is_their_sum() -> None:
    nodes: list[Fault] = [Crash(f"n{i}") for i in range(100)]
    faults = list(takewhile(lambda t: t.at_s < 100, each(nodes, Exponential(10), Fixed(0), seed=0)))
    assert len(faults) == pytest.approx(1000, abs=4 * math.sqrt(1000))
    assert all(a.at_s <= b.at_s for a, b in pairwise(faults))


def test_a_rack_falls_together() -> None:
    racks = {rack: [Crash(f"{rack}{i}") for i in range(8)] for rack in ("r", "s")}
    faults = takewhile(
        lambda t: t.at_s < 100_000,
        together(racks, Exponential(1000), Exponential(5), seed=0, share=0.75, spread_s=2),
    )
    bursts: defaultdict[str, list[list[Timed]]] = defaultdict(list)
    for timed in faults:
        assert isinstance(timed.fault, Crash)
        rack = bursts[timed.fault.node[0]]
        if not rack or timed.at_s - rack[-1][0].at_s > 2:
            rack.append([])
        rack[-1].append(timed)
    assert set(bursts) == {"r", "s"}
    sizes = [len(burst) for rack in bursts.values() for burst in rack]
    assert len(sizes) == pytest.approx(200, rel=0.25)
    assert np.mean(sizes) == pytest.approx(6, rel=0.05)  # binomial(8, 0.75)
    assert np.var(sizes) == pytest.approx(8 * 0.75 * 0.25, rel=0.3)
    late = [t.at_s - burst[0].at_s for rack in bursts.values() for burst in rack for t in burst]
    assert max(late) > 1.5
    # Nobody falls who is still down.
    ends: dict[str, float] = {}
    for timed in sorted((t for rack in bursts.values() for burst in rack for t in burst), key=lambda t: t.at_s):
        assert timed.at_s >= ends.get(timed.fault.node, 0)
        ends[timed.fault.node] = timed.over_s


def test_racks_are_independent_of_each_other() -> None:
    def times(racks: list[str]) -> list[float]:
        domains = {rack: [Crash(f"{rack}{i}") for i in range(2)] for rack in racks}
        faults = together(domains, Exponential(10), Exponential(1), seed=0)
        return [t.at_s for t in takewhile(lambda t: t.at_s < 500, faults) if t.fault.node == "r0"]  # type: ignore[union-attr]

    assert times(["r"]) == times(["q", "r", "s"])


def test_a_link_flaps() -> None:
    flaps = repeated(Timed(10, LinkDown("a-b"), for_s=1), every_s=3, times=3)
    assert [(t.at_s, t.over_s) for t in flaps] == [(10, 11), (13, 14), (16, 17)]
    with pytest.raises(InvalidConfig, match="overlap"):
        repeated(Timed(10, LinkDown("a-b"), for_s=4), every_s=3, times=3)


def test_streams_are_merged_in_order_of_time() -> None:
    slow = [Timed(1, Slow("a", 2)), Timed(3, Slow("a", 3))]
    crash = [Timed(1, Crash("b")), Timed(2, Crash("c"))]
    assert list(merge(slow, crash)) == [slow[0], crash[0], crash[1], slow[1]]


@pytest.mark.parametrize("fault", ONE_OF_EACH, ids=lambda fault: type(fault).__name__)
def test_a_trace_comes_back_as_it_was(fault: Fault) -> None:
    for timed in (Timed(1.5, fault), Timed(2, fault, for_s=3)):
        assert from_entries([to_entry(timed)]) == [timed]


def test_a_scenario_says_no_more_than_it_must() -> None:
    assert from_entries([{"at_s": 1, "kind": "crash", "node": "a"}]) == [Timed(1, Crash("a"))]


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ({"kind": "crash", "node": "a"}, "at|float"),
        ({"at_s": 1, "kind": "crush", "node": "a"}, "'crush' must be one of crash, hang"),
        ({"at_s": 1, "node": "a"}, "kind None"),
        ({"at_s": 1, "kind": ["crash"], "node": "a"}, "kind .'crash'. must be one of"),
        ({"at_s": 1, "kind": "crash"}, "node"),
        ({"at_s": 1, "kind": "crash", "node": "a", "factor": 2}, "no factor"),
        ({"at_s": 1, "kind": "slow", "node": "a", "factor": 0.5}, "factor=0.5"),
        ({"at_s": -1, "kind": "crash", "node": "a"}, "at_s"),
        ({"at_s": 1, "for_s": math.nan, "kind": "crash", "node": "a"}, "for_s"),
        ({"at_s": 1, "kind": "message_loss", "link": "l", "probability": 1.1}, "probability"),
        ({"at_s": 1, "kind": "link_degrade", "link": "l", "bandwidth": 0}, "bandwidth"),
    ],
)
def test_an_entry_that_is_no_fault_is_refused_by_its_number(entry: dict[str, object], complaint: str) -> None:
    with pytest.raises(InvalidData, match=f"fault 2 of the trace: .*({complaint})"):
        from_entries([{"at_s": 0, "kind": "crash", "node": "a"}, entry])


@pytest.mark.parametrize(
    "wrong",
    [lambda: Exponential(0), lambda: Weibull(1, 0), lambda: LogNormal(math.inf, 1), lambda: Preempt("a", -1)],
)
def test_impossible_settings_are_refused(wrong: object) -> None:
    with pytest.raises(InvalidConfig):
        wrong()  # type: ignore[operator]


def test_the_third_send_of_step_seven_on_rank_two() -> None:
    trigger = Trigger("send", Crash("rank2"), where={"step": 7, "rank": 2}, nth=3)
    told = [(event, step, rank) for step in (6, 7) for _ in range(4) for event in ("recv", "send") for rank in (1, 2)]
    hits = [i for i, (event, step, rank) in enumerate(told) if trigger.handle(event, {"step": step, "rank": rank})]
    assert hits == [[i for i, what in enumerate(told) if what == ("send", 7, 2)][2]]
    assert not trigger.handle("send", {"step": 7})
