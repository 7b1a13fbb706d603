"""The group in virtual time on fabrics: who shares which link, what a broken one does, what an operation costs."""

from typing import Any

import numpy as np
import pytest

import atoll
from atoll.cost import CostModel, Op, Sample
from atoll.errors import Expelled, InvalidConfig, MasterLost, PeerLost
from atoll.fabric import Fabric, leaf_spine, star, wan
from atoll.group.facade import Group
from atoll.group.messages import LinkStatus
from atoll.group.virtual import Process, World
from atoll.group.wiring.links import CONNECTIONS
from atoll.group.work import wait_all
from atoll.runtime.api import here
from atoll.sim.net import Tcp
from tests.group.together import start

RATE, LATENCY_S = 1e8, 1e-3
ELEMENTS = 500_000
NBYTES = 8 * ELEMENTS


def reduce_timed(group: Group) -> float:
    """Seconds of a ring over `NBYTES`, once all are there and its links stand."""
    x = np.ones(ELEMENTS)
    for _ in range(2):
        group.barrier()
        took = group.all_reduce(x.copy(), "sum", algorithm="ring").seconds
    return took


def slowest(world: World, size: int) -> float:
    start(world, size, reduce_timed)
    world.run()
    return max(p.program.result for p in world.processes)


def ring_s(size: int, rate: float) -> float:
    return 2 * (size - 1) / size * NBYTES / rate


def test_bytes_of_tensors_may_count_for_those_of_larger_ones() -> None:
    """The group measures their links at as many times less, and so chooses alike."""
    whole = slowest(World(fabric=star(4, RATE), one_machine=False), 4)
    assert slowest(World(fabric=star(4, RATE), one_machine=False, volume=8.0), 4) == pytest.approx(8 * whole, rel=0.05)


# -- where processes are -----------------------------------------------------------------------------------------------


def test_processes_stand_on_the_hosts_of_a_fabric_in_turn_or_where_they_are_told() -> None:
    world = World(fabric=star(3, RATE))
    hosts = [
        world.start(f"peer-{i}", lambda: None, host=host).host for i, host in enumerate([None, "host0", *4 * [None]])
    ]
    assert hosts == ["host0", "host0", "host2", "host0", "host1", "host2"]
    assert world.master_host == "host0"


def test_a_host_there_is_not_is_named() -> None:
    with pytest.raises(InvalidConfig, match="no host 'atlantis' among the 2"):
        World(fabric=star(2, RATE)).start("peer", lambda: None, host="atlantis")
    with pytest.raises(InvalidConfig, match="no host 'switch'"):
        World(fabric=star(2, RATE), master_host="switch")


def test_a_fabric_tells_how_long_an_operation_takes() -> None:
    """Eight on two leaves: in order one flow crosses each way; interleaved all do, over links a quarter as wide."""

    def seconds(order: list[int]) -> float:
        fabric = leaf_spine(8, 2, 1, RATE, oversub=4.0, latency_s=1e-5)
        world = World(fabric=fabric, one_machine=True)
        for i in order:
            start_on(world, 8, reduce_timed, f"host{i}")
        world.run()
        return max(p.program.result for p in world.processes)

    assert seconds(list(range(8))) == pytest.approx(ring_s(8, RATE), rel=0.05)
    assert seconds([0, 4, 1, 5, 2, 6, 3, 7]) == pytest.approx(4 * ring_s(8, RATE), rel=0.05)


def start_on(world: World, size: int, main: Any, host: str) -> Process:
    def program() -> Any:
        with atoll.join("master:1", min_world=size) as group:
            result = main(group)
            group.barrier()
            return result

    i = len(world.processes)
    return world.start(f"peer-{i}", program, delay_s=0.01 * i, host=host)  # the ring is in order of coming


def test_two_groups_of_flows_share_a_host() -> None:
    """Two peers behind one way out: what both send others goes through it."""
    spread, crowded = World(fabric=star(4, RATE), one_machine=True), World(fabric=star(2, RATE), one_machine=True)
    for i in range(4):
        start_on(spread, 4, reduce_timed, f"host{i}")
        start_on(crowded, 4, reduce_timed, f"host{i % 2}")
    spread.run()
    crowded.run()
    apart, together = (max(p.program.result for p in world.processes) for world in (spread, crowded))
    assert together == pytest.approx(2 * apart, rel=0.05)


def test_a_long_link_has_several_connections_each_bounded_by_its_window() -> None:
    """One connection: a window each round trip."""
    tcp = Tcp(window_bytes=1e5, efficiency=1.0)
    for round_trip_s, connections in ((4e-3, 1), (40e-3, CONNECTIONS)):
        fabric = wan([[0, 1e12], [1e12, 0]], [[0, round_trip_s], [round_trip_s, 0]])
        took = slowest(World(fabric=fabric, tcp=tcp, one_machine=True), 2)
        rate = connections * tcp.window_bytes / round_trip_s
        assert took == pytest.approx(ring_s(2, rate), rel=0.1, abs=4 * round_trip_s)


