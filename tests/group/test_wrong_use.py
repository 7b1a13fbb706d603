"""Callers' mistakes: each gets its own error, nobody hangs, the group is as good afterwards."""

import gc
import re
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import atoll
from atoll.errors import Busy, Expelled, InvalidConfig, InvalidTensor, MasterLost, Mismatch, PeerLost
from atoll.group.facade import Group
from atoll.group.local import LocalGroup
from atoll.group.virtual import World
from atoll.group.work import wait_all
from atoll.runtime.api import here
from atoll.runtime.real import RealNode
from tests.group.together import together

VOTED, EAGER, COMMENCED = SIZES = 4, 20_000, 40_000
"""Elements of float64: data travels in the vote, leaves with it, or waits for all votes."""

Call = Callable[[Group, int], Any]


def reduce(dtype: Any = np.float64, op: str = "sum", codec: str | None = None, more: int = 0, tag: int = 0) -> Call:
    return lambda group, n: group.all_reduce(np.ones(n + more, dtype), op, codec=codec, tag=tag)


def still_good(group: Group, epoch: int) -> None:
    """Nobody was removed, no link made anew, and every tag works."""
    assert group.epoch == epoch
    for tag in (0, 1):
        for n in (3, *SIZES):
            x = np.ones(n)
            group.all_reduce(x, "sum", tag=tag)
            assert (x == group.world).all()


DIFFERENCES: dict[str, tuple[Call, list[str]]] = {
    "count": (reduce(more=5), ["{n}", "{n5}"]),
    "fewer than ranks": (lambda group, n: group.all_reduce(np.ones(1), "sum"), ["{n}", "float64 1 "]),
    "dtype": (reduce(np.float32), ["float64", "float32"]),
    "dtype of equal size": (reduce(np.int64), ["float64", "int64"]),
    "op": (reduce(op="max"), ["sum", "max"]),
    "codec": (reduce(codec="bf16"), ["codec none", "codec bf16"]),
    "reduce_scatter": (lambda group, n: group.reduce_scatter(np.ones(n), "sum"), ["all_reduce", "reduce_scatter"]),
    "all_gather": (lambda group, n: group.all_gather(np.ones(n)), ["all_reduce", "all_gather"]),
    "broadcast": (lambda group, n: group.broadcast(np.ones(n), group.rank), ["all_reduce", "broadcast"]),
    "gather_bytes": (lambda group, n: group.gather_bytes(b"x"), ["all_reduce", "gather"]),
    "barrier": (lambda group, n: group.barrier(), ["all_reduce", "barrier"]),
    "sync": (lambda group, n: group.sync(atoll.SharedState({"w": np.ones(n)})), ["all_reduce", "sync"]),
    "update_topology": (lambda group, n: group.update_topology(), ["all_reduce", "update_topology"]),
}


@pytest.mark.parametrize("what", DIFFERENCES)
@pytest.mark.parametrize("n", SIZES)
def test_members_who_ask_for_different_things_all_get_the_same_mismatch(what: str, n: int) -> None:
    other, words = DIFFERENCES[what]

    def main(group: Group) -> list[str]:
        epoch, texts = group.epoch, []
        for world_odd in range(3):
            for late in (0.0, 0.01, -0.01):
                odd = group.rank == world_odd
                here().sleep(max(0.0, late if odd else -late))
                with pytest.raises(Mismatch) as error:
                    (other if odd else reduce())(group, n)
                texts.append(str(error.value))
                still_good(group, epoch)
        return texts

    results = together(3, main)
    assert results[0] == results[1] == results[2]
    for text in results[0]:
        assert all(re.search(rf"{word.format(n=n, n5=n + 5)}\b", text + " ") for word in words), text


@pytest.mark.parametrize("size", [2, 3])
def test_broadcasts_from_different_roots_are_a_mismatch(size: int) -> None:
    def main(group: Group) -> None:
        epoch = group.epoch
        for n in SIZES:
            with pytest.raises(Mismatch, match=r"rank 0: broadcast .* root 0; rank 1: broadcast .* root 1"):
                group.broadcast(np.ones(n), group.rank)
        still_good(group, epoch)

    together(size, main)


