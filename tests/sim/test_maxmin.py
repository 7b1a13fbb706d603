"""Weighted max-min fair rates: worked examples, the definition itself, and a slow exact reference."""

import random
from collections.abc import Sequence
from fractions import Fraction
from math import inf

import pytest

from atoll.sim.maxmin import components, rates

Uses = list[dict[int, float]]
Problem = tuple[Uses, list[float], list[float], list[float]]


def plain(uses: Sequence[Sequence[int]], capacity: list[float]) -> list[float]:
    """Rates of flows over links, all alike."""
    return rates([dict.fromkeys(route, 1.0) for route in uses], capacity, [1.0] * len(uses), [inf] * len(uses))


def random_problem(luck: random.Random) -> Problem:
    """Anything goes: shared routes, idle resources, zero and equal capacities, caps, coefficients over six decades."""
    n_resources, n = luck.randint(1, 12), luck.randint(1, 15)
    uneven = luck.random() < 0.5
    capacity = [luck.choice([0.0, 1.0, 10.0]) if luck.random() < 0.3 else luck.uniform(0.1, 100) for _ in range(12)]
    uses = [
        {j: 10 ** luck.uniform(-3, 3) if uneven else 1.0 for j in luck.sample(range(n_resources), luck.randint(1, k))}
        for k in [min(4, n_resources)] * n
    ]
    weights = [luck.uniform(0.1, 10) if uneven else 1.0 for _ in range(n)]
    caps = [luck.uniform(0.01, 20) if luck.random() < 0.3 else inf for _ in range(n)]
    return uses, capacity, weights, caps


def slow_rates(uses: Uses, capacity: list[float], weights: list[float], caps: list[float]) -> list[Fraction]:
    """Raise the level of all to where the next one has to stop, in exact arithmetic, until none rises."""
    rate: dict[int, Fraction] = {}
    weight = [Fraction(w) for w in weights]
    amount = [{j: Fraction(a) for j, a in use.items()} for use in uses]
    while len(rate) < len(uses):
        rising = [i for i in range(len(uses)) if i not in rate]
        ends = [(Fraction(caps[i]) / weight[i], {i}) for i in rising if caps[i] < inf]
        for j, full in enumerate(capacity):
            users = {i for i in rising if j in amount[i]}
            if users:
                taken = sum((amount[i][j] * x for i, x in rate.items() if j in amount[i]), Fraction(0))
                ends.append(((Fraction(full) - taken) / sum(amount[i][j] * weight[i] for i in users), users))
        level = min(end for end, _ in ends)
        for end, users in ends:
            if end == level:
                rate |= {i: weight[i] * level for i in users}
    return [rate[i] for i in range(len(uses))]


def test_parking_lot() -> None:
    assert plain([[0, 1, 2], [0], [1], [2]], [1.0] * 3) == [0.5] * 4


def test_what_one_leaves_behind_is_for_the_others() -> None:
    assert plain([[0], [0, 1], [1]], [1.0, 10.0]) == [0.5, 0.5, 9.5]


def test_shares_go_by_weight() -> None:
    assert rates([{0: 1.0}] * 3, [8.0], [1.0, 1.0, 2.0], [inf] * 3) == [2.0, 2.0, 4.0]


def test_a_cap_leaves_the_rest_to_the_others() -> None:
    assert rates([{0: 1.0}] * 3, [9.0], [1.0] * 3, [1.0, inf, inf]) == [1.0, 4.0, 4.0]


def test_a_coefficient_is_what_one_unit_of_work_takes() -> None:
    assert rates([{0: 1.0}, {0: 3.0}], [8.0], [1.0] * 2, [inf] * 2) == [2.0, 2.0]
    assert rates([{0: 2.0, 1: 0.5}], [8.0, 1.0], [1.0], [inf]) == [2.0]


def test_without_capacity_nothing_moves_and_without_limits_nothing_waits() -> None:
    assert plain([[0, 1], [1], []], [0.0, 6.0]) == [0.0, 6.0, inf]
    assert plain([], []) == []


def test_everybody_has_a_full_resource_where_nobody_has_more() -> None:
    for seed in range(500):
        uses, capacity, weights, caps = problem = random_problem(random.Random(seed))
        found = rates(*problem)
        given = [sum(use.get(j, 0.0) * x for use, x in zip(uses, found, strict=True)) for j in range(len(capacity))]
        assert all(g <= c * (1 + 1e-9) for g, c in zip(given, capacity, strict=True)), seed
        level = [x / w for x, w in zip(found, weights, strict=True)]
        for i, use in enumerate(uses):
            full = [j for j in use if given[j] >= capacity[j] * (1 - 1e-9)]
            most = [max(level[k] for k, other in enumerate(uses) if j in other) for j in full]
            assert found[i] == caps[i] or any(level[i] >= m * (1 - 1e-9) for m in most), seed
            assert found[i] <= caps[i], seed


def test_equals_exact_arithmetic() -> None:
    for seed in range(500):
        problem = random_problem(random.Random(seed))
        exact = [float(x) for x in slow_rates(*problem)]
        assert rates(*problem) == pytest.approx(exact, rel=1e-9, abs=1e-12), seed


def test_what_shares_nothing_changes_nothing_not_even_the_last_bit() -> None:
    luck = random.Random(0)
    for _ in range(100):
        one, two = random_problem(luck), random_problem(luck)
        shifted = [{j + len(one[1]): a for j, a in use.items()} for use in two[0]]
        both = rates(one[0] + shifted, one[1] + two[1], one[2] + two[2], one[3] + two[3])
        assert both == rates(*one) + rates(*two)


def test_components_are_those_joined_by_resources() -> None:
    assert components([{0: 1.0}, {1: 1.0}, {2: 1.0, 0: 1.0}, {}, {1: 2.0}, {3: 1.0, 2: 1.0}]) == [
        [0, 2, 5],
        [1, 4],
        [3],
    ]