# -- what the master learns --------------------------------------------------------------------------------------------


def test_measured_rates_are_those_of_the_fabric_and_the_ring_avoids_the_slow_ones() -> None:
    n = 5
    rates = [[2e6 if {i, j} in ({0, 1}, {2, 3}) else 1e7 + 1e6 * i for j in range(n)] for i in range(n)]
    world = World(fabric=wan(rates, [[2 * LATENCY_S] * n] * n), master_host="host0")

    def main(group: Group) -> tuple[list[int], dict[tuple[int, int], LinkStatus]]:
        host = {i: int(port.host.removeprefix("host")) for i, port in world.members.items()}
        links = world.master.status().links
        return [host[i] for i in world.master.ring], {(host[a.source], host[a.target]): a for a in links}

    start(world, n, main)
    world.run()
    ring, links = world.processes[0].program.result
    assert len(links) == n * (n - 1)
    for (a, b), link in links.items():
        assert link.bytes_per_s == pytest.approx(rates[a][b], rel=0.02)
        assert link.round_trip_s == pytest.approx(2 * LATENCY_S)
    around = {frozenset(pair) for pair in zip(ring, ring[1:] + ring[:1], strict=True)}
    assert not around & {frozenset((0, 1)), frozenset((2, 3))}


def test_peers_of_one_host_are_on_one_machine() -> None:
    world = World(fabric=star(2, RATE))
    start(world, 4, lambda group: group.barrier())
    world.run()
    assert [port.station.peer.seat.machine for port in world.ports] == ["host0", "host1"] * 2


# -- links that break --------------------------------------------------------------------------------------------------


def cut(world: World, host: str, at_s: float, until_s: float | None = None) -> None:
    """The cable of a host is out, until it is in again."""
    fabric = world.network.fabric
    for link in (fabric.links[f"{host}->switch"], fabric.links[f"switch->{host}"]):
        world.loop.post(round(at_s * 1e9), world.network.set_link, link, 0.0)
        if until_s is not None:
            world.loop.post(round(until_s * 1e9), world.network.set_link, link, link.bytes_per_s)


def working(steps: int) -> Any:
    """A program that reduces, whatever becomes of it, and how long its worst step took."""

    def main() -> Any:
        worst = 0.0
        try:
            with atoll.join("master:1", min_world=4) as group:
                for _ in range(steps):
                    began = here().now()
                    try:
                        if group.peers_pending():
                            group.update_topology()
                        group.all_reduce(np.ones(200_000), "sum")
                    except PeerLost:
                        pass
                    worst = max(worst, here().now() - began)
                    here().sleep(0.1)
                group.barrier()
                return group.world, worst
        except (Expelled, MasterLost) as error:
            return type(error)

    return main


def group_of_four(tie_break: int | None = None) -> World:
    world = World(latency_s=LATENCY_S, bytes_per_s=RATE, tie_break=tie_break)
    for i in range(4):
        world.start(f"peer-{i}", working(100))
    return world


def test_a_host_without_its_cable_is_lost_and_the_others_go_on() -> None:
    world = group_of_four()
    cut(world, "host2", at_s=3.05)
    world.run()
    results = [p.program.result for p in world.processes]
    assert results[2] is MasterLost  # it looks for a way to the master as long as a real one does
    for world_size, worst in (results[i] for i in (0, 1, 3)):
        assert world_size == 3
        assert 2.0 < worst < 5.0  # until the master has missed its helper


def test_a_cable_that_is_in_again_soon_costs_only_the_wait() -> None:
    world = group_of_four()
    cut(world, "host2", at_s=3.05, until_s=4.5)
    world.run()
    for world_size, worst in [p.program.result for p in world.processes]:
        assert world_size == 4
        assert 1.2 < worst < 2.0
    assert world.master.epoch == 1


def test_a_peer_whose_cable_is_in_again_late_is_told_that_the_group_went_on() -> None:
    world = group_of_four()
    cut(world, "host2", at_s=3.05, until_s=9.0)
    world.run()
    results = [p.program.result for p in world.processes]
    assert results[2] is Expelled
    assert {results[i][0] for i in (0, 1, 3)} == {3}


