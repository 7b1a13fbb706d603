"""Which ring follows from which rates. What is best comes from all permutations here, or from how an instance was made.

Where ties matter, rates are 2**20 / k and sums are counted in k, so that they are exact.
"""

import math
import random
from collections.abc import Callable
from functools import cache
from itertools import combinations, pairwise, permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from atoll.group.membership.rings import EXACT, Improver, Pair, best_ring, quality, why
from atoll.group.membership.topology import rounds

UNIT = 2.0**20
UNREACHABLE = -1  # in place of a k
Slowness = NDArray[np.int64]
"""[source, target]: the k of a rate 2**20 / k; 0: infinite, -1: unreachable."""


def rate_of(slowness: Slowness) -> Callable[[int, int], float]:
    """By index."""
    k = slowness.tolist()

    def rate(source: int, target: int) -> float:
        assert source != target
        if k[source][target] == UNREACHABLE:
            return 0.0
        return UNIT / k[source][target] if k[source][target] else math.inf

    return rate


@cache
def all_rings(n: int) -> NDArray[np.int64]:
    """From member 0 on, in lexicographic order."""
    return np.array([(0, *rest) for rest in permutations(range(1, n))])


def brute_force(slowness: Slowness) -> tuple[int, ...]:
    """Slowest edge, then (where it is 0.0) unreachable pairs, then the sum, then the order."""
    rings = all_rings(len(slowness))
    k = slowness[rings, np.roll(rings, -1, axis=1)]
    unreachable = (k == UNREACHABLE).sum(axis=1)
    worst = np.where(unreachable > 0, np.iinfo(np.int64).max, k.max(axis=1))
    best = np.lexsort((np.arange(len(rings)), np.maximum(k, 0).sum(axis=1), unreachable, worst))[0]
    return tuple(rings[best].tolist())


def matrix(n: int, rng: random.Random) -> Slowness:
    """Of one of many characters: few or many values, one-way or symmetric, with machines, with holes."""
    values = range(1, rng.choice([2, 3, 5, 17, 1000]))
    slowness = np.array([[rng.choice(values) for _ in range(n)] for _ in range(n)])
    infinite, holes = rng.choice([0.0, 0.0, 0.3]), rng.choice([0.0, 0.0, 0.2, 0.5, 0.8])
    for a, b in permutations(range(n), 2):
        if rng.random() < infinite:
            slowness[a, b] = 0
        if rng.random() < holes:
            slowness[a, b] = UNREACHABLE
    return np.triu(slowness) + np.triu(slowness, 1).T if rng.random() < 0.4 else slowness


def is_canonical(ring: tuple[int, ...], ids: set[int]) -> bool:
    return set(ring) == ids and len(ring) == len(ids) and ring[0] == min(ids)


# -- the best ring -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", range(2, 9))
def test_the_best_ring_is_the_one_that_trying_them_all_finds(n: int) -> None:
    for seed in range(100):
        slowness = matrix(n, random.Random(f"{n} {seed}"))
        assert best_ring(range(n), rate_of(slowness)) == brute_force(slowness), (n, seed)


@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.integers(-1, 3), min_size=n * n, max_size=n * n)))
def test_the_best_ring_is_best_whatever_the_rates(flat: list[int]) -> None:
    slowness = np.array(flat).reshape(math.isqrt(len(flat)), -1)
    assert best_ring(range(len(slowness)), rate_of(slowness)) == brute_force(slowness)


@given(st.sets(st.integers(0, 2**60), min_size=0, max_size=7), st.randoms(use_true_random=False))
def test_ids_may_be_any_and_come_in_any_order(ids: set[int], rng: random.Random) -> None:
    ordered, slowness = sorted(ids), matrix(len(ids), rng)
    place = {member: i for i, member in enumerate(ordered)}
    rate = rate_of(slowness)
    ring = best_ring(rng.sample(ordered, len(ordered)), lambda a, b: rate(place[a], place[b]))
    assert ring == (tuple(ordered[i] for i in brute_force(slowness)) if ids else ())


