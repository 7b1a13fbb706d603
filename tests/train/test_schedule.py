from dataclasses import replace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from atoll.errors import InvalidConfig
from atoll.train.schedule import AT_ONCE, Await, Finish, FragmentSchedule, Start, Swap


def actions(schedule: FragmentSchedule, steps: int) -> dict[int, list[str]]:
    """By the number of steps taken: "+2" starts fragment 2, "-2" finishes it, "=2" does both, "!2" waits for it."""
    sign = {Start: "+", Finish: "-", Swap: "=", Await: "!"}
    at = {step + 1: [f"{sign[type(a)]}{a.fragment}" for a in schedule.at(step)] for step in range(steps)}
    return {taken: done for taken, done in at.items() if done}


def test_each_round_of_steps_ends_in_an_exchange():
    assert actions(FragmentSchedule(every=3), 7) == {3: ["+0", "-0"], 6: ["+0", "-0"]}


def test_a_run_ends_in_an_exchange_even_where_its_last_round_is_short():
    assert actions(FragmentSchedule(every=3, steps=5), 5) == {3: ["+0", "-0"], 5: ["+0", "-0"]}


def test_fragments_take_turns_and_travel_while_steps_go_on():
    assert actions(FragmentSchedule(every=6, fragments=3, delay=1, steps=9), 9) == {
        2: ["+1"], 3: ["-1"], 4: ["+2"], 5: ["-2"], 6: ["+0"], 7: ["-0"], 8: ["+1"],
        9: ["-1", "+0", "+1", "+2", "-0", "-1", "-2"],
    }  # fmt: skip


def test_late_a_result_is_taken_up_when_the_next_one_begins():
    late = {3: ["=0"], 6: ["=0"], 9: ["=0"]}
    assert actions(FragmentSchedule(every=3, late=True), 11) == late
    ends = {**late, 11: ["=0", "-0"]}
    assert actions(FragmentSchedule(every=3, late=True, steps=11), 11) == ends
    waits = {**ends, 6: ["=0", "-0"]}
    assert actions(FragmentSchedule(every=3, late=True, steps=11, consensus=2), 11) == waits


@st.composite
def schedules(draw):
    fragments = draw(st.sampled_from([1, 2, 3, 4, 5, 6, 33]))
    apart = draw(st.integers(1, 6))
    return FragmentSchedule(fragments * apart, fragments, draw(st.integers(0, apart - 1)), draw(st.integers(1, 80)))


@given(schedules())
def test_it_is_the_papers_loop(s):
    """Spelt out: (t - t_p) mod H = 0 starts, (t - t_p - delay) mod H = 0 finishes what was started."""
    begun: dict[int, int] = {}
    for t in range(1, s.steps + 1):
        starts, finishes = [], []
        for p in range(s.fragments):
            t_p = p * s.every / s.fragments
            if (t - t_p) % s.every == 0:
                starts.append(p)
                begun[p] = t
            if p in begun and (t - t_p - s.delay) % s.every == 0:
                finishes.append(p)
                del begun[p]
        if t < s.steps:
            assert s.at(t - 1) == [*map(Start, starts), *map(Finish, finishes)]


@given(schedules())
def test_each_finish_has_its_start_and_all_ends_with_everything_exchanged(s):
    travelling: dict[int, int] = {}
    done = [0] * s.fragments
    for step in range(s.steps):
        for action in s.at(step):
            p = action.fragment
            if isinstance(action, Start):
                assert p not in travelling
                travelling[p] = step
                assert len(travelling) <= (AT_ONCE if step + 1 == s.steps else 1)
            else:
                late = step - travelling.pop(p)
                assert late == s.delay or step + 1 == s.steps
                done[p] += 1
                assert step + 1 == s.steps or not travelling  # before the end, one at a time
        assert len(travelling) <= 1
    assert not travelling
    assert {a.fragment for a in s.at(s.steps - 1) if isinstance(a, Start)} == set(range(s.fragments))
    assert max(done) - min(done) <= 1


def test_the_first_round_may_be_waited_for_and_stays_under_way():
    schedule = FragmentSchedule(3, late=True, steps=8, first_waits=True)
    assert actions(schedule, 8) == {3: ["=0", "!0"], 6: ["=0"], 8: ["=0", "-0"]}
    assert FragmentSchedule(8, late=True, steps=8, first_waits=True).at(7) == [Swap(0), Finish(0)]


@given(every=st.integers(1, 9), steps=st.integers(1, 40), consensus=st.integers(0, 4))
def test_late_at_most_one_is_under_way_and_none_at_the_end(every, steps, consensus):
    schedule = FragmentSchedule(every, late=True, steps=steps, consensus=consensus)
    under_way = 0
    for step in range(steps):
        for action in schedule.at(step):
            under_way = 1 if isinstance(action, Swap) else 0
        if consensus and (step + 1) % (every * consensus) == 0:
            assert not under_way
    assert not under_way


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"every": 0}, "every must be at least 1"),
        ({"every": 20, "fragments": 3}, "every must be a multiple of fragments"),
        ({"every": 20, "fragments": 0}, "fragments must be at least 1"),
        ({"every": 20, "fragments": 4, "delay": 5}, "delay must be from 0 to 4 steps, less than every / fragments"),
        ({"every": 20, "delay": 20}, "delay must be from 0 to 19"),
        ({"every": 20, "delay": -1}, "delay must be from 0 to 19"),
        ({"every": 4, "late": True, "fragments": 2}, "late is for one fragment"),
        ({"every": 4, "late": True, "delay": 1}, "late is for one fragment"),
        ({"every": 4, "first_waits": True}, "first_waits is for what is late"),
        ({"every": 4, "late": True, "consensus": -1}, "consensus must be at least 0"),
    ],
)
def test_settings_without_meaning_are_refused_by_name(fields, says):
    with pytest.raises(InvalidConfig, match=says):
        FragmentSchedule(**fields)


@given(every=st.integers(1, 40), fragments=st.integers(1, 16), delay=st.integers(0, 40))
def test_whatever_is_allowed_has_one_fragment_on_its_way(every, fragments, delay):
    assume(every % fragments == 0)
    if delay < every // fragments:
        FragmentSchedule(every, fragments, delay)
    else:
        with pytest.raises(InvalidConfig, match=r"^delay "):
            FragmentSchedule(every, fragments, delay)


@given(schedules(), st.data())
def test_where_peers_have_their_own_delays_all_have_what_was_exchanged_when_the_slowest_has(s, data):
    delays = [s.delay, *data.draw(st.lists(st.integers(0, s.apart - 1), max_size=3))]
    peers = [replace(s, delay=delay, longest=max(delays)) for delay in delays]
    missing = [set() for _ in peers]
    for step in range(s.steps):
        took = False
        for peer, travelling in zip(peers, missing, strict=True):
            for action in peer.at(step):
                if isinstance(action, Start):
                    travelling.add(action.fragment)
                else:
                    travelling.discard(action.fragment)
                    took = True
        assert {peer.settles(step) for peer in peers} == {took and not any(missing)}


@given(st.integers(1, 6), st.integers(0, 3), st.integers(1, 40))
def test_a_late_exchange_has_settled_when_the_next_one_begins(every, consensus, steps):
    s = FragmentSchedule(every, steps=steps, late=True, consensus=consensus)
    assert [t for t in range(1, steps + 1) if s.settles(t - 1)] == sorted({*range(every, steps + 1, every), steps})
