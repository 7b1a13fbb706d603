"""Many operations at once, waits that expire, and a newcomer while data moves."""

import random
import re
from itertools import permutations
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.errors import DeadlineExceeded, PeerLost
from atoll.group.facade import Group
from atoll.group.virtual import World
from atoll.group.work import Work, wait_all
from atoll.runtime.api import here
from tests.group.together import start, together

SMALL, MIDDLE, LARGE = SIZES = 10, 20_000, 40_000
"""Elements of float64: data travels in the vote, leaves with it, or waits for all votes."""


def launch(group: Group, tag: int, n: int) -> Work:
    return group.all_reduce_async(np.full(n, float(tag * (group.rank + 1))), "sum", tag=tag, out=np.empty(n))


def check(work: Work, world: int) -> None:
    value = work.wait().value
    assert (value == work.ticket.tag * world * (world + 1) / 2).all()


@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("world", [2, 4])
def test_sixteen_in_flight_launched_and_awaited_in_any_order(world: int, seed: int, n: int) -> None:
    def main(group: Group) -> None:
        mine = random.Random(seed * 100 + group.rank)
        for _ in range(3):
            works = {tag: launch(group, tag, n) for tag in mine.sample(range(16), 16)}
            here().sleep(mine.choice([0.0, 0.01]) * mine.random())
            for tag in mine.sample(range(16), 16):
                check(works[tag], world)

    together(world, main, seed=seed, jitter=3.0, tie_break=seed, bytes_per_s=1e8)


@pytest.mark.parametrize("n", SIZES)
def test_two_tags_crossed_in_every_way(n: int) -> None:
    ways = [(launched, awaited) for launched in permutations((1, 2)) for awaited in permutations((1, 2))]

    def main(group: Group) -> None:
        for ours in ways:
            for theirs in ways:
                launched, awaited = (ours, theirs)[group.rank]
                works = {}
                for tag in launched:
                    works[tag] = launch(group, tag, n)
                    here().sleep(2e-3)  # the others' data comes before we have launched
                for tag in awaited:
                    check(works[tag], 2)

    together(2, main)


def test_small_large_and_dataless_operations_in_flight_together() -> None:
    def main(group: Group) -> None:
        works = [launch(group, 1, LARGE), launch(group, 2, SMALL), group.gather_bytes_async(b"hi", tag=3)]
        group.barrier(tag=4)
        for work in reversed(works[:2]):
            check(work, 3)
        assert works[2].wait().value == [b"hi"] * 3

    together(3, main)


def test_results_do_not_depend_on_the_order_of_waiting() -> None:
    def results(order: tuple[int, ...]) -> list[bytes]:
        def main(group: Group) -> bytes:
            rng = np.random.default_rng(group.rank)
            works = [group.all_reduce_async(rng.normal(size=n), tag=t) for t, n in enumerate((3, LARGE, 5, MIDDLE))]
            values = {t: works[t].wait().value for t in order}
            return b"".join(values[t].tobytes() for t in range(3))

        return together(3, main)

    want = results((0, 1, 2))
    assert len(set(want)) == 1
    for order in permutations(range(3)):
        assert results(order) == want


def test_wait_all_returns_results_in_order_and_leaves_nothing_unawaited() -> None:
    def main(group: Group) -> None:
        results = wait_all([launch(group, tag, SMALL) for tag in (5, 3, 4)])
        assert [r.value[0] for r in results] == [15.0, 9.0, 12.0]
        group.update_topology()

    together(2, main)


def test_wait_all_awaits_all_before_it_raises_the_first_error() -> None:
    world = World(bytes_per_s=1e6)

    def main() -> str:
        with atoll.join("master:1", min_world=3) as group:
            works = [launch(group, tag, LARGE) for tag in range(4)]
            with pytest.raises(PeerLost):
                wait_all(works)
            assert all(w.done() for w in works)
            assert group.world == 2
            check(launch(group, 1, LARGE), 2)
            return "went on"

    for i in range(3):
        world.start(f"peer-{i}", main)
    world.loop.post(50_000_000, world.processes[1].crash)
    world.run()
    assert [p.program.result for p in world.processes] == ["went on", None, "went on"]


def test_what_was_gathered_before_a_loss_is_right_though_awaited_after_it() -> None:
    world = World()

    def main() -> Any:
        with atoll.join("master:1", min_world=3) as group:
            gathered = group.all_gather_async(np.full(LARGE, group.rank), tag=1)
            here().sleep(1.0)
            if group.rank == 2:
                return None
            lost = group.all_reduce_async(np.ones(LARGE), "sum", tag=2)
            with pytest.raises(PeerLost):
                lost.wait()
            assert group.world == 2
            return gathered.wait().value

    for i in range(3):
        world.start(f"peer-{i}", main)
    world.run()
    for process in world.processes[:2]:
        assert process.program.result.tolist() == [[rank] * LARGE for rank in range(3)]


@pytest.mark.parametrize("n", SIZES)
def test_a_wait_that_expires_changes_nothing_and_may_be_repeated(n: int) -> None:
    def main(group: Group) -> None:
        if group.rank == 1:
            here().sleep(1.0)
        x = np.ones(n)
        work = group.all_reduce_async(x, "sum", tag=7)
        if group.rank == 0:
            for i in range(1, 4):
                with pytest.raises(DeadlineExceeded, match="tag 7"):
                    work.wait(timeout_s=0.1)
                assert here().now() == pytest.approx(0.1 * i, abs=0.01)
                assert not work.done()
                assert (x == 1).all()
                with pytest.raises(atoll.errors.Busy):
                    group.update_topology()
        work.wait(timeout_s=10.0)
        assert (x == 2).all()
        assert here().now() < 2.0

    together(2, main)


