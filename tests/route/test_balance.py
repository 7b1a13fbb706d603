"""Who is asked: turns are fair, the fewest is found, and prefixes stay where they are within their bound."""

import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.route.api import Asked, Choice
from atoll.route.balance import BALANCES, Fewest, Prefix, Turns

LOADS = st.lists(st.integers(0, 9), min_size=1, max_size=8)


def choices(loads: dict[int, int]) -> list[Choice]:
    return [Choice(number, f"engine {number}", n) for number, n in loads.items()]


def idle(*numbers: int) -> list[Choice]:
    return choices(dict.fromkeys(numbers, 0))


@pytest.mark.parametrize("make", BALANCES.values())
@given(loads=st.dictionaries(st.integers(0, 20), st.integers(0, 9), min_size=1, max_size=8), key=st.text(max_size=5))
def test_one_of_those_who_can_be_asked_is_asked(make, loads, key):
    assert make().choose(Asked(key), choices(dict(sorted(loads.items())))) in loads


@given(n=st.integers(1, 7), rounds=st.integers(1, 5))
def test_turns_are_fair(n, rounds):
    turns = Turns()
    asked = [turns.choose(Asked(""), idle(*range(n))) for _ in range(n * rounds)]
    assert asked == [*range(n)] * rounds


def test_who_is_away_is_passed_over_and_takes_its_turn_again():
    turns = Turns()
    assert [turns.choose(Asked(""), idle(*there)) for there in ([0, 1, 2], [0, 2], [0, 2], [0, 1, 2])] == [0, 2, 0, 1]


@given(loads=LOADS)
def test_the_fewest_has_no_more_than_any_other(loads):
    found = Fewest().choose(Asked(""), choices(dict(enumerate(loads))))
    assert loads[found] == min(loads)
    assert min(loads) not in loads[:found]


@given(keys=st.lists(st.integers(0, 3), max_size=60), n=st.integers(1, 6), data=st.data())
def test_for_a_prefix_nobody_gets_more_than_its_bound(keys, n, data):
    """Requests come and end in any order; the popular key is as popular as can be."""
    balance, loads = Prefix(1.25), [0] * n
    for key in keys:
        if sum(loads) and data.draw(st.booleans()):
            loads[data.draw(st.sampled_from([i for i in range(n) if loads[i]]))] -= 1
        found = balance.choose(Asked(f"{key}"), choices(dict(enumerate(loads))))
        loads[found] += 1
        assert loads[found] <= math.ceil(1.25 * sum(loads) / n)


def test_a_prefix_stays_where_it_is_unless_its_engine_goes():
    keys = [f"prompt {i}" for i in range(600)]
    at = {key: Prefix().choose(Asked(key), idle(0, 1, 2, 3)) for key in keys}
    without = {key: Prefix().choose(Asked(key), idle(0, 1, 3)) for key in keys}
    assert {key for key in keys if at[key] != without[key]} == {key for key in keys if at[key] == 2}
    moved = Counter(without[key] for key in keys if at[key] == 2)
    for count in (*Counter(at.values()).values(), *(3 * n for n in moved.values())):
        assert 90 < count < 215, "an equal share is 150"


def test_a_full_engine_sends_a_prefix_to_the_next_in_its_order_and_gets_it_back():
    key, balance = Asked("popular"), Prefix()
    home = balance.choose(key, idle(0, 1, 2))
    second = balance.choose(key, [choice for choice in idle(0, 1, 2) if choice.number != home])
    busy = dict.fromkeys(range(3), 0) | {home: 3}
    assert balance.choose(key, choices(busy)) == second
    assert balance.choose(key, choices(dict.fromkeys(range(3), 3))) == home