def test_a_link_between_two_that_carries_nothing_is_found_by_its_silence() -> None:
    """The way to the master is up: only data stands still. Whoever is waited for goes, after the stall."""
    fabric = Fabric()
    hosts = [fabric.add_host(f"host{i}") for i in range(4)]
    fabric.add_host("office")
    for host in hosts:
        fabric.join(host, "office", RATE, LATENCY_S)
        for other in hosts[: hosts.index(host)]:
            fabric.join(host, other, RATE, LATENCY_S)
    world = World(fabric=fabric, master_host="office", one_machine=True)
    for i in range(4):
        world.start(f"peer-{i}", working(300), host=f"host{i}")
    world.loop.post(3_050_000_000, world.network.set_link, fabric.links["host1->host2"], 0.0)
    world.run()
    sizes = [r[0] if isinstance(r, tuple) else r for r in (p.program.result for p in world.processes)]
    worst = [r[1] for r in (p.program.result for p in world.processes) if isinstance(r, tuple)]
    assert all(10 < w < 40 for w in worst), worst
    assert len(worst) >= 3
    assert set(sizes) <= {3, 4, Expelled}


@pytest.mark.parametrize("seed", range(3))
def test_faults_of_links_are_replayed_by_their_seed(seed: int) -> None:
    def run() -> tuple[int, int, list[Any]]:
        world = group_of_four(tie_break=seed)
        cut(world, "host1", at_s=3.05, until_s=5.0)
        cut(world, "master", at_s=6.0, until_s=7.0)
        world.run()
        return world.loop.now_ns, world.loop.count, [p.program.result for p in world.processes]

    assert run() == run()


def test_a_slow_link_slows_the_ring_and_nobody_is_lost() -> None:
    world = group_of_four()
    link = world.network.fabric.links["host2->switch"]
    world.loop.post(3_000_000_000, world.network.set_link, link, 2e5)  # 1.2 MB in each step: six seconds
    world.run(until_s=60.0)
    assert world.master.epoch == 1
    assert not [p for p in world.processes if p.program.ended]
    world.loop.close()


# -- frames behind each other ------------------------------------------------------------------------------------------


def test_the_last_word_between_two_is_not_lost_behind_other_data() -> None:
    """The receiver is through while its word for the sender still waits for 8 MB to leave on the same link."""
    world = World(bytes_per_s=1e7)

    def main(group: Group) -> float:
        small, large = np.ones(20_000), np.ones(1_000_000)
        if group.rank:
            return float(wait_all([group.recv_async(small, 0, tag=1), group.send_async(large, 0, tag=2)])[1].seconds)
        work = group.recv_async(large, 1, tag=2)
        here().sleep(0.1)
        sent = group.send_async(small, 1, tag=1)
        return float(wait_all([work, sent])[1].seconds)

    start(world, 2, main)
    world.run(until_s=30.0)
    assert all(p.program.result == pytest.approx(0.75, abs=0.1) for p in world.processes)


# -- crashes -----------------------------------------------------------------------------------------------------------


def test_a_crash_ends_what_is_on_its_way() -> None:
    """A kill takes 16 MB with it that would have held up the others' links for seconds."""
    world = World(latency_s=LATENCY_S, bytes_per_s=1e6)

    def main() -> float:
        with atoll.join("master:1", min_world=3) as group:
            with pytest.raises(PeerLost):
                group.all_reduce(np.ones(1_000_000), "sum", algorithm="ring")
            return here().now()

    for i in range(3):
        world.start(f"peer-{i}", main)
    world.loop.post(2_000_000_000, world.processes[1].crash)
    world.loop.post(2_100_000_000, lambda: flows.extend(world.network.flows()))
    flows: list[Any] = []
    world.run()
    assert flows == []
    assert all(2.0 < p.program.result < 2.1 for p in (world.processes[0], world.processes[2]))


# -- what it costs to compute ------------------------------------------------------------------------------------------


def model(kind: str, per_flop: float) -> CostModel:
    samples = [Sample(Op(kind, flops=flops), per_flop * flops) for flops in (1.0, 2.0, 5.0)]
    return CostModel.fit(kind, ["flops"], samples)


def test_an_operation_costs_what_the_model_of_its_kind_says() -> None:
    world = World(cost={"matmul": model("matmul", 0.5), "decode": model("decode", 2.0)})

    def main() -> tuple[str, float]:
        value = here().compute(Op("matmul", flops=6), lambda: "done")
        here().compute(Op("decode", flops=1), lambda: None)
        return value, here().now()

    process = world.start("it", main)
    world.run()
    assert process.program.result == ("done", pytest.approx(5.0))


def test_a_kind_without_a_model_is_named() -> None:
    world = World(cost={"matmul": model("matmul", 1.0)})
    world.start("it", lambda: here().compute(Op("attention"), lambda: None))
    with pytest.raises(InvalidConfig, match="no cost model of 'attention' \\(there are: 'matmul'\\)"):
        world.run()
