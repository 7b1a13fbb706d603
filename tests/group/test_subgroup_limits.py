"""Mistakes in one subgroup of several, and how many there can be."""

from collections.abc import Callable
from itertools import permutations
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.errors import Busy, Mismatch
from atoll.group.api import MOST_OPERATIONS, MOST_SCOPES, MOST_TAGS, MOST_VOTES
from atoll.group.facade import Group
from atoll.group.virtual import World
from atoll.group.work import wait_all
from atoll.runtime.api import here
from tests.group.subgrouped import LARGE, MIDDLE, SIZES, SMALL, grid
from tests.group.together import together

# -- mistakes ----------------------------------------------------------------------------------------------------------

WRONG: dict[str, Callable[[Group, int], Any]] = {
    "count": lambda group, n: group.all_reduce(np.ones(n + 1), "sum", tag=1),
    "kind": lambda group, n: group.all_gather(np.ones(n), tag=1),
    "gather_bytes": lambda group, n: group.gather_bytes(b"x", tag=1),
    "subgroup": lambda group, n: group.subgroup("x", tag=1),
}


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("what", WRONG)
def test_a_mismatch_in_one_subgroup_leaves_the_others_alone(what: str, n: int) -> None:
    def main(group: Group) -> str:
        row, column = grid(group, 2)
        epoch, text = group.epoch, ""
        beside = [axis.all_reduce_async(np.ones(n), "sum", tag=2, out=np.empty(n)) for axis in (row, column, group)]
        if group.rank == 1:
            with pytest.raises(Mismatch):
                WRONG[what](row, n)
        elif group.rank == 0:
            with pytest.raises(Mismatch) as error:
                row.all_reduce(np.ones(n), "sum", tag=1)
            text = str(error.value)
        else:
            assert row.all_reduce(np.ones(n), "sum", tag=1).value[0] == 2
        assert column.all_reduce(np.ones(n), "sum", tag=1).value[0] == 2
        assert [r.value[0] for r in wait_all(beside)] == [2, 2, 4]
        assert (row.all_reduce(np.ones(n), "sum", tag=1).value == 2).all()
        assert group.epoch == epoch
        return text

    texts = together(4, main)
    assert f"rank 0: all_reduce sum float64 {n}" in texts[0]
    assert "rank 1: " in texts[0]


def test_subgroup_and_gather_bytes_are_a_mismatch_for_both() -> None:
    def main(group: Group) -> None:
        with pytest.raises(Mismatch, match="rank 0: gather; rank 1: subgroup"):
            group.subgroup("a") if group.rank else group.gather_bytes(b"a")
        assert group.subgroup("a").world == 2

    together(2, main)


def test_update_topology_is_for_the_whole_group() -> None:
    def main(group: Group) -> None:
        row, column = grid(group, 2)
        for axis in (row, column):
            with pytest.raises(ValueError, match="whole group"):
                axis.update_topology()
        group.update_topology()
        assert column.all_reduce(np.ones(SMALL), "sum").value[0] == 2

    together(4, main)


def test_closing_a_subgroup_closes_nothing() -> None:
    def main(group: Group) -> None:
        with group.subgroup("all") as everybody:
            everybody.barrier()
        everybody.barrier()
        assert group.all_reduce(np.ones(SMALL), "sum").value[0] == group.world

    together(2, main)


@pytest.mark.parametrize("later", ["row", "column"])
def test_who_waits_in_update_topology_while_all_others_wait_for_it_gets_a_mismatch(later: str) -> None:
    """Ranks 1 and 2 wait for rank 0, rank 3 for one of them: nobody can go on."""

    def main(group: Group) -> str:
        row, column = grid(group, 2)
        calls: list[Callable[[], Any]] = [
            group.update_topology,
            lambda: row.all_reduce(np.ones(LARGE), "sum", tag=1),
            lambda: column.all_reduce(np.ones(SMALL), "sum", tag=2),
            lambda: (row if later == "row" else column).all_reduce(np.ones(MIDDLE), "sum", tag=3),
        ]
        here().sleep(0.01 * (3 - group.rank))
        with pytest.raises(Mismatch, match="update_topology") as error:
            calls[group.rank]()
        for axis in (row, column, group):
            for n in SIZES:
                for tag in range(4):
                    assert axis.all_reduce(np.ones(n), "sum", tag=tag).value[0] == axis.world
        return str(error.value)

    assert len(set(together(4, main))) == 1


@pytest.mark.parametrize("tags", list(permutations((5, 6, 7))))
def test_a_row_at_work_is_no_mismatch_while_the_other_waits_in_update_topology(tags: tuple[int, ...]) -> None:
    """Tags may interleave: each of the two has voted for something the other hasn't, yet both will."""

    def main(group: Group) -> None:
        row, _ = grid(group, 2)
        if group.rank >= 2:
            here().sleep(0.01)
            works = []
            for tag in (5, 6, 7) if row.rank else tags:
                works.append(row.all_reduce_async(np.ones(SMALL), "sum", tag=tag))
                here().sleep(1e-3)
            assert [r.value[0] for r in wait_all(works)] == [2] * 3
        group.update_topology()

    together(4, main)


