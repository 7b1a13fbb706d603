"""Ring schedules, walked by an interpreter that shares nothing with the one that moves bytes.

The value of a piece is the multiset of ranks whose input is in it, so that one counted twice shows.
"""

import random
from collections import Counter, defaultdict, deque
from collections.abc import Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atoll.group.schedules import (
    exchange_all_reduce,
    ring_all_gather,
    ring_all_reduce,
    ring_broadcast,
    ring_reduce_scatter,
)
from atoll.runtime.schedule import Compute, Recv, Schedule, Send, Step

Value = Counter[int]
WORLDS = range(1, 8)
BLOCKS = (1, 2, 5)


class Walk:
    """All ranks of one operation. `held[r][p]`: what rank r has of piece p; `inputs` alike, never written."""

    def __init__(self, schedules: list[Schedule], inputs: list[dict[int, Value]], seed: int = 0) -> None:
        self.inputs = inputs
        self.held: list[dict[int, Value]] = [dict(pieces) for pieces in inputs]
        self.sent: list[list[int]] = [[] for _ in schedules]
        self.finals: list[list[int]] = [[] for _ in schedules]
        self._links: dict[tuple[int, int], deque[tuple[int, Value]]] = defaultdict(deque)
        dice = random.Random(seed)
        steps = [list(s) for s in schedules]
        at = [0] * len(steps)
        while movable := [r for r, s in enumerate(steps) if at[r] < len(s) and self._may(r, s[at[r]])]:
            rank = dice.choice(movable)
            self._move(rank, steps[rank][at[rank]])
            at[rank] += 1
        stuck = {r: s[at[r]] for r, s in enumerate(steps) if at[r] < len(s)}
        assert not stuck, f"deadlock: {stuck}"
        assert not any(self._links.values()), "sent, but never received"

    def _may(self, rank: int, step: Step) -> bool:
        return not isinstance(step, Recv) or bool(self._links[step.source, rank])

    def _move(self, rank: int, step: Step) -> None:
        if isinstance(step, Send):
            self._links[rank, step.to].append((step.piece, self.held[rank][step.piece]))
            self.sent[rank].append(step.piece)
        elif isinstance(step, Recv):
            piece, value = self._links[step.source, rank].popleft()
            assert piece == step.piece, f"rank {rank} waits for piece {step.piece}, piece {piece} comes first"
            self.held[rank][piece] = value + self.inputs[rank][piece] if step.reduce else value
        else:
            assert isinstance(step, Compute)
            self.finals[rank].append(step.piece)


def everywhere(world: int, pieces: int) -> list[dict[int, Value]]:
    return [{p: Counter([r]) for p in range(pieces)} for r in range(world)]


def each_once(world: int) -> Value:
    return Counter(range(world))


def pieces_of(chunk: int, blocks: int) -> Iterable[int]:
    return range(chunk * blocks, (chunk + 1) * blocks)


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_all_reduce_brings_every_input_to_every_rank_exactly_once(world: int, blocks: int) -> None:
    walk = Walk([ring_all_reduce(r, world, blocks) for r in range(world)], everywhere(world, world * blocks))
    for held in walk.held:
        assert held == {p: each_once(world) for p in range(world * blocks)}


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_all_reduce_sends_the_least_a_ring_can(world: int, blocks: int) -> None:
    walk = Walk([ring_all_reduce(r, world, blocks) for r in range(world)], everywhere(world, world * blocks))
    for sent in walk.sent:
        assert len(sent) == 2 * (world - 1) * blocks  # of world * blocks: 2 (world - 1) / world of the data


@pytest.mark.parametrize("world", range(2, 8))
def test_every_final_piece_is_made_on_one_rank_and_copied(world: int) -> None:
    walk = Walk([ring_all_reduce(r, world, 3) for r in range(world)], everywhere(world, world * 3))
    assert sorted(p for finals in walk.finals for p in finals) == list(range(world * 3))


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_reduce_scatter_leaves_chunk_r_on_rank_r(world: int, blocks: int) -> None:
    walk = Walk([ring_reduce_scatter(r, world, blocks) for r in range(world)], everywhere(world, world * blocks))
    for rank, held in enumerate(walk.held):
        assert all(held[p] == each_once(world) for p in pieces_of(rank, blocks))
        assert walk.finals[rank] == (list(pieces_of(rank, blocks)) if world > 1 else [])
        assert len(walk.sent[rank]) == (world - 1) * blocks


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("blocks", BLOCKS)
def test_all_gather_brings_chunk_r_of_rank_r_to_all(world: int, blocks: int) -> None:
    inputs = [{p: Counter([r]) for p in pieces_of(r, blocks)} for r in range(world)]
    walk = Walk([ring_all_gather(r, world, blocks) for r in range(world)], inputs)
    for rank in range(world):
        assert walk.held[rank] == {p: Counter([p // blocks]) for p in range(world * blocks)}
        assert len(walk.sent[rank]) == (world - 1) * blocks


@pytest.mark.parametrize("world", WORLDS)
@pytest.mark.parametrize("pieces", [1, 4])
def test_broadcast_reaches_as_many_links_as_asked_and_nobody_behind(world: int, pieces: int) -> None:
    for root in range(world):
        for hops in range(world):
            inputs: list[dict[int, Value]] = [{} for _ in range(world)]
            inputs[root] = {p: Counter([root]) for p in range(pieces)}
            walk = Walk([ring_broadcast(r, world, root, pieces, hops) for r in range(world)], inputs)
            for rank, held in enumerate(walk.held):
                assert held == (inputs[root] if (rank - root) % world <= hops else {})


def test_two_exchange_all_they_have_in_one_piece() -> None:
    walk = Walk([exchange_all_reduce(0), exchange_all_reduce(1)], everywhere(2, 1))
    assert walk.held == [{0: each_once(2)}, {0: each_once(2)}]
    assert walk.sent == [[0], [0]]


def test_a_block_goes_on_before_the_whole_chunk_is_here() -> None:
    steps = list(ring_all_reduce(0, 3, 4))
    assert isinstance(steps[4], Recv)
    assert isinstance(steps[5], Send), "the first block is passed on before the second is received"


@given(st.integers(1, 7), st.integers(1, 4), st.integers(0, 2**32))
def test_the_result_does_not_depend_on_who_is_fast(world: int, blocks: int, seed: int) -> None:
    walk = Walk([ring_all_reduce(r, world, blocks) for r in range(world)], everywhere(world, world * blocks), seed)
    for held in walk.held:
        assert set(map(frozenset, (v.items() for v in held.values()))) == {frozenset(each_once(world).items())}
