"""Policy: how fast each activity runs where many share links, memories and cores: weighted max-min fair rates.

Progressive filling (Bertsekas & Gallager, Data Networks, 1992, section 6.5.2): all rates rise together, each in
proportion to its weight, until a resource is full; its users stop there and the rest rise on.
"""

from collections.abc import Mapping, Sequence
from heapq import heapify, heappop, heapreplace
from math import inf


def rates(
    uses: Sequence[Mapping[int, float]],
    capacity: Mapping[int, float] | Sequence[float],
    weights: Sequence[float],
    caps: Sequence[float],
) -> list[float]:
    """The rate of each activity: `sum(uses[i][j] * rate[i]) <= capacity[j]`, `rate[i] <= caps[i]`, and nobody can get
    more but from one who has no more per weight.

    Coefficients and weights are above 0, capacities and caps at least 0; a rate is infinite where nothing limits it.
    """
    rate = [-1.0] * len(uses)  # below 0: still rising
    users: dict[int, list[tuple[int, float]]] = {}
    for i, use in enumerate(uses):
        for j, coefficient in use.items():
            if j in users:
                users[j].append((i, coefficient))
            else:
                users[j] = [(i, coefficient)]
    left = {j: capacity[j] for j in users}

    # The level (rate per weight) at which each is full. A cap is a resource with one user, numbered below 0.
    heap = [(left[j] / sum([a * weights[i] for i, a in sharers]), j) for j, sharers in users.items()]
    heap += [(cap / weights[i], ~i) for i, cap in enumerate(caps) if cap < inf]
    heapify(heap)

    # Whoever stops below its level at a resource leaves more to the others: levels only rise, so the old one is a lower
    # bound, and is worked out anew only once it comes to the top.
    outdated: set[int] = set()
    rising = len(uses)
    while rising and heap:
        level, j = heap[0]
        if j in outdated:
            outdated.remove(j)
            stopped = sum([a * rate[i] for i, a in users[j] if rate[i] >= 0])
            users[j] = [(i, a) for i, a in users[j] if rate[i] < 0]
            left[j] = max(0.0, left[j] - stopped)
            if users[j]:
                heapreplace(heap, (left[j] / sum([a * weights[i] for i, a in users[j]]), j))
            else:
                heappop(heap)
            continue
        heappop(heap)
        for i in [i for i, _ in users[j]] if j >= 0 else [~j]:
            if rate[i] < 0:
                rate[i] = weights[i] * level if j >= 0 else caps[i]
                rising -= 1
                outdated.update(uses[i])
    return [inf if r < 0 else r for r in rate]


def components(uses: Sequence[Mapping[int, float]]) -> list[list[int]]:
    """Those who share resources, directly or not, by place in `uses`: rates in one don't depend on the others."""
    users: dict[int, list[int]] = {}
    for i, use in enumerate(uses):
        for j in use:
            users.setdefault(j, []).append(i)
    seen = [False] * len(uses)
    found = []
    for first in range(len(uses)):
        if not seen[first]:
            seen[first] = True
            part = [first]
            for i in part:  # grows while it is walked
                for j in uses[i]:
                    for other in users.pop(j, ()):
                        if not seen[other]:
                            seen[other] = True
                            part.append(other)
            found.append(sorted(part))
    return found