@given(
    st.lists(st.floats(1e-3, 1e13), min_size=56, max_size=56),
    st.permutations(range(1, 8)),
)
def test_no_ring_beats_the_best_at_any_rates(flat: list[float], other: list[int]) -> None:
    rates = dict(zip(permutations(range(8), 2), flat, strict=True))
    slowest, total = quality(best_ring(range(8), lambda a, b: rates[a, b]), lambda a, b: rates[a, b])
    other_slowest, other_total = quality([0, *other], lambda a, b: rates[a, b])
    assert slowest > other_slowest or (slowest == other_slowest and total <= other_total * (1 + 2e-9))


def test_a_ring_of_six_avoids_its_one_slow_pair() -> None:
    slow = {(2, 3), (3, 2)}
    ring = best_ring(range(6), lambda a, b: 0.5e6 if (a, b) in slow else 12.5e6)
    assert ring == (0, 1, 2, 4, 3, 5)
    assert quality(ring, lambda a, b: 0.5e6 if (a, b) in slow else 12.5e6)[0] == 12.5e6


def test_a_pair_slow_in_one_direction_is_passed_in_the_other() -> None:
    """Both ways round a triangle lead along each pair: the slow direction decides."""
    assert best_ring([1, 2, 3], lambda a, b: 1.0 if (a, b) == (1, 2) else 9.0) == (1, 3, 2)


@pytest.mark.parametrize("seed", range(20))
def test_the_only_ring_that_reaches_everybody_is_found(seed: int) -> None:
    hidden = [0, *random.Random(seed).sample(range(1, EXACT), EXACT - 1)]
    edges = {*pairwise([*hidden, 0])}
    assert best_ring(range(EXACT), lambda a, b: 1.0 if (a, b) in edges else 0.0) == tuple(hidden)


def test_the_slowest_edge_counts_before_the_sum() -> None:
    """0 -> 1 -> 2 -> 0 has one edge of 1 and is otherwise endless; the other way round all are 2."""
    forwards = {(0, 1): 1.0, (1, 2): math.inf, (2, 0): math.inf}
    assert best_ring([0, 1, 2], lambda a, b: forwards.get((a, b), 2.0)) == (0, 2, 1)


def test_equal_rates_keep_the_order_of_ids() -> None:
    for rate in (0.0, 1e8 / 3, math.inf):
        assert best_ring([7, 5, 3, 9, 1], lambda a, b, rate=rate: rate) == (1, 3, 5, 7, 9)  # type: ignore[misc]


def test_too_many_members_for_an_exact_search_are_refused() -> None:
    with pytest.raises(ValueError, match=f"{EXACT + 1} members are too many"):
        best_ring(range(EXACT + 1), lambda a, b: 1.0)


def test_quality_is_the_slowest_edge_and_the_sum_of_inverses() -> None:
    rates = {(0, 1): 4.0, (1, 2): 8.0, (2, 0): math.inf}
    assert quality([0, 1, 2], lambda a, b: rates[a, b]) == (4.0, 0.375)
    assert quality([1, 2, 0], lambda a, b: rates[a, b]) == (4.0, 0.375)
    assert quality([0, 1], lambda a, b: 0.0) == (0.0, math.inf)
    assert quality([3], lambda a, b: 1.0) == (math.inf, 0.0)
    assert quality([], lambda a, b: 1.0) == (math.inf, 0.0)


# -- a good ring of many -----------------------------------------------------------------------------------------------


@given(st.integers(0, 14), st.integers(0, 999), st.lists(st.integers(1, 300), max_size=20))
def test_the_improver_never_gets_worse_and_never_loses_anybody(n: int, seed: int, steps: list[int]) -> None:
    rate = rate_of(matrix(n, random.Random(seed)))
    improver = Improver(random.Random(seed).sample(range(n), n), rate, seed)
    for moves in steps:
        before = improver.best
        got_better = improver.step(moves)
        assert got_better == (improver.best != before)
        assert improver.best == () if n == 0 else is_canonical(improver.best, set(range(n)))
        (slowest, total), (was_slowest, was_total) = quality(improver.best, rate), quality(before, rate)
        assert improver.quality(before) == (was_slowest, was_total)
        if got_better and slowest > 0.0:
            assert (-slowest, total) < (-was_slowest, was_total)


