"""Messages over fabrics: closed forms of one flow, of TCP and of collectives, and what faults do to them."""

import os
import subprocess
import sys
from collections.abc import Callable
from math import inf, log2, nan, sqrt

import pytest

from atoll.errors import Deadlock, InvalidConfig, InvalidData
from atoll.fabric import Fabric, fat_tree, last_mile, leaf_spine, nvlink_mesh, pcie_tree, ring, star, torus, wan
from atoll.sim.loop import Loop
from atoll.sim.maxmin import rates
from atoll.sim.net import IDEAL, Network, Tcp
from tests.sim.collectives import begin, doubling_steps, exchange_steps, ring_steps, seconds

MIB = 1 << 20


class World:
    """A network, and when messages arrive in it."""

    def __init__(self, fabric: Fabric, tcp: Tcp = IDEAL) -> None:
        self.loop = Loop()
        self.network = Network(self.loop, fabric, tcp=tcp)
        self.arrived: dict[str, float] = {}

    def arrival(self, name: str) -> Callable[[], None]:
        return lambda: self.arrived.__setitem__(name, self.loop.now_s)

    def at(self, seconds: float, fn: Callable[[], object]) -> None:
        self.loop.post(round(seconds * 1e9) - self.loop.now_ns, fn)


def one_flow(fabric: Fabric, nbytes: int, tcp: Tcp = IDEAL, streams: int = 1) -> float:
    """Seconds from `host0` to `host1`."""
    world = World(fabric, tcp)
    world.network.send("host0", "host1", nbytes, world.arrival("it"), streams=streams)
    world.loop.run()
    return world.arrived["it"]


def test_a_message_takes_the_latency_of_its_way_once_and_its_bytes_at_the_bottleneck() -> None:
    assert one_flow(star(2, 1e6, latency_s=0.25), 2_000_000) == 0.5 + 2.0
    assert one_flow(last_mile([1e6, 9e6], [9e6, 4e6], [0.1, 0.2]), 2_000_000) == 0.3 + 2.0


def test_a_small_message_skips_the_sharing_but_not_the_bottleneck() -> None:
    world = World(star(3, 1e6, latency_s=0.25))
    world.network.send("host0", "host1", 1_000_000, world.arrival("large"))
    world.network.send("host0", "host1", 10_000, world.arrival("small"))
    world.network.send("host2", "host1", 0, world.arrival("empty"))
    world.loop.run()
    assert world.arrived == {"empty": 0.5, "small": 0.51, "large": 1.5}
    assert world.network.usage(world.network.fabric.links["host0->switch"]).work == 1_010_000


def test_a_message_to_oneself_arrives_at_once() -> None:
    assert one_flow(star(2, 1.0), 0) == 0
    world = World(star(2, 1.0, 1.0))
    world.network.send("host0", "host0", MIB, world.arrival("it"))
    world.loop.run()
    assert world.arrived == {"it": 0.0}


def test_all_of_a_batch_is_in_when_the_last_has_arrived() -> None:
    world = World(last_mile([1e6] * 3, [1e6] * 3, [0.0, 1.0, 5.0]))
    flows = world.network.send_all(
        [("host0", "host1", 4_000_000), ("host1", "host2", 1_000_000), ("host2", "host0", 10)], world.arrival("all")
    )
    assert world.network.flows() == flows
    world.network.send_all([], world.arrival("none"))
    world.loop.run()
    assert world.arrived == {"none": 0.0, "all": 1.0 + 6.0}


def test_the_window_bounds_a_stream_and_streams_multiply_it() -> None:
    fabric, tcp = wan([[0, 1e9], [1e9, 0]], [[0, 0.1], [0.1, 0]]), Tcp(window_bytes=1e6, efficiency=1.0)
    assert one_flow(fabric, 10**8, tcp) == 0.05 + 10
    assert one_flow(fabric, 10**8, tcp, streams=4) == 0.05 + 2.5
    assert one_flow(fabric, 10**8, tcp, streams=200) == 0.15


def test_losses_bound_a_stream() -> None:
    fabric = wan([[0, 1e9], [1e9, 0]], [[0, 0.1], [0.1, 0]], loss=0.01)
    rate = 1.22 * 1460 / (0.1 * sqrt(0.01))
    assert one_flow(fabric, 10**7, Tcp(efficiency=1.0)) == pytest.approx(0.05 + 1e7 / rate, rel=1e-6)