def test_a_mismatch_may_be_repeated_for_ever() -> None:
    def main(group: Group) -> None:
        epoch = group.epoch
        for i in range(100):
            with pytest.raises(Mismatch):
                group.all_reduce(np.ones(SIZES[(i + group.rank) % 3]), "sum")
            with pytest.raises(Mismatch):
                group.all_reduce(np.ones(1 + (i + group.rank) % 2), "sum")
        still_good(group, epoch)

    together(2, main)


def test_a_mismatch_under_one_tag_leaves_the_others_alone() -> None:
    def main(group: Group) -> None:
        epoch = group.epoch
        good = [group.all_reduce_async(np.ones(n), "sum", tag=t) for t, n in enumerate(SIZES, 1)]
        with pytest.raises(Mismatch, match="tag 5"):
            group.all_reduce(np.ones(group.rank + 1), tag=5)
        assert all((r.value == 2).all() for r in wait_all(good))
        still_good(group, epoch)

    together(2, main)


@pytest.mark.parametrize("late", range(3))
@pytest.mark.parametrize("n", [EAGER, COMMENCED])
def test_data_that_turns_out_to_have_no_encoding_fails_for_all_alike(n: int, late: int) -> None:
    """Finite everywhere, but too wide a range for the codec: only the data phase finds out."""

    def main(group: Group) -> str:
        epoch = group.epoch
        if group.rank == late:
            here().sleep(0.1)
        x = np.ones(n)
        x[::2] = -1.7e308 if group.rank == 0 else 1
        x[1::2] = 1.7e308 if group.rank == 0 else 1
        before = x.copy()
        with pytest.raises(Mismatch, match=r"rank \d: uint8 needs finite values") as error:
            group.all_reduce(x, "max", codec="uint8")
        assert x.tobytes() == before.tobytes()
        still_good(group, epoch)
        return str(error.value)

    assert len(set(together(3, main))) == 1


# -- found before anything leaves: the others never hear of it -----------------------------------------------------


def alone_and_together(check: Callable[[Group], None]) -> None:
    def main(group: Group) -> None:
        epoch = group.epoch
        check(group)
        still_good(group, epoch)

    check(LocalGroup())
    together(2, main)


def test_a_state_that_could_not_be_written_is_refused_before_anybody_votes() -> None:
    frozen = np.ones(3)
    frozen.flags.writeable = False

    def check(group: Group) -> None:
        with pytest.raises(InvalidTensor, match="w is read-only"):
            group.sync(atoll.SharedState({"v": np.ones(3), "w": frozen}))
        group.sync(atoll.SharedState({"v": np.ones(3), "w": frozen}, free=["w"]))
        group.sync(atoll.SharedState({"v": np.ones(3), "w": frozen}, strategy="send"))

    alone_and_together(check)


def test_arguments_that_can_not_be_meant() -> None:
    def check(group: Group) -> None:
        x = np.ones(3)
        for call, error, text in [
            (lambda: group.all_reduce(x, "mean"), ValueError, "sum, avg, prod, max, min, not 'mean'"),
            (lambda: group.reduce_scatter(x, "median"), ValueError, "not 'median'"),
            (lambda: group.broadcast(x, group.world), ValueError, f"0 to {group.world - 1}, not {group.world}"),
            (lambda: group.broadcast(x, -1), ValueError, "not -1"),
            (lambda: group.all_reduce(x, tag=-1), ValueError, "tag .* 0 to 65535, not -1"),
            (lambda: group.barrier(tag=65536), ValueError, "not 65536"),
            (lambda: group.all_reduce(x, codec="uint4"), InvalidConfig, "unknown codec 'uint4'"),
            (lambda: group.gather_bytes(bytes(4097)), ValueError, "at most 4096 bytes, not 4097"),
            (lambda: atoll.SharedState({"w": x}, free=["v"]), InvalidTensor, "v"),
            (lambda: atoll.SharedState({"w": x}, strategy="most"), ValueError, "not 'most'"),  # type: ignore[arg-type]
        ]:
            with pytest.raises(error, match=text):
                call()

    alone_and_together(check)


GRID = np.ones((4, 4))
UNFIT: list[tuple[Any, str]] = [
    (GRID[:, 1], "not contiguous"),
    (GRID.T[:2], "not contiguous"),
    (torch.ones(4, 4)[:, 1], "not contiguous"),
    ([1.0, 2.0], "list"),
    (3.0, "float"),
    (None, "NoneType"),
    (np.array([None, 1]), r"object\[2\]"),
    (np.array([True]), r"bool\[1\]"),
    (np.array([1j]), r"complex128\[1\]"),
    (np.array(["a"]), "can't take part"),
    (torch.ones(2, dtype=torch.complex64), r"complex64\[2\]"),
    (torch.ones(2, dtype=torch.bool), r"bool\[2\]"),
]


