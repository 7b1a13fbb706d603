import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.errors import InvalidConfig
from atoll.train.api import Finish, Start
from atoll.train.fragments import FragmentSchedule


def actions(schedule: FragmentSchedule, steps: int) -> list[tuple[int, str]]:
    return [(step, type(a).__name__) for step in range(steps) for a in schedule.at(step)]


def test_each_round_of_steps_ends_in_an_exchange():
    assert actions(FragmentSchedule(every=3), 7) == [(2, "Start"), (2, "Finish"), (5, "Start"), (5, "Finish")]


def test_delayed_an_exchange_is_taken_up_when_the_next_one_begins():
    assert actions(FragmentSchedule(every=3, delay=1), 7) == [(2, "Finish"), (2, "Start"), (5, "Finish"), (5, "Start")]


def test_a_run_ends_in_an_exchange_even_where_its_last_round_is_short():
    assert actions(FragmentSchedule(every=3, steps=5), 5) == [(2, "Start"), (2, "Finish"), (4, "Start"), (4, "Finish")]


@given(every=st.integers(1, 9), delay=st.integers(0, 1), steps=st.integers(1, 40))
def test_every_exchange_but_the_last_delayed_one_is_finished_once(every, delay, steps):
    schedule = FragmentSchedule(every, delay, steps)
    under_way = 0
    for step in range(steps):
        for action in schedule.at(step):
            if isinstance(action, Start):
                under_way += 1
            elif under_way:  # the first finish of a delayed schedule finds nothing
                under_way -= 1
            assert action in (Start(0), Finish(0))
            assert under_way in (0, 1)
    assert under_way == delay


@pytest.mark.parametrize(("every", "delay", "named"), [(0, 0, "at least 1, not 0"), (1, 2, "not 2"), (1, -1, "not -1")])
def test_settings_without_meaning_are_refused(every, delay, named):
    with pytest.raises(InvalidConfig, match=named):
        FragmentSchedule(every, delay)