def test_headers_take_their_part_of_a_link() -> None:
    assert one_flow(star(2, 1e6), 960_000, Tcp(efficiency=0.96)) == 1.0


def test_slow_start_doubles_each_round_trip_until_the_link_is_full() -> None:
    """Ten segments in the first round trip, twenty in the second, ...; 1e6 bytes/s from the seventh on."""
    fabric = wan([[0, 1e6], [1e6, 0]], [[0, 0.1], [0.1, 0]])
    tcp = Tcp(window_bytes=inf, segment_bytes=1000, efficiency=1.0, slow_start=True)
    slow = [10_000 * 2**k for k in range(4)]  # 0.1 s each: 10, 20, 40, 80 kB, as 160 kB would be over 100 kB
    assert one_flow(fabric, sum(slow) + 500_000, tcp) == pytest.approx(0.05 + 0.4 + 0.5, rel=1e-6)
    assert one_flow(fabric, 20_000, tcp) == pytest.approx(0.05 + 0.1 + 0.05, rel=1e-6)


def test_slow_start_ends_at_the_bound_of_the_stream() -> None:
    fabric = wan([[0, 1e9], [1e9, 0]], [[0, 0.1], [0.1, 0]])
    tcp = Tcp(window_bytes=30_000, segment_bytes=1000, efficiency=1.0, slow_start=True)
    assert one_flow(fabric, 330_000, tcp) == pytest.approx(0.05 + 0.2 + 1.0, rel=1e-6)


def test_streams_are_shares_where_flows_meet() -> None:
    world = World(star(3, 4e6))
    world.network.send("host0", "host2", 3_000_000, world.arrival("three"), streams=3)
    world.network.send("host1", "host2", 1_000_000, world.arrival("one"))
    world.loop.run()
    assert world.arrived == {"three": 1.0, "one": 1.0}


def test_both_ways_of_half_duplex_and_of_a_pcie_root_share() -> None:
    fabric = Fabric()
    fabric.join_half_duplex(fabric.add_host("a"), fabric.add_host("b"), 1e6)
    world = World(fabric)
    world.network.send_all([("a", "b", 10**6), ("b", "a", 10**6)], world.arrival("half duplex"))
    world.loop.run()
    tree = World(pcie_tree(2, 2, 1e6, root_bytes_per_s=1.5e6))
    tree.network.send_all([("gpu0", "gpu2", 1_500_000), ("gpu3", "gpu1", 1_500_000)], tree.arrival("over the root"))
    tree.network.send_all([("gpu1", "gpu0", 250_000)], tree.arrival("beside it"))
    tree.loop.run()
    assert world.arrived == {"half duplex": 2.0}
    assert tree.arrived == {"beside it": 0.25, "over the root": 2.0}


def test_a_link_may_slow_down_break_and_come_back() -> None:
    world = World(star(2, 1e6))
    link = world.network.fabric.links["host0->switch"]
    world.network.send("host0", "host1", 4_000_000, world.arrival("it"))
    world.at(1, lambda: world.network.set_link(link, 5e5))
    world.at(3, lambda: world.network.set_link(link, 0))
    world.at(10, lambda: world.network.set_link(link, link.bytes_per_s))
    world.loop.run()
    assert world.arrived == {"it": 12.0}
    assert world.network.usage(link) == (4e6, 12.0, 4e6 / 4e6)


def test_what_waits_at_a_broken_link_is_reported_instead_of_hanging() -> None:
    world = World(star(3, 1e6))
    world.network.set_link(world.network.fabric.links["switch->host1"], 0)
    for nbytes in (0, 10, MIB):
        world.network.send("host0", "host1", nbytes, world.arrival("never"))
    world.network.send("host1", "host0", MIB, world.arrival("back"))
    world.loop.run()
    assert list(world.arrived) == ["back"]
    assert world.network.fluid.stalled() == ["switch->host1"]
    with pytest.raises(Deadlock, match=r"no capacity at switch->host1 \(3 waiting\)"):
        world.network.fluid.check_stall()


