"""The master has links measured while a group opens, and lays the ring by what it learns. No clock, no socket."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from atoll.group.api import Close, Say
from atoll.group.membership.forming import PROBING_S, SUSPECTED_S
from atoll.group.membership.master import Master
from atoll.group.membership.rings import EXACT, best_ring, quality
from atoll.group.membership.roster import Gone, Tick
from atoll.group.messages import (
    Beat,
    Broken,
    Complete,
    Establish,
    Hello,
    Initiate,
    Linked,
    Probe,
    Probed,
    Topology,
    View,
)

Rate = Callable[[int, int], float]


class Members:
    """A master and peers that do as they are told; `rate` is what they measure, None: they never answer."""

    def __init__(self, rate: Callable[[int, int], float | None], measure: bool = True) -> None:
        self.master = Master(lambda: b"key", measure)
        self.rate = rate
        self.now = 0.0
        self.probed: list[tuple[int, int]] = []
        self.at_once: list[set[int]] = []
        self.views: list[View] = []
        self.unreachable: set[tuple[int, int]] = set()
        self.closed: list[int] = []
        self.dead: set[int] = set()

    def __call__(self, who: int, event: Any) -> None:
        queue = [(who, event)]
        while queue:
            who, event = queue.pop(0)
            if who in self.dead:
                continue
            asked: set[int] = set()
            for action in self.master.handle(who, event, self.now):
                match action:
                    case Close(other):
                        self.closed.append(other)
                    case Say(other, Establish(epoch, ring)):
                        ids = [seat.id for seat in ring]
                        after = ids[(ids.index(other) + 1) % len(ids)]
                        up = (other, after) not in self.unreachable
                        queue.append((other, Linked(epoch, 0.01) if up else Broken(epoch, other, after, "no", False)))
                    case Say(other, Probe(epoch, to)):
                        assert not asked & {other, to}, "somebody is measured twice at a time"
                        asked |= {other, to}
                        self.probed.append((other, to))
                        found = self.rate(other, to)
                        if found is not None:
                            queue.append((other, Probed(epoch, to, found, 0.01)))
                    case Say(_, View() as view) if not self.views or view is not self.views[-1]:
                        self.views.append(view)

    def join(self, *ids: int, machine: str = "", min_world: int = 1) -> None:
        for i in ids:
            self(i, Hello(f"10.0.0.{i}", 1, "", {}, min_world, machine))

    def open(self) -> None:
        for i in self.master.ring:
            self(i, Topology())

    def tick(self, seconds: float) -> None:
        """Time passes; all helpers beat."""
        for member in list(self.master.roster.members.values()):
            self(0, Beat(member.id, member.secret, "running", b""))
        self.now += seconds
        self(0, Tick())

    @property
    def ring(self) -> tuple[int, ...]:
        return self.views[-1].ring


def matrix(n: int, seed: int) -> Rate:
    dice = random.Random(seed)
    rates = {(a, b): float(dice.randint(1, 40)) * 1e6 for a in range(1, n + 1) for b in range(1, n + 1)}
    return lambda a, b: rates[a, b]


@pytest.mark.parametrize("seed", range(20))
def test_the_ring_is_the_best_there_is(seed: int) -> None:
    rate = matrix(6, seed)
    peers = Members(rate)
    peers.join(*range(1, 7), min_world=6)
    assert peers.ring == best_ring(range(1, 7), rate)
    assert sorted(peers.probed) == [(a, b) for a in range(1, 7) for b in range(1, 7) if a != b]
    pace = peers.views[-1].pace
    assert pace.ring_bytes_per_s == quality(peers.ring, rate)[0]
    assert pace.any_bytes_per_s == min(rate(a, b) for a, b in peers.probed)
    assert (pace.ring_trip_s, pace.any_trip_s) == (0.01, 0.01)


def test_a_newcomer_is_measured_and_nobody_else_again() -> None:
    rate = matrix(5, 3)
    peers = Members(rate)
    peers.join(1, 2, 3, 4, min_world=4)
    before = len(peers.probed)
    peers.join(5)
    peers.open()
    assert {frozenset(pair) for pair in peers.probed[before:]} == {frozenset((5, i)) for i in (1, 2, 3, 4)}
    assert peers.ring == best_ring(range(1, 6), rate)
    before = len(peers.probed)
    peers(5, Gone())
    assert peers.ring == best_ring(range(1, 5), rate), "known links need no new measurement"
    assert len(peers.probed) == before


def test_peers_of_one_machine_are_not_measured() -> None:
    peers = Members(matrix(4, 1))
    peers.join(1, 2, 3, machine="one", min_world=3)
    assert not peers.probed
    peers.join(4, machine="other")
    peers.open()
    assert {frozenset(pair) for pair in peers.probed} == {frozenset((4, i)) for i in (1, 2, 3)}


def test_without_measuring_the_ring_is_as_they_came() -> None:
    peers = Members(matrix(5, 2), measure=False)
    peers.join(*range(1, 6), min_world=5)
    assert peers.ring == (1, 2, 3, 4, 5)
    assert not peers.probed


def test_a_link_on_which_nothing_comes_is_given_up_and_avoided() -> None:
    peers = Members(lambda a, b: None if {a, b} == {1, 2} else 1e6)
    peers.join(1, 2, 3, 4, min_world=4)
    assert not peers.views
    while not peers.views:
        assert peers.now < 4 * PROBING_S
        peers.tick(1.0)
    edges = set(zip(peers.ring, peers.ring[1:] + peers.ring[:1], strict=True))
    assert not edges & {(1, 2), (2, 1)}
    assert peers.views[-1].pace.mesh is False, "others must not use it either"


def test_one_that_dies_while_it_is_measured_holds_nobody_up() -> None:
    peers = Members(lambda a, b: None if 3 in (a, b) else 1e6)
    peers.join(1, 2, 3, min_world=3)
    assert not peers.views
    peers(3, Gone())
    assert set(peers.ring) == {1, 2}


def test_a_neighbour_that_can_not_be_dialled_gets_another_predecessor() -> None:
    peers = Members(lambda a, b: 1e6)
    peers.unreachable = {(1, 2)}
    peers.join(1, 2, 3, 4, min_world=4)
    assert set(peers.ring) == {1, 2, 3, 4}, "nobody was dropped"
    edges = set(zip(peers.ring, peers.ring[1:] + peers.ring[:1], strict=True))
    assert (1, 2) not in edges


def test_one_that_nobody_can_dial_is_dropped() -> None:
    peers = Members(lambda a, b: 1e6)
    peers.unreachable = {(a, 2) for a in (1, 3, 4)}
    peers.join(1, 2, 3, 4, min_world=4)
    assert not peers.closed, "it may only be dead, and then somebody will say so"
    peers.tick(SUSPECTED_S)
    assert peers.closed == [2]
    assert set(peers.ring) == {1, 3, 4}


@pytest.mark.parametrize("dead", [True, False])
def test_only_after_one_out_of_reach_and_alive_its_like_has_to_wait(dead: bool) -> None:
    """Links of a process that ends break, and can't be made again, a moment before its connection to the master."""
    peers = Members(lambda a, b: 1e6)
    peers.join(1, 2, 3, 4, min_world=4)
    peers.unreachable = {(a, 4) for a in (1, 2, 3)}
    peers(3, Broken(peers.views[-1].epoch, 3, 4, "closed", True))
    if dead:
        peers(4, Gone())
    peers.tick(SUSPECTED_S)
    assert set(peers.ring) == {1, 2, 3}
    peers(5, Hello("10.0.0.4", 1, "", {}, 1, ""))
    peers.open()
    assert (5 in peers.ring) is dead


