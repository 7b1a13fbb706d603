"""Rows and columns of one group: ranks and votes of their own, links, losses and epochs in common."""

import random
import threading
from collections.abc import Callable, Iterator
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import atoll
from atoll.errors import Busy, Mismatch, PeerLost, Unfit
from atoll.group.api import MOST_OPERATIONS, MOST_SCOPES, MOST_TAGS, MOST_VOTES
from atoll.group.facade import Group
from atoll.group.local import LocalGroup
from atoll.group.virtual import World
from atoll.group.work import Work, wait_all
from atoll.runtime.api import here
from tests.group.grid import COLUMNS, NOWHERE, Grid
from tests.group.peer_process import PeerProcess
from tests.group.together import together

SMALL, MIDDLE, LARGE = SIZES = 6, 20_000, 40_000
"""Elements of float64: data travels in the vote, leaves with it, or waits for all votes."""
SHAPES = [(2, 2), (2, 3)]


def grid(group: Group, columns: int) -> tuple[Group, Group]:
    """This peer's row and column, places by rank."""
    row, column = divmod(group.rank, columns)
    return group.subgroup(f"row {row}"), group.subgroup(f"column {column}")


def ranks_of(axis: int, rank: int, rows: int, columns: int) -> list[int]:
    """Ranks in the whole group of those in the row (axis 0) or column (1) of `rank`, from the shape alone."""
    table = np.arange(rows * columns).reshape(rows, columns)
    row, column = divmod(rank, columns)
    return (table[row] if axis == 0 else table[:, column]).tolist()


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


def launch_all(axis: Group, rank: int, n: int, dice: random.Random) -> dict[str, Work]:
    """One of each kind, every kind under the same tag on every axis, in any order."""
    x = np.arange(n) + 100.0 * rank
    calls: dict[str, Callable[[int], Work]] = {
        "all_reduce": lambda tag: axis.all_reduce_async(x, "sum", tag=tag, out=np.empty(n)),
        "reduce_scatter": lambda tag: axis.reduce_scatter_async(x, "max", tag=tag),
        "all_gather": lambda tag: axis.all_gather_async(x, tag=tag),
        "broadcast": lambda tag: axis.broadcast_async(x.copy(), axis.world - 1, tag=tag),
        "all_to_all": lambda tag: axis.all_to_all_async(np.array_split(x, axis.world), tag=tag),
        "gather_bytes": lambda tag: axis.gather_bytes_async(bytes([rank]), tag=tag),
    }
    tags = {kind: tag for tag, kind in enumerate(calls)}
    return {kind: calls[kind](tags[kind]) for kind in dice.sample(list(calls), len(calls))}


def check_all(works: dict[str, Work], ranks: list[int], place: int, n: int) -> None:
    inputs = np.arange(n) + 100.0 * np.array(ranks)[:, None]
    want = {
        "all_reduce": inputs.sum(0),
        "reduce_scatter": np.array_split(inputs.max(0), len(ranks))[place],
        "all_gather": inputs,
        "broadcast": inputs[-1],
    }
    for kind, values in want.items():
        assert np.array_equal(works[kind].wait().value, values), kind
    parts = [np.array_split(row, len(ranks))[place] for row in inputs]
    assert all(np.array_equal(a, b) for a, b in zip(works["all_to_all"].wait().value, parts, strict=True))
    assert works["gather_bytes"].wait().value == [bytes([r]) for r in ranks]


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


# -- losses ------------------------------------------------------------------------------------------------------------


