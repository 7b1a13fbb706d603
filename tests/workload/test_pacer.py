"""The open-loop driver sends what is due when it is due, waits for no answer, and owns up to every delay."""

import math
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.sim.loop import Loop
from atoll.workload.api import Arrival, Demand
from atoll.workload.generate.lengths import Empirical
from atoll.workload.generate.loops import ClosedLoop, Replay, Together, open_loop
from atoll.workload.generate.processes import Gamma
from atoll.workload.pacer import Pacer

TEN = Empirical([10])


def at(*times: float) -> list[Demand]:
    return [Demand(Arrival(i, t, 1, str(i)), 1) for i, t in enumerate(times)]


def numbers(demands: list[Demand]) -> list[int]:
    return [demand.arrival.number for demand in demands]


def test_all_that_is_due_is_sent_in_order_and_nothing_else() -> None:
    pacer = Pacer(Replay(at(1.0, 2.0, 2.0, 5.0)))
    assert pacer.wake_s == 1.0
    assert pacer.decide(0.5) == []
    assert numbers(pacer.decide(1.0)) == [0]
    assert pacer.wake_s == 2.0
    assert numbers(pacer.decide(2.25)) == [1, 2]
    assert numbers(pacer.decide(5.5)) == [3]
    assert pacer.wake_s == math.inf
    assert pacer.decide(9.0) == []
    assert pacer.sent == 4
    assert pacer.lateness_s.tolist() == [0.0, 0.25, 0.25, 0.5]


def test_a_driver_that_overslept_sends_all_at_once_and_drops_nothing() -> None:
    pacer = Pacer(Replay(at(*[i * 0.1 for i in range(100)])))
    assert numbers(pacer.decide(1e6)) == list(range(100))
    assert pacer.lateness_s.max() == 1e6


def test_a_slow_server_delays_nobody() -> None:
    """The same times are sent at, whether answers come at once or never."""

    def sent(answer_s: float) -> list[tuple[int, int]]:
        loop, pacer = Loop(), Pacer(Replay(open_loop(Gamma(50.0, 3.0), TEN, TEN, seed=0)), until_s=10.0)
        seen: list[tuple[int, int]] = []

        def wake() -> None:
            for demand in pacer.decide(loop.now_s + 1e-9):
                seen.append((demand.arrival.number, loop.now_ns))
                if answer_s < math.inf:
                    loop.post(round(answer_s * 1e9), answered, demand.arrival)
            if pacer.wake_s < math.inf:
                loop.post(max(0, math.ceil((pacer.wake_s - loop.now_s) * 1e9)), wake)

        def answered(arrival: Arrival) -> None:
            pacer.handle(arrival, loop.now_s)

        wake()
        loop.run()
        return seen

    quick = sent(0.001)
    assert len(quick) > 300
    assert sent(math.inf) == sent(60.0) == quick


def test_users_of_a_closed_loop_go_on_only_when_answered() -> None:
    pacer = Pacer(ClosedLoop(2, 1.0, TEN, TEN, seed=0))
    first = pacer.decide(1e3)
    assert len(first) == 2
    assert pacer.wake_s == math.inf
    pacer.handle(first[0].arrival, 1000.0)
    assert 1000.0 < pacer.wake_s < math.inf
    (follower,) = pacer.decide(pacer.wake_s)
    assert (follower.arrival.session, follower.arrival.turn) == (first[0].arrival.session, 1)


def test_those_who_wait_and_those_who_do_not_come_in_one_order() -> None:
    pacer = Pacer(Together([ClosedLoop(1, 1.0, TEN, TEN, seed=0, name="user"), Replay(at(*range(100)))]))
    sent: list[float] = []
    now = 0.0
    while pacer.wake_s < 50:
        now = pacer.wake_s
        for demand in pacer.decide(now):
            sent.append(demand.arrival.at_s)
            pacer.handle(demand.arrival, now + 0.5)
    assert sent == sorted(sent)
    assert len(sent) > 50 + 20


def test_nothing_is_sent_that_is_meant_for_after_the_end() -> None:
    pacer = Pacer(Replay(open_loop(Gamma(5.0, 1.0), TEN, TEN, seed=0)), until_s=20.0)
    sent = pacer.decide(1e9)
    assert 60 < len(sent) < 140
    assert sent[-1].arrival.at_s <= 20.0
    assert pacer.wake_s == math.inf


def test_an_endless_workload_is_asked_for_one_request_at_a_time() -> None:
    asked = 0

    def endless() -> object:
        nonlocal asked
        while True:
            asked += 1
            yield Demand(Arrival(asked, float(asked), 1, ""), 1)

    pacer = Pacer(Replay(endless()))  # type: ignore[arg-type]
    pacer.decide(7.0)
    assert asked == 8


@settings(deadline=None)
@given(
    times=st.lists(st.floats(0, 100), max_size=30).map(sorted),
    wakes=st.lists(st.floats(0, 120), max_size=30).map(sorted),
)
def test_whenever_it_is_woken_each_request_is_sent_once_at_the_first_wake_after_its_time(
    times: list[float], wakes: list[float]
) -> None:
    pacer = Pacer(Replay(at(*times)))
    sent: dict[int, float] = {}
    for now in wakes:
        for demand in pacer.decide(now):
            assert demand.arrival.number not in sent
            sent[demand.arrival.number] = now
    for number, at_s in enumerate(times):
        assert sent.get(number) == next((now for now in wakes if now >= at_s), None)
    assert pacer.lateness_s.tolist() == pytest.approx([sent[n] - times[n] for n in sorted(sent)])


def test_the_pacer_takes_what_a_workload_gives_lazily() -> None:
    assert numbers(list(islice(Replay(at(1.0)).start(), 5))) == [0]
