"""Driver: max-min fair shares beside worked examples, the definition and a slow exact reference. (Simulator, "Done
when" 2.)"""

import random
from collections.abc import Iterator
from fractions import Fraction
from math import inf
from typing import NamedTuple

from atoll.reproduce.api import Line, Say, judged
from atoll.sim.maxmin import components, rates

_NEAR = 1e-9


class Problem(NamedTuple):
    """Who uses how much of what, and what there is."""

    uses: list[dict[int, float]]
    capacity: list[float]
    weights: list[float]
    caps: list[float]


def shares(seed: int, say: Say) -> Iterator[Line]:
    """Two networks one can solve by hand, and 500 at random."""
    say("max-min fair shares")
    lot = _plain([[0, 1, 2], [0], [1], [2]], [1.0] * 3)
    two = _plain([[0], [0, 1], [1]], [1.0, 10.0])
    yield Line(
        "2a", "parking lot; and links of 1 and 10 with flows a, a+b, b", "all 1/2; 0.5, 0.5, 9.5",
        f"{lot}; {two}", judged(lot == [0.5] * 4 and two == [0.5, 0.5, 9.5]), "simulated",
    )  # fmt: skip
    problems = [random_problem(random.Random(f"{seed} {i}")) for i in range(500)]
    fair = sum(is_fair(problem, rates(*problem)) for problem in problems)
    claim = "random networks: each flow has a full link on which nobody gets more per weight"
    yield Line("2b", claim, "500 of 500", f"{fair} of 500", judged(fair == 500), "simulated")
    worst = max(_apart(rates(*problem), exact_rates(problem)) for problem in problems)
    claim = "the same 500: distance from a slow reference in exact arithmetic"
    yield Line("2c", claim, "<= 1e-9", f"{worst:.1e}", judged(worst <= _NEAR), "simulated")
    same = sum(rates(*problem) == by_component(problem) for problem in problems)
    claim = "the same 500: each component solved alone gives the same bits as all together"
    yield Line("2d", claim, "500 of 500", f"{same} of 500", judged(same == 500), "simulated")


def random_problem(luck: random.Random) -> Problem:
    """Shared routes, idle resources, no capacity, equal ones, caps, weights, coefficients over six decades."""
    kinds = luck.randint(1, 12)
    uneven = luck.random() < 0.5
    capacity = [luck.choice([0.0, 1.0, 10.0]) if luck.random() < 0.3 else luck.uniform(0.1, 100) for _ in range(kinds)]
    uses = [
        {
            j: 10 ** luck.uniform(-3, 3) if uneven else 1.0
            for j in luck.sample(range(kinds), luck.randint(1, min(4, kinds)))
        }
        for _ in range(luck.randint(1, 15))
    ]
    weights = [luck.uniform(0.1, 10) if uneven else 1.0 for _ in uses]
    return Problem(uses, capacity, weights, [luck.uniform(0.01, 20) if luck.random() < 0.3 else inf for _ in uses])


def is_fair(problem: Problem, found: list[float]) -> bool:
    """By the definition: no link is over its capacity, and each flow is at its cap or among the largest on a full
    one."""
    uses, capacity, weights, caps = problem
    given = [sum(use.get(j, 0.0) * x for use, x in zip(uses, found, strict=True)) for j in range(len(capacity))]
    level = [x / w for x, w in zip(found, weights, strict=True)]

    def content(i: int) -> bool:
        full = [j for j in uses[i] if given[j] >= capacity[j] * (1 - _NEAR)]
        most = [max(level[k] for k, other in enumerate(uses) if j in other) for j in full]
        return found[i] == caps[i] or any(level[i] >= m * (1 - _NEAR) for m in most)

    fits = all(g <= c * (1 + _NEAR) for g, c in zip(given, capacity, strict=True))
    return fits and all(content(i) for i in range(len(uses)))


def exact_rates(problem: Problem) -> list[float]:
    """Raise the level of all to where the next one has to stop, in fractions, until none rises."""
    uses, capacity, weights, caps = problem
    rate: dict[int, Fraction] = {}
    weight = [Fraction(w) for w in weights]
    amount = [{j: Fraction(a) for j, a in use.items()} for use in uses]
    while len(rate) < len(uses):
        rising = [i for i in range(len(uses)) if i not in rate]
        ends = [(Fraction(caps[i]) / weight[i], {i}) for i in rising if caps[i] < inf]
        for j, full in enumerate(capacity):
            if users := {i for i in rising if j in amount[i]}:
                taken = sum((amount[i][j] * x for i, x in rate.items() if j in amount[i]), Fraction(0))
                ends.append(((Fraction(full) - taken) / sum(amount[i][j] * weight[i] for i in users), users))
        level = min(end for end, _ in ends)
        rate |= {i: weight[i] * level for end, users in ends if end == level for i in users}
    return [float(rate[i]) for i in range(len(uses))]


def by_component(problem: Problem) -> list[float]:
    """As the fluid solver does it."""
    found = [0.0] * len(problem.uses)
    for part in components(problem.uses):
        alone = rates(
            [problem.uses[i] for i in part], problem.capacity,
            [problem.weights[i] for i in part], [problem.caps[i] for i in part],
        )  # fmt: skip
        for i, rate in zip(part, alone, strict=True):
            found[i] = rate
    return found


def _plain(routes: list[list[int]], capacity: list[float]) -> list[float]:
    return rates([dict.fromkeys(route, 1.0) for route in routes], capacity, [1.0] * len(routes), [inf] * len(routes))


def _apart(found: list[float], exact: list[float]) -> float:
    return max(abs(x - y) / max(y, 1e-3) for x, y in zip(found, exact, strict=True))