@pytest.mark.parametrize("when", [0.0, 0.5, 1.5])
def test_an_aborted_message_leaves_nothing_behind(when: float) -> None:
    world = World(star(3, 1e6, latency_s=0.5), Tcp(inf, 1000, 1.0, slow_start=True))
    gone = world.network.send("host0", "host1", 2_000_000, world.arrival("gone"), streams=1000)
    small = world.network.send("host0", "host1", 10, world.arrival("small"))
    world.at(when, lambda: (world.network.abort(gone), world.network.abort(small)))
    world.loop.run()
    assert ("small" in world.arrived, "gone" in world.arrived) == (when > 1, False)
    assert world.network.flows() == []
    assert world.loop.pending() == 0
    assert world.loop.now_s == max(when, 1.0 if when > 1 else 0)
    world.network.abort(gone)


def test_a_message_may_be_aborted_between_its_last_byte_and_its_arrival() -> None:
    world = World(star(2, 1e6, latency_s=5.0))
    flow = world.network.send("host0", "host1", 1_000_000, world.arrival("gone"))
    world.at(2, lambda: world.network.abort(flow))
    world.loop.run()
    assert world.arrived == {}
    assert world.loop.now_s == 2.0


def test_a_crashed_host_takes_its_messages_with_it() -> None:
    world = World(star(3, 1e6))
    for one, other in (("host0", "host1"), ("host1", "host2"), ("host2", "host0")):
        world.network.send(one, other, 1_000_000, world.arrival(one))
    world.network.send_all([("host0", "host2", 500_000), ("host1", "host2", 10**9)], world.arrival("batch"))
    world.at(0.5, lambda: world.network.abort_host("host1"))
    world.loop.run()
    assert list(world.arrived) == ["host2"]
    assert world.network.flows() == []


def test_a_message_of_no_size_or_to_nowhere_is_refused() -> None:
    world = World(star(2, 1e6))
    for nbytes in (nan, -1, inf):
        with pytest.raises(InvalidData, match=r"bytes|work="):
            world.network.send("host0", "host1", nbytes, print)  # type: ignore[arg-type]
    with pytest.raises(InvalidData, match="no node 'atlantis'"):
        world.network.send("host0", "atlantis", 1, print)
    with pytest.raises(InvalidData, match="at least 1"):
        world.network.send("host0", "host1", 1, print, streams=0)
    with pytest.raises(InvalidData, match="of 'host0->switch' must be"):
        world.network.set_link(world.network.fabric.links["host0->switch"], nan)
    with pytest.raises(InvalidConfig, match="efficiency above 0"):
        Tcp(efficiency=0)
    assert world.network.flows() == []


ALPHA, RATE, SIZE = 10e-6, 1e9, 64 * MIB


@pytest.mark.parametrize("n", [2, 8, 16])
def test_collectives_alone_take_what_theory_says(n: int) -> None:
    """Thakur, Rabenseifner & Gropp, 2005, with alpha the latency of the whole way."""
    fabric = star(n, RATE, latency_s=ALPHA / 2)
    hosts = fabric.hosts
    part = SIZE / (n * RATE)
    assert seconds(fabric, ring_steps(hosts, SIZE, 2 * (n - 1))) == [pytest.approx(2 * (n - 1) * (ALPHA + part), 1e-4)]
    assert seconds(fabric, ring_steps(hosts, SIZE, n - 1)) == [pytest.approx((n - 1) * (ALPHA + part), 1e-4)]
    assert seconds(fabric, exchange_steps(hosts, SIZE)) == [pytest.approx((n - 1) * (ALPHA + part), 1e-4)]
    assert seconds(fabric, doubling_steps(hosts, SIZE)) == [pytest.approx(log2(n) * (ALPHA + SIZE / RATE), 1e-4)]


def test_two_rings_over_shared_spine_links_get_half_each_until_one_ends() -> None:
    """Two leaves, one spine, links all alike: each ring crosses both ways, so both have half of each spine link."""
    fabric = leaf_spine(4, 2, 1, RATE, oversub=2.0, latency_s=ALPHA / 4)
    long, short = ring_steps(["host0", "host2"], 2 * SIZE, 2), ring_steps(["host1", "host3"], SIZE, 2)
    alone = 2 * (ALPHA + SIZE / 2 / RATE)
    assert seconds(fabric, ring_steps(["host0", "host2"], SIZE, 2)) == [pytest.approx(alone, rel=1e-4)]
    first = 2 * (ALPHA + SIZE / RATE)
    assert seconds(fabric, short, long) == [
        pytest.approx(first, rel=1e-3),
        pytest.approx(2 * ALPHA + 3 * SIZE / RATE, rel=1e-3),
    ]