def test_a_large_group_gets_a_better_ring_when_one_is_found() -> None:
    n = EXACT + 6
    places = random.Random(1).sample(range(1, n + 1), n)  # on a line, in random order
    rate: Rate = lambda a, b: 1e6 / abs(places[a - 1] - places[b - 1])  # noqa: E731
    peers = Members(rate)
    peers.join(*range(1, n + 1), min_world=n)
    first = quality(peers.ring, rate)
    for _ in range(600):
        peers.tick(0.25)
        if peers.master._pending():
            break
    assert peers.master._pending(), "no better ring was found"
    for i in peers.ring:  # how programs learn of it
        peers(i, Initiate(peers.views[-1].epoch, 0, "gather_bytes", moves_data=False))
    before = len(peers.probed)
    peers.open()
    assert quality(peers.ring, rate)[0] > first[0]
    assert len(peers.probed) == before
    assert not peers.master._pending()


def test_probes_nobody_asked_for_change_nothing() -> None:
    peers = Members(lambda a, b: 1e6)
    peers.join(1, 2, 3, min_world=3)
    ring = peers.ring
    peers(1, Probed(peers.views[-1].epoch, 2, 1e-3, 9.0))
    peers(1, Complete(77))
    assert peers.master.links.rate(1, 2) == 1e6
    assert peers.ring == ring
    assert not peers.closed