def test_the_improver_reaches_the_best_ring_of_ten_nearly_always() -> None:
    found = 0
    for seed in range(50):
        rng = random.Random(seed)
        rates = {pair: rng.uniform(1, 100) for pair in permutations(range(EXACT), 2)}
        best = best_ring(range(EXACT), lambda a, b, rates=rates: rates[a, b])  # type: ignore[misc]
        improver = Improver(range(EXACT), lambda a, b, rates=rates: rates[a, b], seed)  # type: ignore[misc]
        for _ in range(300):
            improver.step()
        found += improver.best == best
    assert found >= 45


def test_same_seed_same_ring() -> None:
    rng = random.Random(5)
    rates = {pair: rng.random() for pair in permutations(range(20), 2)}

    def history(seed: int) -> list[tuple[int, ...]]:
        improver = Improver(range(20), lambda a, b: rates[a, b], seed)
        rings = []
        for _ in range(20):
            improver.step(20)
            rings.append(improver.best)
        return rings

    assert history(1) == history(1)
    assert history(1) != history(2)


@pytest.mark.parametrize("seed", range(5))
def test_two_clusters_are_crossed_just_twice(seed: int) -> None:
    """One member of a cluster has only slow links at home, so that going on to the nearest leaves it for last."""
    rng = random.Random(seed)
    ids = rng.sample(range(1000), 64)
    here = set(ids[:32])
    rates = {
        (a, b): rng.uniform(90, 110) if (a in here) == (b in here) else rng.uniform(1, 2)
        for a, b in permutations(ids, 2)
    }
    for other in here - {ids[0]}:
        rates[ids[0], other] = rates[other, ids[0]] = 30.0
    improver = Improver(ids, lambda a, b: rates[a, b], seed)
    for _ in range(500):
        improver.step()
    ring = improver.best
    assert is_canonical(ring, set(ids))
    crossed = [rates[a, b] for a, b in pairwise([*ring, ring[0]]) if (a in here) != (b in here)]
    assert len(crossed) == 2
    assert min(crossed) > 1.5


def on_a_line(places: list[int]) -> Callable[[int, int], float]:
    return lambda a, b: 1 / abs(places[a] - places[b])


def test_the_improver_starts_with_the_nearest_neighbours() -> None:
    assert Improver(range(6), on_a_line([0, 1, 3, 5, 2, 4])).best == (0, 1, 4, 2, 5, 3)


def test_members_on_a_line_are_visited_out_and_back() -> None:
    """The nearest neighbour's way leaves a long way home; skipping every other one leaves none. Till then many rings
    are equal in their sum and slowest edge."""
    found = 0
    for seed in range(8):
        rate = on_a_line(random.Random(seed).sample(range(16), 16))
        improver = Improver(range(16), rate, seed)
        assert quality(improver.best, rate)[0] < 1 / 5
        for _ in range(1000):
            improver.step()
        slowest, total = quality(improver.best, rate)
        assert slowest >= 1 / 3
        assert total == pytest.approx(2 * 15)
        found += slowest == 1 / 2
    assert found >= 4


@pytest.mark.parametrize("seed", range(3))
def test_a_tour_of_a_grid_goes_from_square_to_square(seed: int) -> None:
    """Which no exchange of forward pieces finds: crossings are undone by turning a piece round."""
    places = random.Random(seed).sample([complex(x, y) for x in range(6) for y in range(6)], 36)

    def rate(a: int, b: int) -> float:
        way = places[a] - places[b]
        return 1 / (abs(way.real) + abs(way.imag))

    improver = Improver(range(36), rate, seed)
    for _ in range(1000):
        improver.step()
    assert quality(improver.best, rate) == (1.0, 36.0)


@pytest.mark.parametrize("seed", range(5))
def test_unreachable_pairs_are_got_rid_of(seed: int) -> None:
    """A ring hidden among 30 members that reach a quarter of the others."""
    rng = random.Random(seed)
    hidden = rng.sample(range(30), 30)
    reachable = {*pairwise([*hidden, hidden[0]]), *(p for p in permutations(range(30), 2) if rng.random() < 0.2)}
    rates = {pair: rng.uniform(1, 100) for pair in sorted(reachable)}
    improver = Improver(range(30), lambda a, b: rates.get((a, b), 0.0), seed)
    for _ in range(1000):
        improver.step()
    assert improver.quality(improver.best)[0] > 0.0