def test_a_ring_that_crosses_oversubscribed_leaves_slows_down_only_when_placed_badly() -> None:
    """In order, one flow leaves each leaf; interleaved, all four do, over links a quarter as wide as they need."""
    fabric = leaf_spine(16, 4, 1, RATE, oversub=4.0)
    interleaved = [f"host{4 * (i % 4) + i // 4}" for i in range(16)]
    good, bad = (seconds(fabric, ring_steps(order, SIZE, 30))[0] for order in (fabric.hosts, interleaved))
    assert good == pytest.approx(30 * SIZE / 16 / RATE, rel=1e-4)
    assert bad == pytest.approx(4 * good, rel=1e-4)


def test_topology_matters() -> None:
    """The same all-to-all of 16; in a ring all of step k crosses min(k, 16 - k) links of each direction."""
    flat, mesh, around, narrow, grid, tree = (
        seconds(fabric, exchange_steps(fabric.hosts, SIZE))[0]
        for fabric in (
            star(16, RATE),
            nvlink_mesh(16, RATE / 15),
            ring(16, RATE),
            leaf_spine(16, 4, 4, RATE, oversub=4.0),
            torus((4, 4), RATE),
            fat_tree(4, RATE),
        )
    )
    step = SIZE / 16 / RATE
    assert flat == pytest.approx(15 * step, rel=1e-4)
    assert mesh == pytest.approx(15 * 15 * step, rel=1e-4)
    assert around == pytest.approx((2 * sum(range(1, 8)) + 8) * step, rel=0.13)  # 64; the 8 opposite split unevenly
    assert len({round(t / step, 2) for t in (flat, mesh, around, narrow, grid, tree)}) == 6
    assert flat < tree < narrow


def test_repeated_steps_are_solved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    solved: list[int] = []
    monkeypatch.setattr("atoll.sim.fluid.rates", lambda *a: solved.append(len(a[0])) or rates(*a))
    fabric = leaf_spine(32, 4, 2, RATE, latency_s=ALPHA / 4)
    seconds(fabric, ring_steps(fabric.hosts, SIZE, 62))
    assert solved == [32]


def test_luck_does_not_change_how_long_it_takes() -> None:
    fabric = leaf_spine(16, 4, 2, RATE, oversub=2.0, latency_s=ALPHA / 4)
    walks = [exchange_steps(fabric.hosts, SIZE), ring_steps(fabric.hosts[::3], SIZE, 10)]
    steps = [list(walk) for walk in walks]
    times = {tuple(seconds(fabric, *map(iter, steps), tie_break=tie)) for tie in (None, 1, 2, 3)}
    assert len(times) == 1


def test_the_bits_do_not_depend_on_the_string_hash() -> None:
    code = (
        "from atoll.fabric import fat_tree; from tests.sim.collectives import *; f = fat_tree(4, 3e8, 1e-6);"
        "print(seconds(f, exchange_steps(f.hosts, 10**7), ring_steps(f.hosts[::-3], 10**7, 8)))"
    )
    texts = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        texts.add(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)
    assert len(texts) == 1


def test_links_tell_how_busy_they_were() -> None:
    fabric = star(4, RATE)
    loop = Loop()
    network = Network(loop, fabric)
    begin(network, ring_steps(fabric.hosts, SIZE, 6), lambda: None)
    loop.run()
    for link in fabric.links.values():
        assert network.usage(link) == (6 * SIZE / 4, pytest.approx(loop.now_s), pytest.approx(1.0, rel=1e-6))


@pytest.mark.slow
def test_a_ring_of_1024_nodes_takes_what_theory_says() -> None:
    fabric = leaf_spine(1024, 32, 16, RATE, latency_s=ALPHA / 4)
    (took,) = seconds(fabric, ring_steps(fabric.hosts, 1 << 30, 2046))
    step = (1 << 30) / 1024 / RATE
    assert took == pytest.approx(2046 * (ALPHA + step), rel=0.01)