def test_what_can_not_be_reduced() -> None:
    def check(group: Group) -> None:
        for unfit, text in UNFIT:
            with pytest.raises(InvalidTensor, match=text) as error:
                group.all_reduce(unfit, tag=3)
            assert isinstance(error.value, ValueError)
            assert "all_reduce with tag 3" in str(error.value)

    alone_and_together(check)


def test_rows_that_hold_nothing_can_not_be_counted_by_who_gets_them() -> None:
    def check(group: Group) -> None:
        with pytest.raises(InvalidTensor, match=r"all_to_all with tag 3: rows of \[2, 0\] hold nothing"):
            group.all_to_all([np.ones((3, 2, 0))] * group.world, tag=3)
        assert group.all_to_all([np.ones((0, 2))] * group.world).value[0].shape == (0, 2)

    alone_and_together(check)


def test_an_output_that_can_not_hold_the_result() -> None:
    def check(group: Group) -> None:
        x, frozen = np.ones(7), np.ones(7)
        frozen.flags.writeable = False
        for out, text in [
            (np.ones(8), "7 elements of float64"),
            (np.ones(1), "7 elements"),
            (np.ones(7, np.float32), "float64"),
            (np.ones((7, 2))[:, 0], "not contiguous"),
            ([0.0] * 7, "list"),
            (frozen, "read-only"),
        ]:
            with pytest.raises(InvalidTensor, match=text):
                group.all_reduce(x, out=out)
        for call in (
            lambda: group.all_reduce(frozen),
            lambda: group.broadcast(frozen),
            lambda: group.all_gather(x, out=np.ones(7 * group.world + 1)),
            lambda: group.reduce_scatter(x, out=np.ones(7 // group.world - 1)),
        ):
            with pytest.raises(InvalidTensor):
                call()
        assert (x == 1).all()

    alone_and_together(check)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("codec", ["bf16", "uint8"])
def test_a_codec_refuses_what_is_not_finite_and_integers(codec: str, bad: float) -> None:
    def check(group: Group) -> None:
        for like in (np.ones(5), np.ones(5, np.float16), torch.ones(5, dtype=torch.bfloat16), torch.ones(5)):
            like[3] = bad
            with pytest.raises(InvalidTensor, match=r"all_reduce with tag 8: \w+\[5\] holds NaN or infinity"):
                group.all_reduce(like, codec=codec, tag=8)
        with pytest.raises(InvalidTensor, match=r"int32\[5\].*floating point"):
            group.all_reduce(np.ones(5, np.int32), codec=codec)

    alone_and_together(check)


def test_one_that_leaves_over_its_nan_does_not_harm_the_others() -> None:
    world = World()

    def main() -> str:
        with atoll.join("master:1", min_world=3) as group:
            x = np.ones(5)
            if group.rank == 1:
                x[0] = np.nan
                with pytest.raises(InvalidTensor):
                    group.all_reduce(x, codec="uint8")
                return "left"
            with pytest.raises(PeerLost, match="left"):
                group.all_reduce(x, "sum", codec="uint8")
            assert (x == 1).all()
            group.all_reduce(x, "sum", codec="uint8")
            assert (x == 2).all()
            return "went on"

    for i in range(3):
        world.start(f"peer-{i}", main)
    world.run()
    assert [p.program.result for p in world.processes] == ["went on", "left", "went on"]


# -- too much at once --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", SIZES)
def test_a_tag_in_use_is_refused_and_the_first_goes_on(n: int) -> None:
    def main(group: Group) -> None:
        epoch, x = group.epoch, np.ones(n)
        work = group.all_reduce_async(x, "sum", tag=3)
        for call in (
            lambda: group.all_reduce(np.ones(n), tag=3),
            lambda: group.barrier(tag=3),
            lambda: group.gather_bytes(b"", tag=3),
        ):
            with pytest.raises(Busy, match="tag 3 is in use"):
                call()
        work.wait()
        assert (x == 2).all()
        still_good(group, epoch)

    together(2, main)


def test_the_seventeenth_operation_is_refused() -> None:
    def main(group: Group) -> None:
        epoch = group.epoch
        works = [group.all_reduce_async(np.ones(3), "sum", tag=t) for t in range(16)]
        for call in (lambda: group.all_reduce(np.ones(3), tag=16), lambda: group.barrier(tag=16)):
            with pytest.raises(Busy, match="16 operations"):
                call()
        assert all((r.value == 2).all() for r in wait_all(works))
        still_good(group, epoch)

    together(2, main)


def test_no_change_of_members_and_no_sync_before_all_has_been_awaited() -> None:
    def main(group: Group) -> None:
        epoch = group.epoch
        state = atoll.SharedState({"w": np.ones(3)})
        works = [group.all_reduce_async(np.ones(3), tag=t) for t in (7, 2)]
        here().sleep(1.0)
        assert all(w.done() for w in works)  # decided, but not awaited
        with pytest.raises(Busy, match="update_topology: await the work with tag 2, 7"):
            group.update_topology()
        with pytest.raises(Busy, match="sync: await the work with tag 2, 7"):
            group.sync(state)
        wait_all(works)
        group.sync(state)
        still_good(group, epoch)
        group.update_topology()

    together(2, main)


# -- after the end -----------------------------------------------------------------------------------------------------


def test_a_closed_group_says_so_and_may_be_closed_again() -> None:
    def main() -> str:
        group = atoll.join("master:1", min_world=2)
        work = group.all_reduce_async(np.ones(COMMENCED), tag=1)
        x = np.ones(3)
        if group.rank == 0:
            with pytest.raises(PeerLost, match="left"):
                work.wait()
            group.all_reduce(x, "sum")
            assert (group.world, x[0]) == (1, 1.0)
            group.close()
            return "alone"
        group.close()
        group.close()
        for call in (
            work.wait,
            lambda: group.all_reduce(x, tag=2),
            lambda: group.barrier(tag=3),
            group.update_topology,
            lambda: group.sync(atoll.SharedState({"w": x})),
        ):
            with pytest.raises(MasterLost, match="closed"):
                call()
        return "closed"

    world = World()
    for i in range(2):
        world.start(f"peer-{i}", main)
    world.run()
    assert [p.program.result for p in world.processes] == ["alone", "closed"]


def test_what_a_call_that_failed_held_is_free_again() -> None:
    """The error that ended it all is raised again and again, and must not keep the frames it once passed."""

    class Large:
        """What a program has in its hands."""

    held: list[weakref.ref[Large]] = []

    def call(group: atoll.Group) -> None:
        large = Large()
        held.append(weakref.ref(large))
        with pytest.raises(MasterLost):
            group.barrier()

    def main() -> int:
        group = atoll.join("master:1")
        group.close()
        for _ in range(3):
            call(group)
        gc.collect()
        return sum(large() is not None for large in held)

    world = World()
    world.start("peer", main)
    world.run()
    assert world.processes[0].program.result == 0


def test_a_group_may_be_closed_without_having_been_used() -> None:
    def unused() -> str:
        atoll.join("master:1").close()
        return "unused"

    world = World()
    world.start("peer", unused)
    world.run()
    world.loop.run(until_ns=world.loop.now_ns + 1_000_000_000)
    assert world.processes[0].program.result == "unused"
    assert not world.master.roster.members
    LocalGroup().close()


def test_a_member_the_group_went_on_without_is_told_at_every_call() -> None:
    world = World()

    def frozen() -> str:
        with atoll.join("master:1", min_world=2) as group:
            group.barrier()
            here().sleep(1.0)  # frozen meanwhile
            for _ in range(2):
                with pytest.raises(Expelled, match="stopped for 3 s"):
                    group.barrier()
        return "told"

    def other() -> None:
        with atoll.join("master:1", min_world=2) as group:
            group.barrier()
            with pytest.raises(PeerLost, match="stopped for 3 s"):
                group.barrier()

    world.start("other", other)
    process = world.start("frozen", frozen)
    world.loop.post(500_000_000, process.freeze)
    world.loop.post(8_000_000_000, process.thaw)
    world.run()
    assert process.program.result == "told"


def test_time_does_not_run_backwards() -> None:
    def main(group: Group) -> None:
        before = here().now()
        with pytest.raises(ValueError, match="-1"):
            here().sleep(-1.0)
        assert here().now() == before

    together(2, main)
    with pytest.raises(ValueError, match="negative"):
        RealNode().sleep(-1.0)