class Peers:
    """Members of a `Grid` in virtual time and what each has said, by name."""

    def __init__(self, rounds: int, size: int, pause_s: float = 0.0, **options: Any) -> None:
        self.world, self.rounds, self.size, self.pause_s = World(**options), rounds, size, pause_s
        self.said: dict[str, list[dict[str, Any]]] = {}

    def start(self, name: str, min_world: int = 1, delay_s: float = 0.0) -> None:
        said = self.said[name] = []

        luck = random.Random(f"{self.world.seed} {name}")

        def say(event: str, **more: Any) -> None:
            said.append({"event": event, **more})
            if event == "round":
                here().sleep(self.pause_s * luck.choice([0.0, luck.random()]))  # sometimes through several epochs

        def main() -> str:
            with atoll.join("master:1", min_world=min_world) as group:
                Grid(group, self.rounds, say, self.size).run()
                group.barrier()
                return "done"

        self.world.start(name, main, delay_s)

    def crash(self, name: str, at_s: float) -> None:
        process = next(p for p in self.world.processes if p.name == name)
        self.world.loop.post(round(at_s * 1e9), process.crash)

    def replace_one(self, dice: random.Random, newcomer: str, at_s: float) -> None:
        """Crash a peer whose shard somebody else holds too, if there is one then; later comes a new one."""

        def now() -> None:
            alive = {p.name for p in self.world.processes if not p.dead and not p.program.ended}
            places = {name: said[0]["place"] for name in alive if (said := self.events(name, "made"))}
            holders = {places[name]: name for name in sorted(alive) if self.events(name, "round")}
            spare = [name for place, name in holders.items() if (place + COLUMNS) % NOWHERE in holders]
            if spare:
                self.crash(dice.choice(spare), 0.0)
                self.start(newcomer, delay_s=0.01 + 0.1 * dice.random())

        self.world.loop.post(round(at_s * 1e9), now)

    def events(self, name: str, kind: str) -> list[dict[str, Any]]:
        return [said for said in self.said[name] if said["event"] == kind]


def check_rounds(rounds: list[dict[str, Any]]) -> None:
    """Sums tell whose they are, so: who took part in a round is told alike by all who did, and states are equal."""
    by_revision: dict[int, list[dict[str, Any]]] = {}
    for said in rounds:
        by_revision.setdefault(said["revision"], []).append(said)
    hashes: dict[tuple[int, int], str] = {}
    for revision, seen in by_revision.items():
        for said in seen:
            members = said["row"] | said["column"]
            mask_of_row, mask_of_column = 3 << said["place"] // 2 * 2, 5 << said["place"] % 2
            assert said["row"] & ~mask_of_row == said["column"] & ~mask_of_column == 0, said
            assert said["row"] & said["column"] == 1 << said["place"], said
            assert members.bit_count() <= said["world"]
            if said["world"] == NOWHERE:
                assert (said["row"], said["column"]) == (mask_of_row, mask_of_column)
            shard = said["place"] % 2
            assert hashes.setdefault((shard, revision), said["hash"]) == said["hash"], f"shard {shard} at {revision}"


@pytest.mark.parametrize("victim", range(4))
def test_a_loss_while_data_moves_on_both_axes_fails_it_on_both_for_all(victim: int) -> None:
    """Also for the one that has neither its row nor its column with the victim: the epoch is over."""
    world = World(bytes_per_s=1e6)

    def main() -> list[Any]:
        with atoll.join("master:1", min_world=4) as group:
            axes, me, told = grid(group, 2), group.rank, []
            x = np.full(LARGE, float(me))
            works = [axis.all_reduce_async(x.copy(), "sum", tag=1) for axis in axes]  # 320 kB each
            for work in works:
                with pytest.raises(PeerLost) as error:
                    work.wait()
                assert (work.ticket.tensor == me).all()
                told.append(str(error.value))
            told.append((group.epoch, group.world, group.peers_pending()))
            for i, axis in enumerate(axes):
                left = [r for r in ranks_of(i, me, 2, 2) if r != victim]
                assert axis.world == len(left)
                assert (axis.all_reduce(x.copy(), "sum", tag=1).value == sum(left)).all()
            group.barrier()
            return told

    for i in range(4):
        world.start(f"peer-{i}", main)
    world.loop.post(50_000_000, world.processes[victim].crash)
    world.run()
    told = [p.program.result for i, p in enumerate(world.processes) if i != victim]
    assert told[0] == told[1] == told[2]
    assert told[0][0] == told[0][1]