def test_what_a_subgroup_heard_of_newcomers_is_kept_until_all_have_heard_it() -> None:
    world = World()

    def incumbent() -> list[bool]:
        with atoll.join("master:1", min_world=4) as group:
            row, _ = grid(group, 2)
            here().sleep(0.01 if group.rank < 2 else 0.1)
            row.barrier()  # only the second row votes after the newcomer has come
            flags = [group.peers_pending()]
            if group.peers_pending():
                group.update_topology()
            group.barrier()
            flags.append(group.peers_pending())
            group.update_topology()
            group.barrier()
            return [*flags, group.world == 5, row.world == 2]

    def newcomer() -> None:
        with atoll.join("master:1") as group:
            group.barrier()

    for i in range(4):
        world.start(f"peer-{i}", incumbent)
    world.start("new", newcomer, delay_s=0.05)
    world.run()
    assert [p.program.result for p in world.processes[:4]] == [[False, True, True, True]] * 4


# -- limits ------------------------------------------------------------------------------------------------------------


def test_a_key_may_be_long_but_not_longer() -> None:
    def main(group: Group) -> None:
        assert group.subgroup("é" * 128).world == 2
        with pytest.raises(ValueError, match="128 letters, not 129"):
            group.subgroup("k" * 129)
        with pytest.raises(TypeError):
            group.subgroup("k", order=0.5)  # type: ignore[arg-type]
        assert group.subgroup("k", order=np.int32(group.rank)).rank == group.rank  # type: ignore[arg-type]

    together(2, main)


def test_when_all_numbers_are_used_up_more_subgroups_are_refused_and_the_last_ones_are_good() -> None:
    def main(group: Group) -> None:
        group._membership.scopes = MOST_SCOPES - 3
        row, column = grid(group, 2)
        for _ in range(2):
            with pytest.raises(Busy, match="keep them"):
                group.subgroup("one too many")
        for n in SIZES:
            for tag in (0, MOST_TAGS - 1):
                works = [axis.all_reduce_async(np.ones(n), "sum", tag=tag) for axis in (row, column, group)]
                assert [r.value[0] for r in wait_all(works)] == [2, 2, 4]
        other, x = 1 - column.rank, np.zeros(3)
        works = [column.send_async(np.ones(3), other, tag=tag), column.recv_async(x, other, tag=tag)]
        wait_all(works)
        assert (x == 1).all()
        with pytest.raises(ValueError, match="a tag is a number"):
            column.barrier(tag=MOST_TAGS)

    together(4, main)


@pytest.mark.parametrize("n", SIZES)
def test_sixteen_operations_in_each_subgroup_and_no_more(n: int) -> None:
    def main(group: Group) -> None:
        axes = [group, *grid(group, 2)]
        works = []
        for axis in axes:
            for tag in range(MOST_OPERATIONS):
                works.append(axis.all_reduce_async(np.ones(n), "sum", tag=tag, out=np.empty(n)))
            with pytest.raises(Busy, match="await one first"):
                axis.barrier(tag=99)
            with pytest.raises(Busy):
                axis.send(np.ones(1), 1 - axis.rank % 2, tag=99)
        with pytest.raises(Busy):
            group.subgroup("x", tag=99)
        assert [r.value[0] for r in wait_all(works)] == [4] * 16 + [2] * 32
        axes[1].barrier(tag=99)

    together(4, main)


def test_the_limit_of_all_subgroups_together_is_told_before_the_master_minds() -> None:
    def main(group: Group) -> None:
        many = [group.subgroup("all") for _ in range(MOST_VOTES // MOST_OPERATIONS + 1)]
        works = [axis.all_reduce_async(np.ones(2), "sum", tag=t) for axis in many[:-1] for t in range(MOST_OPERATIONS)]
        with pytest.raises(Busy, match="in all subgroups together"):
            many[-1].barrier()
        assert all((r.value == 2).all() for r in wait_all(works))
        many[-1].barrier()

    together(2, main)


def test_one_that_sleeps_while_the_others_are_far_ahead_in_many_subgroups_loses_nothing() -> None:
    """What comes early is kept: here more than 64 MiB of it."""

    def main(group: Group) -> None:
        many = [group.subgroup("all") for _ in range(10)]
        if group.rank == 0:
            here().sleep(0.5)
        x = np.ones(32_000)
        works = [axis.all_reduce_async(x, "sum", tag=tag, out=x.copy()) for axis in many for tag in range(15)]
        assert {work.ticket.algorithm for work in works} == {"eager"}
        assert all(r.value[0] == 3 for r in wait_all(works, timeout_s=60))

    together(3, main, latency_s=0.02, one_machine=False)
