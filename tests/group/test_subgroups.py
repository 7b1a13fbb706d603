"""Rows and columns of one group: ranks and votes of their own, links, losses and epochs in common."""

import random
from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import atoll
from atoll.errors import PeerLost, Unfit
from atoll.group.facade import Group
from atoll.group.local import LocalGroup
from atoll.group.virtual import World
from atoll.group.work import Work, wait_all
from atoll.runtime.api import here
from tests.group.subgrouped import LARGE, SHAPES, SIZES, SMALL, check_all, grid, launch_all, ranks_of
from tests.group.together import together

# -- who is in, and in which order ---------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(["a", "b", "c"]), st.integers(-2, 2)), min_size=1, max_size=6))
def test_those_of_one_key_are_ranked_by_order_then_by_rank(places: list[tuple[str, int]]) -> None:
    def main(group: Group) -> list[int]:
        key, order = places[group.rank]
        mine = group.subgroup(key, order)
        ranks = [vote[0] for vote in mine.gather_bytes(bytes([group.rank]))]
        assert (mine.world, ranks[mine.rank]) == (len(ranks), group.rank)
        assert (mine.id, mine.epoch) == (group.id, group.epoch)
        return ranks

    seen = together(len(places), main)
    for rank, (key, _) in enumerate(places):
        same = [r for r in range(len(places)) if places[r][0] == key]
        assert seen[rank] == sorted(same, key=lambda r: (places[r][1], r))


def test_a_number_is_as_good_a_key_as_its_text() -> None:
    def main(group: Group) -> None:
        assert group.subgroup(7 if group.rank else "7", order=-group.rank).rank == 1 - group.rank

    together(2, main)


def test_a_subgroup_of_one_gives_back_what_it_got() -> None:
    def main(group: Group) -> None:
        alone = group.subgroup(group.rank)
        assert (alone.rank, alone.world) == (0, 1)
        for n in SIZES:
            x = np.full(n, float(group.rank))
            assert (alone.all_reduce(x, "sum").value == group.rank).all()
            assert alone.all_gather(x).value.shape == (1, n)
        assert alone.gather_bytes(b"me") == [b"me"]
        state = atoll.SharedState({"w": np.full(3, float(group.rank))}, revision=group.rank)
        assert alone.sync(state).bytes_received == 0
        assert state.tensors["w"].tolist() == [group.rank] * 3
        assert state.revision == group.rank
        with pytest.raises(ValueError, match="rank"):
            alone.send(np.zeros(1), 1)

    together(3, main)
    main(LocalGroup())