@pytest.mark.sampled(4)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("victim", range(4))
def test_a_loss_fails_operations_on_both_axes_and_both_heal(victim: int, size: int) -> None:
    peers = Peers(rounds=60, size=size, latency_s=1e-3, bytes_per_s=1e8 if size == SMALL else 1e7)
    for i in range(4):
        peers.start(f"peer-{i}", min_world=4)
    peers.crash(f"peer-{victim}", at_s=0.153)
    peers.start("newcomer", delay_s=0.3)
    peers.world.run()
    survivors = [f"peer-{i}" for i in range(4) if i != victim]
    assert [p.program.result for p in peers.world.processes if p.name != f"peer-{victim}"] == ["done"] * 4

    lost = [peers.events(name, "lost") for name in survivors]
    assert lost[0] == lost[1] == lost[2]
    assert len(lost[0]) == 1
    assert "connection lost" in lost[0][0]["message"]
    for said in [said for name in survivors for said in peers.events(name, "failed")]:
        for result, untouched in zip(said["outcomes"], said["untouched"], strict=True):
            assert untouched == (result == "PeerLost")  # else it was decided in time

    rounds = {name: peers.events(name, "round") for name in peers.said}
    check_rounds([said for seen in rounds.values() for said in seen])
    three = [said for name in survivors for said in rounds[name] if said["world"] == 3]
    assert three
    for said in three:  # the row and the column of those who are left
        left = 15 & ~(1 << victim)
        row, column = 3 << said["place"] // 2 * 2, 5 << said["place"] % 2
        assert (said["row"], said["column"]) == (row & left, column & left)
    assert peers.events("newcomer", "made")[0]["place"] == victim
    for name in [*survivors, "newcomer"]:
        last = rounds[name][-1]
        assert (last["revision"], last["world"]) == (60, 4)
        assert {last["row"], last["column"]} <= {3, 12, 5, 10}


@pytest.mark.sampled(5)
@pytest.mark.parametrize("seed", range(60))
def test_a_grid_survives_losses_and_newcomers_at_any_moment(seed: int) -> None:
    dice = random.Random(seed)
    peers = Peers(
        rounds=60,  # for half a second: nobody comes after the end
        size=dice.choice(SIZES),
        pause_s=0.02,
        seed=seed,
        latency_s=dice.choice([50e-6, 1e-3]),
        bytes_per_s=dice.choice([1e7, 1e9]),
        jitter=dice.choice([0.0, 3.0]),
        tie_break=seed,
        one_machine=dice.random() < 0.5,
    )
    for i in range(4):
        peers.start(f"peer-{i}", min_world=4)
    for i in range(dice.randint(1, 4)):
        peers.replace_one(dice, f"late-{i}", at_s=dice.random() * dice.choice([0.02, 0.2]))
    peers.world.run()
    alive = [p for p in peers.world.processes if not p.dead]
    assert [p.program.result for p in alive] == ["done"] * len(alive)
    check_rounds([said for name in peers.said for said in peers.events(name, "round")])
    sequences: dict[int, set[tuple[int, str]]] = {}
    for name in peers.said:
        for said in peers.events(name, "lost"):
            sequences.setdefault(said["epoch"], set()).add((said["now"], said["message"]))
    assert all(len(told) == 1 for told in sequences.values()), sequences


