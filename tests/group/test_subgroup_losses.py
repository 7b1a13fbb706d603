"""Members of subgroups are lost and join, in virtual time and for real: both axes heal."""

import random
import threading
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.errors import PeerLost
from atoll.group.virtual import World
from atoll.group.work import wait_all
from atoll.runtime.api import here
from tests.group.grid import COLUMNS, NOWHERE, Grid
from tests.group.peer_process import PeerProcess
from tests.group.subgrouped import LARGE, SIZES, SMALL, check_all, grid, launch_all, ranks_of

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