def test_a_subgroup_has_subgroups() -> None:
    def main(group: Group) -> list[int]:
        half = group.subgroup(group.rank // 4)
        quarter = half.subgroup(half.rank // 2)
        return quarter.all_gather(np.array([group.rank])).value.ravel().tolist()

    assert together(8, main) == [[r // 2 * 2, r // 2 * 2 + 1] for r in range(8)]


# -- operations in rows and columns at once -------------------------------------------------------------------------


@pytest.mark.sampled(6)
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_collective_in_rows_and_columns_at_once_under_the_same_tags(
    shape: tuple[int, int], n: int, seed: int
) -> None:
    rows, columns = shape

    def main(group: Group) -> None:
        axes = grid(group, columns)
        dice = random.Random(seed * 100 + group.rank)
        for _ in range(2):
            works: dict[int, dict[str, Work]] = {}
            for axis in dice.sample([0, 1], 2):
                here().sleep(dice.choice([0.0, 0.01]) * dice.random())
                works[axis] = launch_all(axes[axis], group.rank, n, dice)
            for axis in dice.sample([0, 1], 2):
                ranks = ranks_of(axis, group.rank, rows, columns)
                check_all(works[axis], ranks, axes[axis].rank, n)
            x = np.ones(n)
            assert (group.all_reduce(x, "sum").value == rows * columns).all()  # the whole group is none the worse

    together(rows * columns, main, seed=seed, jitter=3.0, tie_break=seed, bytes_per_s=1e8)


@pytest.mark.parametrize("n", [SMALL, LARGE])
@pytest.mark.parametrize("shape", SHAPES)
def test_send_and_recv_round_rows_and_columns_at_once_under_one_tag(shape: tuple[int, int], n: int) -> None:
    rows, columns = shape

    def main(group: Group) -> None:
        axes = [*grid(group, columns), group]
        works = []
        for axis in axes:
            works.append(axis.recv_async(np.empty(n), (axis.rank - 1) % axis.world, tag=3))
        for axis in axes:
            axis.send_async(np.full(n, float(group.rank)), (axis.rank + 1) % axis.world, tag=3)
        wait_all([*group._membership.unawaited.values()])
        for i, axis in enumerate(axes):
            ranks = ranks_of(i, group.rank, rows, columns) if i < 2 else list(range(rows * columns))
            assert (works[i].wait().value == ranks[(axis.rank - 1) % axis.world]).all()

    together(rows * columns, main)


@pytest.mark.parametrize("n", SIZES)
def test_one_tag_in_two_subgroups_of_the_same_members_crossed_in_every_way(n: int) -> None:
    def main(group: Group) -> None:
        there, back = group.subgroup("there"), group.subgroup("back", order=-group.rank)
        assert back.rank == 1 - group.rank
        for ours in permutations([there, back, group]):
            for theirs in permutations([there, back, group]):
                order = (ours, theirs)[group.rank]
                works = []
                for axis in order:
                    x = np.full(n, 1.0 + axis._scope)
                    works.append(axis.all_gather_async(x + group.rank * 10, tag=5))
                    here().sleep(1e-3)  # the others' data comes before we have launched
                for axis, work in zip(order, works, strict=True):
                    ranks = [1, 0] if axis is back else [0, 1]
                    assert (work.wait().value == 1.0 + axis._scope + 10 * np.array(ranks)[:, None]).all()

    together(2, main)


def test_a_subgroup_works_on_while_another_sleeps() -> None:
    def main(group: Group) -> float:
        row, _ = grid(group, 2)
        if group.rank >= 2:
            here().sleep(5.0)
        for _ in range(10):
            row.all_reduce(np.ones(SMALL), "sum")
        return here().now()

    done = together(4, main)
    assert max(done[:2]) < 1.0
    assert min(done[2:]) > 5.0


# -- shared states ----------------------------------------------------------------------------------------------------


def test_the_same_names_in_two_subgroups_are_two_states() -> None:
    def main(group: Group) -> tuple[Any, ...]:
        row, column = grid(group, 2)
        w = np.full(4, float(group.rank))
        state = atoll.SharedState({"w": w}, revision=5 + group.rank // 2)
        assert row.sync(state).bytes_received == (32 if row.rank else 0)
        kept = w.copy()
        assert row.sync(state).bytes_received == 0
        other = atoll.SharedState({"w": np.full(4, 10.0 + group.rank)}, revision=1)
        column.sync(other)
        assert (w == kept).all()  # in one subgroup it's another state than in the other
        return kept.tolist(), state.revision, other.tensors["w"].tolist(), other.revision

    assert together(4, main) == [
        ([0.0] * 4, 5, [10.0] * 4, 1),
        ([0.0] * 4, 5, [11.0] * 4, 1),
        ([2.0] * 4, 6, [10.0] * 4, 1),
        ([2.0] * 4, 6, [11.0] * 4, 1),
    ]


def test_two_subgroups_sync_at_the_same_time() -> None:
    def main(group: Group) -> float:
        row, _ = grid(group, 2)
        w = np.full(50_000, float(group.rank))  # 0.4 s on this link
        group.barrier()
        began = here().now()
        result = row.sync(atoll.SharedState({"w": w}))
        assert result.bytes_received == (w.nbytes if row.rank else 0)
        assert (w == group.rank // 2 * 2).all()
        assert began + 0.3 < here().now() < began + 0.6
        return began

    assert len({round(began, 2) for began in together(4, main, bytes_per_s=1e6)}) == 1


def test_subgroups_of_different_worlds_sync_each_for_itself() -> None:
    def main(group: Group) -> list[float]:
        mine = group.subgroup("rest" if group.rank else "one")
        w = np.array([1.0 if group.rank < 2 else 2.0])
        mine.sync(atoll.SharedState({"w": w}))
        return w.tolist()

    assert together(4, main) == [[1.0], [2.0], [2.0], [2.0]]


def test_who_skips_a_revision_is_expelled_by_its_subgroup_and_the_other_keeps_its_own_count() -> None:
    def main(group: Group) -> str:
        row, _ = grid(group, 2)
        state = atoll.SharedState({"w": np.zeros(2)}, revision=3 + 10 * (group.rank // 2))
        row.sync(state)
        group.barrier()
        if group.rank == 1:
            state.revision = 13  # right in the other row, ahead here
        try:
            row.sync(state)
            group.barrier()
        except Unfit as error:
            return str(error)
        except PeerLost:
            row.sync(state)
        return f"{state.revision} {row.world}"

    results = together_left(4, main)
    assert "at revision 13, ahead of the group's 3" in results[1]
    assert [results[0], *results[2:]] == ["3 1", "13 2", "13 2"]


def together_left(size: int, main: Callable[[Group], Any]) -> list[Any]:
    """As `together`, but some may have been expelled before the end."""
    world = World()

    def program() -> Any:
        with atoll.join("master:1", min_world=size) as group:
            return main(group)

    for i in range(size):
        world.start(f"peer-{i}", program)
    world.run()
    return [p.program.result for p in world.processes]


@pytest.mark.parametrize("key", ["pair", ""])
def test_what_one_agreed_on_is_not_what_another_of_the_same_key_did(key: str) -> None:
    """Each remembers who agreed last. Taken for another's, nobody had, and who skips a revision would be believed."""

    def main(group: Group) -> str:
        if key:
            mine = group.subgroup(group.rank // 2).subgroup(key)
            first, second = (mine, None) if group.rank < 2 else (None, mine)
        else:  # the whole group has none
            mine = group.subgroup(key if group.rank == 0 else "others")
            first, second = group, mine if group.rank == 0 else None
        state = atoll.SharedState({"w": np.zeros(2)}, revision=3)
        for one in (first, second):
            if one is not None:
                one.sync(state)
            group.barrier()
        try:
            if first is not None:
                state.revision = 9 if group.rank == 0 else 3
                first.sync(state)
            group.barrier()
        except (Unfit, PeerLost) as error:
            return str(error)
        return f"went on at {state.revision}"

    results = together_left(4, main)
    assert all("at revision 9, ahead of the group's 3" in result for result in results)