# -- what is measured, and when ----------------------------------------------------------------------------------------


def disturbed(made: list[list[Pair]]) -> list[list[Pair]]:
    """Rounds in which somebody occurs twice."""
    return [r for r in made if len({member for pair in r for member in pair}) != 2 * len(r)]


@given(st.sets(st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda pair: pair[0] != pair[1])))
def test_every_pair_has_its_round_and_nobody_is_in_one_twice(pairs: set[Pair]) -> None:
    made = rounds(pairs)
    assert sorted(pair for r in made for pair in r) == sorted(pairs)
    assert disturbed(made) == []
    assert all(made)
    members = len({member for pair in pairs for member in pair})
    assert len(made) <= 2 * members


@pytest.mark.parametrize("n", [2, 3, 4, 5, 6, 9, 10, 33, 64])
def test_all_to_all_takes_the_rounds_of_a_tournament_there_and_back(n: int) -> None:
    made = rounds([(10 * a, 10 * b) for a, b in permutations(range(n), 2)])
    assert disturbed(made) == []
    assert len(made) == 2 * (n if n % 2 else n - 1)


def test_pairs_that_share_nobody_take_one_round() -> None:
    assert len(rounds([(0, 7), (6, 1), (2, 4), (5, 3), (6, 1)])) == 1


def test_a_newcomer_is_measured_with_one_other_at_a_time() -> None:
    pairs = [pair for a, b in combinations(range(9), 2) if b == 8 for pair in ((a, b), (b, a))]
    assert len(rounds(pairs)) == len(pairs)


# -- for people --------------------------------------------------------------------------------------------------------

NAMES = {1: "anna", 2: "bob", 3: "carl", 4: "dora"}


def said(ring: tuple[int, ...], rates: dict[Pair, float], otherwise: float) -> str:
    return why(ring, lambda a, b: rates.get((a, b), otherwise), NAMES.__getitem__)


def test_a_ring_says_what_it_is_bound_by_and_what_it_avoids() -> None:
    rates = {(1, 2): 94e6 / 8, (3, 4): 5e6 / 8, (4, 3): 4e6 / 8}
    text = said((1, 2, 3), rates, 1e9 / 8)
    assert text == "slowest link anna -> bob 94 Mbit/s"
    text = said((1, 2, 4), rates | {(2, 1): 0.0}, 1.25e9 / 8)
    assert text == "slowest link anna -> bob 94 Mbit/s; avoids bob -> anna unreachable"
    text = said((1, 4, 2, 3), rates | {(4, 2): 93.5e6 / 8}, 1e9 / 8)
    assert text == "slowest link dora -> bob 93.5 Mbit/s; avoids carl <-> dora 4 Mbit/s"


def test_only_the_slowest_pairs_are_named() -> None:
    ring = {(1, 2), (2, 3), (3, 4), (4, 1)}
    avoided = {pair: 8e3 * sum(pair) for pair in permutations(NAMES, 2) if pair not in ring}
    text = said((1, 2, 3, 4), avoided, math.inf)
    assert text == (
        "slowest link anna -> bob within a machine; "
        "avoids bob -> anna 192 kbit/s, anna <-> carl 256 kbit/s, anna -> dora 320 kbit/s, 3 more"
    )


@pytest.mark.parametrize(
    ("bits_per_s", "text"),
    [
        (0.0, "unreachable"),
        (2.5e3, "2.5 kbit/s"),
        (999.9e6, "1000 Mbit/s"),
        (1.234e9, "1.23 Gbit/s"),
        (45e9, "45 Gbit/s"),
    ],
)
def test_speeds_are_said_in_bits(bits_per_s: float, text: str) -> None:
    assert said((1, 2), {}, bits_per_s / 8) == f"slowest link anna -> bob {text}"


def test_one_alone_has_no_slowest_link() -> None:
    assert said((1,), {}, 1.0) == "nobody else in the ring"
