"""Members of a group that can't all reach each other, in virtual time: it goes another way round, and where there is
none goes on without as few as can be, instead of making its links anew for ever.
"""

from typing import Any

import numpy as np
import pytest

import atoll
from atoll.errors import Expelled, PeerLost
from atoll.group.virtual import World
from atoll.runtime.api import here

STEPS = 30


def program(elements: int, **options: Any) -> Any:
    """Reduces, again where it fails, until it has done so `STEPS` times; says in which worlds, or why it had to go."""

    def main() -> Any:
        try:
            with atoll.join("any:1", min_world=4) as group:
                return train(group)
        except Expelled as error:
            return str(error)

    def train(group: atoll.Group) -> list[int]:
        worlds: list[int] = []
        while len(worlds) < STEPS:
            x = np.ones(elements, np.float32)
            try:
                if group.peers_pending():
                    group.update_topology()
                group.all_reduce(x, "sum", **options)
            except PeerLost:
                continue
            assert x[0] == x[-1] == group.world
            worlds.append(group.world)
            here().sleep(0.01)
        group.barrier()
        return worlds

    return main


def run(walls: set[tuple[int, int]], main: Any) -> tuple[World, list[Any]]:
    world = World(seed=0, one_machine=True)
    world.walls = {(f"peer-{a}", f"peer-{b}") for a, b in walls}
    processes = [world.start(f"peer-{i}", main) for i in range(1, 5)]
    world.run(until_s=60.0)
    assert all(process.program.ended for process in processes), "somebody still waits"
    return world, [process.program.result for process in processes]


@pytest.mark.parametrize("elements", [4, 1000, 10_000, 500_000])
@pytest.mark.parametrize("walls", [{(1, 2)}, {(1, 3)}, {(1, 3), (3, 1)}, {(1, 2), (2, 1), (3, 4), (4, 3)}], ids=str)
def test_a_ring_goes_another_way(walls: set[tuple[int, int]], elements: int) -> None:
    world, found = run(walls, program(elements))
    assert found == [[4] * STEPS] * 4
    assert world.master.epoch < 12


def test_what_can_go_no_other_way_costs_one_member_its_place_and_no_more() -> None:
    world, found = run({(1, 3), (3, 1)}, program(10_000, algorithm="direct"))
    assert sorted(map(str, found)) == sorted([str([3] * STEPS)] * 3 + [found[2]])
    assert "can't reach" in found[2], "the newest of the two"
    assert world.master.epoch < 12


def test_one_whom_nobody_reaches_goes_alone() -> None:
    world, found = run({(1, 2), (3, 2), (4, 2)}, program(10_000))
    assert [found[i] for i in (0, 2, 3)] == [[3] * STEPS] * 3
    assert "can't reach it" in found[1]
    assert world.master.epoch < 12


def test_one_who_reaches_nobody_goes_alone() -> None:
    _, found = run({(2, 1), (2, 3), (2, 4)}, program(10_000))
    assert [found[i] for i in (0, 2, 3)] == [[3] * STEPS] * 3
    assert "it can't reach" in found[1]


def test_a_wall_that_falls_is_noticed() -> None:
    """All pairs are used again once the pair may be tried."""

    def main() -> Any:
        with atoll.join("any:1", min_world=4) as group:
            seen: list[bool] = []
            while here().now() < 40.0:
                if here().now() > 20.0:
                    world.walls = set()
                try:
                    if group.peers_pending():
                        group.update_topology()
                    group.all_reduce(np.ones(10_000, np.float32))
                except PeerLost:
                    continue
                seen.append(group._membership.view.pace.mesh)
                here().sleep(0.5)
            return seen

    world = World(seed=0)
    world.walls = {("peer-1", "peer-3")}
    processes = [world.start(f"peer-{i}", main) for i in range(1, 5)]
    world.run(until_s=60.0)
    for process in processes:
        assert not process.program.result[5]
        assert process.program.result[-1]