def test_an_update_topology_that_expires_changes_nothing_and_may_be_repeated() -> None:
    def main(group: Group) -> None:
        epoch = group.epoch
        if group.rank == 1:
            here().sleep(1.0)
        else:
            for _ in range(3):
                with pytest.raises(DeadlineExceeded):
                    group.update_topology(timeout_s=0.1)
                assert (group.epoch, group.world) == (epoch, 2)
        group.update_topology(timeout_s=10.0)
        assert group.epoch > epoch
        assert (launch(group, 1, SMALL).wait().value == 3).all()

    together(2, main)


def test_a_second_wait_gives_the_same_result_and_no_effect() -> None:
    def main(group: Group) -> None:
        first = launch(group, 1, SMALL)
        value = first.wait().value
        value[:] = -1
        second = launch(group, 1, SMALL)
        assert first.wait().value is value
        assert (value == -1).all(), "delivered twice"
        with pytest.raises(atoll.errors.Busy):
            group.update_topology()  # the second is still to be awaited
        check(second, 2)

    together(2, main)


def test_a_second_wait_raises_the_same_error_and_has_no_effect() -> None:
    def main(group: Group) -> None:
        work = group.all_reduce_async(np.zeros(group.rank + 1), tag=1)
        with pytest.raises(atoll.errors.Mismatch) as first:
            work.wait()
        second = launch(group, 1, SMALL)
        with pytest.raises(atoll.errors.Mismatch, match=re.escape(str(first.value))):
            work.wait()
        with pytest.raises(atoll.errors.Busy):
            group.update_topology()  # the second is still to be awaited
        check(second, 2)

    together(2, main)


@pytest.mark.parametrize("tie_break", range(3))
def test_a_newcomer_is_let_in_after_the_reduce_under_way(tie_break: int) -> None:
    world = World(bytes_per_s=1e6, tie_break=tie_break)
    seen: dict[str, list[Any]] = {}

    def settle(name: str, group: Group, state: atoll.SharedState) -> None:
        received = [group.sync(state).bytes_received for _ in range(2)]
        seen[name] = [here().now(), group.world, state.revision, state.digest(), *received]

    def incumbent(name: str) -> None:
        with atoll.join("master:1", min_world=2) as group:
            state = atoll.SharedState({"w": np.arange(50.0)}, revision=4)
            group.sync(state)
            x = np.ones(100_000)
            work = group.all_reduce_async(x, "sum")  # 800 kB each way at 1 MB/s
            here().sleep(0.5)
            assert not group.peers_pending()  # local: told with the next outcome only
            result = work.wait()
            assert (result.world, x[0]) == (2, 2.0)
            assert group.peers_pending()
            finished = here().now()
            assert finished > 0.8
            group.update_topology()
            assert not group.peers_pending()
            settle(name, group, state)
            assert seen[name][0] > finished
            group.barrier()

    def newcomer() -> None:
        with atoll.join("master:1") as group:
            assert here().now() > 0.8
            assert (group.world, group.peers_pending()) == (3, False)
            settle("new", group, atoll.SharedState({"w": np.zeros(50)}))
            group.barrier()

    world.start("a", lambda: incumbent("a"))
    world.start("b", lambda: incumbent("b"))
    world.start("new", newcomer, delay_s=0.2)
    world.run()
    assert {tuple(s[1:4]) for s in seen.values()} == {(3, 4, seen["a"][3])}
    assert {name: s[4:] for name, s in seen.items()} == {"a": [0, 0], "b": [0, 0], "new": [400, 0]}


def test_all_members_read_the_same_flag_after_the_same_outcome() -> None:
    def run(seed: int) -> None:
        world = World(seed, jitter=5.0, tie_break=seed)

        def incumbent() -> list[bool]:
            with atoll.join("master:1", min_world=3) as group:
                flags = []
                for step in range(40):
                    here().sleep(here().rng(group.rank, step).random() * 1e-3)
                    if step % 2:
                        group.all_reduce(np.zeros(3))
                    else:
                        group.barrier()
                    flags.append(group.peers_pending())
                return flags

        def newcomer() -> None:
            with pytest.raises(DeadlineExceeded):  # it gives up, so that the flag rises and falls
                atoll.join("master:1", timeout_s=0.01)

        for i in range(3):
            world.start(f"peer-{i}", incumbent)
        world.start("new", newcomer, delay_s=0.01)
        world.run()
        flags = [p.program.result for p in world.processes[:3]]
        assert flags[0] == flags[1] == flags[2]
        changes = [flag for flag, before in zip(flags[0], [None, *flags[0]], strict=False) if flag != before]
        assert changes == [False, True, False]

    for seed in range(5):
        run(seed)


def test_a_run_of_the_same_seed_is_the_same_run() -> None:
    def count(seed: int) -> tuple[int, int]:
        world = World(seed, jitter=2.0, tie_break=seed)
        start(world, 3, lambda group: [check(launch(group, t, LARGE), 3) for t in range(5)])
        world.run()
        return world.loop.count, world.loop.now_ns

    assert count(1) == count(1)
    assert count(1) != count(2)


def test_many_wait_for_the_data_of_one_that_sleeps() -> None:
    """Each receiver says under each tag that it is ready, long before the sender asks."""
    world, tags = 20, range(16)

    def main(group: Group) -> None:
        if group.rank == 0:
            here().sleep(0.5)
            for other in range(1, world):
                wait_all([group.send_async(np.full(3, float(tag * other)), other, tag=tag) for tag in tags])
        else:
            works = [group.recv_async(np.empty(3), 0, tag=tag) for tag in tags]
            results = wait_all(works, timeout_s=30)
            assert [r.value[0] for r in results] == [tag * group.rank for tag in tags]

    together(world, main)