def test_survivors_keep_a_subgroup_and_newcomers_are_not_in_it() -> None:
    world = World()

    def incumbent() -> list[tuple[int, int]]:
        with atoll.join("master:1", min_world=4) as group:
            axes = grid(group, 2)
            seen = []

            def use() -> None:
                for axis in axes:
                    assert axis.all_reduce(np.ones(LARGE), "sum").value[0] == axis.world
                seen.append((axes[0].world, axes[1].world))

            use()
            with pytest.raises(PeerLost):
                group.barrier()  # until one is lost
            use()
            here().sleep(0.2)
            group.barrier()
            assert group.peers_pending()
            group.update_topology()
            use()
            assert group.subgroup("all").all_reduce(np.ones(LARGE), "sum").value[0] == 4
            group.barrier()
            return seen

    def victim() -> None:
        with atoll.join("master:1", min_world=4) as group:
            for axis in grid(group, 2):
                axis.all_reduce(np.ones(LARGE), "sum")

    def newcomer() -> None:
        with atoll.join("master:1") as group:
            assert group.world == 4
            assert group.subgroup("all").all_reduce(np.ones(LARGE), "sum").value[0] == 4
            group.barrier()

    for i in range(3):
        world.start(f"peer-{i}", incumbent)
    world.start("victim", victim, delay_s=1e-3)
    world.start("new", newcomer, delay_s=0.1)
    world.run()
    results = [p.program.result for p in world.processes[:3]]
    assert results == [[(2, 2), (2, 2), (2, 2)], [(2, 2), (2, 1), (2, 1)], [(2, 2), (1, 2), (1, 2)]]


# -- for real ----------------------------------------------------------------------------------------------------------


def test_rows_and_columns_of_threads_over_tcp() -> None:
    errors: list[BaseException] = []
    hashes: dict[str, list[str]] = {}

    def body(address: str) -> None:
        try:
            with atoll.join(address, min_world=4) as group:
                row, column = grid(group, 2)
                dice = random.Random(group.rank)
                for n in SIZES:
                    works = {
                        axis: launch_all((row, column)[axis], group.rank, n, dice) for axis in dice.sample([0, 1], 2)
                    }
                    for axis in works:
                        ranks = ranks_of(axis, group.rank, 2, 2)
                        check_all(works[axis], ranks, (row, column)[axis].rank, n)
                state = atoll.SharedState({"w": np.full(LARGE, float(group.rank))})
                column.sync(state)
                hashes.setdefault(column._name, []).append(state.digest())
                got = np.empty(LARGE)
                other = 1 - row.rank
                wait_all([row.send_async(state.tensors["w"], other), row.recv_async(got, other)])
                assert (got == 1 - group.rank % 2).all()
                group.barrier()
        except BaseException as error:
            errors.append(error)

    with atoll.Master() as master:
        threads = [threading.Thread(target=body, args=(master.address,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    assert not errors, errors
    assert sorted(hashes) == ["column 0", "column 1"]
    assert all(len(seen) == 2 and len(set(seen)) == 1 for seen in hashes.values())


@pytest.fixture
def members() -> Iterator[Callable[..., PeerProcess]]:
    started: list[PeerProcess] = []

    def start_one(address: str, *options: str) -> PeerProcess:
        started.append(PeerProcess(address, 10**6, *options, module="tests.group.grid"))
        return started[-1]

    yield start_one
    for peer in started:
        peer.process.kill()
        peer.process.wait()


def test_a_grid_of_processes_heals_after_a_kill(members: Any) -> None:
    with atoll.Master() as master:
        four = [members(master.address, "--min-world", "4") for _ in range(4)]
        for peer in four:
            peer.wait_for(lambda s: s["event"] == "round" and s["revision"] >= 20)
        victim = four[1].events("made")[0]["place"]
        four[1].process.kill()
        survivors = [four[0], *four[2:]]
        left = 15 & ~(1 << victim)
        for peer in survivors:
            said = peer.wait_for(lambda s: s["event"] == "round" and s["world"] == 3)
            row, column = 3 << said["place"] // 2 * 2, 5 << said["place"] % 2
            assert (said["row"], said["column"]) == (row & left, column & left)
        newcomer = members(master.address)
        whole = newcomer.wait_for(lambda s: s["event"] == "round" and s["world"] == 4)
        assert whole["place"] == victim
        for peer in survivors:
            peer.wait_for(lambda s: s["event"] == "round" and s["revision"] >= whole["revision"] + 20)
            assert len(peer.events("lost")) == 1
    lost = [{k: v for k, v in peer.events("lost")[0].items() if k != "at"} for peer in survivors]
    assert lost[0] == lost[1] == lost[2]
    check_rounds([said for peer in (*four, newcomer) for said in peer.events("round")])
