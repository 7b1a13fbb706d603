"""Schedules, walked by an interpreter that shares nothing with the one that moves bytes.

The value of a piece is the multiset of ranks whose input is in it, so that one counted twice shows. Lanes move in any
order, frames of a link too.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable
from math import ceil, log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.group.collectives import schedules
from atoll.runtime.schedule import Compute, Recv, Schedule, Send, Step

Value = Counter[int]
Make = Callable[[int, int, int], Schedule]
WORLDS = range(1, 8)
LANES = (1, 2, 5)
ALL_REDUCE: list[Make] = [schedules.ring_all_reduce, schedules.direct_all_reduce, schedules.halving_all_reduce]
REDUCE_SCATTER: list[Make] = [schedules.ring_reduce_scatter, schedules.direct_reduce_scatter]
ALL_GATHER: list[Make] = [schedules.ring_all_gather, schedules.direct_all_gather]


class Walk:
    """All ranks of one operation. `held[r][p]`: what rank r has of piece p; `inputs` alike, never written."""

    def __init__(self, made: list[Schedule], inputs: list[dict[int, Value]], seed: int = 0) -> None:
        self.inputs = inputs
        self.held: list[dict[int, Value]] = [dict(pieces) for pieces in inputs]
        self.summed: set[tuple[int, int]] = set()
        self.sent: list[list[int]] = [[] for _ in made]
        self.finals: list[list[int]] = [[] for _ in made]
        self.rounds: dict[tuple[int, int], int] = defaultdict(int)
        """Per lane: the longest chain of messages that had to come one after the other."""
        self._links: dict[tuple[int, int, int, bool], tuple[Value, int]] = {}
        self._waiting: set[tuple[int, int, int, bool]] = set()
        dice = random.Random(seed)
        steps = {(r, i): list(lane) for r, lanes in enumerate(made) for i, lane in enumerate(lanes)}
        at = dict.fromkeys(steps, 0)
        while movable := [lane for lane, s in steps.items() if at[lane] < len(s) and self._may(lane, s[at[lane]])]:
            lane = dice.choice(movable)
            self._move(lane, steps[lane][at[lane]])
            at[lane] += 1
        stuck = {lane: s[at[lane]] for lane, s in steps.items() if at[lane] < len(s)}
        assert not stuck, f"deadlock: {stuck}"
        assert not self._links, "sent, but never received"

    def _may(self, lane: tuple[int, int], step: Step) -> bool:
        return not isinstance(step, Recv) or (step.source, lane[0], step.piece, step.reduce) in self._links

    def _move(self, lane: tuple[int, int], step: Step) -> None:
        rank = lane[0]
        if isinstance(step, Send):
            key = rank, step.to, step.piece, step.reduce
            assert key not in self._links, "two frames of one name are on their way"
            self._links[key] = self.held[rank][step.piece], self.rounds[lane] + 1
            self.sent[rank].append(step.piece)
        elif isinstance(step, Recv):
            value, number = self._links.pop((step.source, rank, step.piece, step.reduce))
            self.held[rank][step.piece] = value + self.held[rank][step.piece] if step.reduce else value
            self.rounds[lane] = max(self.rounds[lane], number)
        else:
            assert isinstance(step, Compute)
            self.finals[rank].append(step.piece)


def everywhere(world: int, pieces: int) -> list[dict[int, Value]]:
    return [{p: Counter([r]) for p in range(pieces)} for r in range(world)]


def each_once(world: int) -> Value:
    return Counter(range(world))


def pieces_of(chunk: int, lanes: int) -> Iterable[int]:
    return range(chunk * lanes, (chunk + 1) * lanes)


def walk_of(make: Make, world: int, lanes: int, seed: int = 0) -> Walk:
    return Walk([make(r, world, lanes) for r in range(world)], everywhere(world, world * lanes), seed)


@pytest.mark.parametrize("make", ALL_REDUCE)
@pytest.mark.parametrize("world", [*WORLDS, 8, 12])
@pytest.mark.parametrize("lanes", LANES)
def test_all_reduce_brings_every_input_to_every_rank_exactly_once(make: Make, world: int, lanes: int) -> None:
    for seed in range(3):
        for held in walk_of(make, world, lanes, seed).held:
            assert held == {p: each_once(world) for p in range(world * lanes)}


@pytest.mark.parametrize("make", [schedules.ring_all_reduce, schedules.direct_all_reduce])
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("lanes", LANES)
def test_all_reduce_sends_the_least_there_can_be(make: Make, world: int, lanes: int) -> None:
    for sent in walk_of(make, world, lanes).sent:
        assert len(sent) == 2 * (world - 1) * lanes  # of world * lanes: 2 (world - 1) / world of the data


@pytest.mark.parametrize("world", [2, 4, 8, 16])
def test_halving_takes_two_rounds_per_doubling_of_the_world_and_sends_the_least(world: int) -> None:
    walk = walk_of(schedules.halving_all_reduce, world, 1)
    assert max(walk.rounds.values()) == 2 * log2(world)
    assert all(len(sent) == 2 * (world - 1) for sent in walk.sent)


@pytest.mark.parametrize("world", [3, 5, 6, 7, 12])
def test_halving_in_another_world_takes_two_rounds_more(world: int) -> None:
    walk = walk_of(schedules.halving_all_reduce, world, 1)
    assert max(walk.rounds.values()) == 2 * (ceil(log2(world)) - 1) + 2


@pytest.mark.parametrize("world", range(2, 8))
def test_direct_exchange_takes_two_rounds_whatever_the_world(world: int) -> None:
    assert max(walk_of(schedules.direct_all_reduce, world, 1).rounds.values()) == 2
    assert max(walk_of(schedules.ring_all_reduce, world, 1).rounds.values()) == 2 * (world - 1)


@pytest.mark.parametrize("make", ALL_REDUCE)
@pytest.mark.parametrize("world", range(2, 8))
def test_every_final_piece_is_made_on_one_rank_and_copied(make: Make, world: int) -> None:
    walk = walk_of(make, world, 3)
    assert sorted(p for finals in walk.finals for p in finals) == list(range(world * 3))


@pytest.mark.parametrize("make", REDUCE_SCATTER)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("lanes", LANES)
def test_reduce_scatter_leaves_chunk_r_on_rank_r(make: Make, world: int, lanes: int) -> None:
    walk = walk_of(make, world, lanes)
    for rank, held in enumerate(walk.held):
        assert all(held[p] == each_once(world) for p in pieces_of(rank, lanes))
        assert sorted(walk.finals[rank]) == (list(pieces_of(rank, lanes)) if world > 1 else [])
        assert len(walk.sent[rank]) == (world - 1) * lanes


@pytest.mark.parametrize("make", ALL_GATHER)
@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("lanes", LANES)
def test_all_gather_brings_chunk_r_of_rank_r_to_all(make: Make, world: int, lanes: int) -> None:
    inputs = [{p: Counter([r]) for p in pieces_of(r, lanes)} for r in range(world)]
    walk = Walk([make(r, world, lanes) for r in range(world)], inputs)
    for rank in range(world):
        assert walk.held[rank] == {p: Counter([p // lanes]) for p in range(world * lanes if world > 1 else lanes)}
        assert len(walk.sent[rank]) == (world - 1) * lanes


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("pieces", [1, 4])
def test_a_broadcast_reaches_those_in_the_chain_and_nobody_else(world: int, pieces: int) -> None:
    for root in range(world):
        for hops in range(world):
            chain = [(root + i) % world for i in range(hops + 1)]
            inputs: list[dict[int, Value]] = [{} for _ in range(world)]
            inputs[root] = {p: Counter([root]) for p in range(pieces)}
            made = [
                schedules.broadcast(chain.index(r), chain, range(pieces)) if r in chain else [] for r in range(world)
            ]
            for rank, held in enumerate(Walk(made, inputs).held):
                assert held == (inputs[root] if rank in chain else {})


@pytest.mark.parametrize("world", range(2, 8))
def test_a_direct_broadcast_takes_one_round(world: int) -> None:
    for root in range(world):
        inputs: list[dict[int, Value]] = [{} for _ in range(world)]
        inputs[root] = {0: Counter([root])}
        walk = Walk([schedules.direct_broadcast(r, world, root) for r in range(world)], inputs)
        assert walk.held == [{0: Counter([root])}] * world
        assert max(walk.rounds.values()) == 1


@given(st.integers(2, 6), st.data())
def test_all_to_all_gives_each_what_is_meant_for_it(world: int, data: st.DataObject) -> None:
    counts = data.draw(
        st.lists(st.lists(st.integers(0, 3), min_size=world, max_size=world), min_size=world, max_size=world)
    )
    numbers: dict[tuple[int, int], range] = {}
    total = 0
    for a in range(world):
        for b in range(world):
            pieces = counts[a][b] if a != b else 0
            numbers[a, b] = range(total, total + pieces)
            total += pieces
    inputs = [{p: Counter([a]) for b in range(world) for p in numbers[a, b]} for a in range(world)]
    made = [schedules.all_to_all(r, world, lambda a, b: numbers[a, b]) for r in range(world)]
    for rank, held in enumerate(Walk(made, inputs, data.draw(st.integers(0, 99))).held):
        for source in range(world):
            assert all(held[p] == Counter([source]) for p in numbers[source, rank])


@pytest.mark.parametrize("pieces", [1, 3])
def test_between_two_the_sender_is_through_when_the_other_has_all(pieces: int) -> None:
    words = {pieces + p: Value() for p in range(pieces)}
    inputs = [{p: Counter([0]) for p in range(pieces)} | words, dict(words)]
    walk = Walk([schedules.send(1, pieces), schedules.receive(0, pieces)], inputs)
    assert all(walk.held[1][p] == Counter([0]) for p in range(pieces))
    assert walk.rounds[0, 0] == 3, "ready, data, received"


def test_a_lane_goes_on_before_the_others_are_through() -> None:
    lanes = schedules.ring_all_reduce(0, 3, 4)
    assert len(lanes) == 4
    steps = list(lanes[0])
    assert isinstance(steps[1], Recv)
    assert isinstance(steps[2], Send), "what came is passed on at once"


@given(st.sampled_from(ALL_REDUCE), st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32))
def test_the_result_does_not_depend_on_who_is_fast(make: Make, world: int, lanes: int, seed: int) -> None:
    for held in walk_of(make, world, lanes, seed).held:
        assert set(map(frozenset, (v.items() for v in held.values()))) == {frozenset(each_once(world).items())}
