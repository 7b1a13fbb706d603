"""Fabrics: what the builders build, and routes against brute force and networkx."""

import os
import random
import subprocess
import sys
from collections import Counter
from itertools import islice, pairwise
from math import inf, nan

import networkx
import pytest

from atoll.errors import InvalidData
from atoll.fabric import (
    Fabric,
    Link,
    Route,
    fat_tree,
    last_mile,
    leaf_spine,
    nvlink_mesh,
    nvswitch,
    pcie_tree,
    ring,
    star,
    torus,
    wan,
)


def nodes(route: Route) -> list[str]:
    """The nodes on the way; links that only bound others are none."""
    ways = [link for link in route if link.source != link.target]
    assert all(one.target == other.source for one, other in pairwise(ways))
    return [ways[0].source, *(link.target for link in ways)]


def graph(fabric: Fabric) -> networkx.DiGraph:
    found = networkx.DiGraph()
    found.add_weighted_edges_from((k.source, k.target, k.latency_s) for k in fabric.links.values())
    return found


def scattered(seed: int) -> Fabric:
    """Ten hosts in a ring with chords, all of random latency, so that no two routes cost the same."""
    luck = random.Random(seed)
    fabric = Fabric()
    for i in range(10):
        fabric.add_host(f"host{i}")
    for i in range(10):
        fabric.join(f"host{i}", f"host{(i + 1) % 10}", 1.0, luck.uniform(0.5, 2))
    for _ in range(30):
        one, other = luck.sample(fabric.hosts, 2)
        if f"{one}->{other}" not in fabric.links:
            fabric.add_link(one, other, 1.0, luck.uniform(0.5, 4))
    return fabric


def test_star_and_nvswitch_have_everybody_two_hops_apart() -> None:
    assert nodes(star(5, 1e9).route("host1", "host4")) == ["host1", "switch", "host4"]
    assert nodes(nvswitch(5, 1e9).route("gpu1", "gpu4")) == ["gpu1", "nvswitch", "gpu4"]


def test_leaf_spine_has_the_oversubscription_asked_for() -> None:
    fabric = leaf_spine(64, 4, 2, 1e9, oversub=4.0, latency_s=1e-6)
    up = [link for link in fabric.links.values() if link.source == "leaf0" and link.target.startswith("spine")]
    assert len(fabric.hosts) == 64
    assert [link.bytes_per_s for link in up] == [2e9, 2e9]
    assert nodes(fabric.route("host0", "host15")) == ["host0", "leaf0", "host15"]
    assert {len(route) for route in fabric.shortest_routes("host0", "host63")} == {4}
    assert len(fabric.shortest_routes("host0", "host63")) == 2


def test_fat_tree_has_as_many_ways_as_cores() -> None:
    fabric = fat_tree(4, 1e9)
    assert len(fabric.hosts) == 16
    assert len(fabric.links) == 2 * 3 * 16
    assert len(fabric.shortest_routes("host0", "host15")) == 4
    assert len(fabric.shortest_routes("host0", "host2")) == 2
    assert len(fabric.shortest_routes("host0", "host1")) == 1


def test_a_wan_has_each_pair_its_own_link_half_a_round_trip_long() -> None:
    fabric = wan([[0, 10, 20], [30, 0, 40], [50, 60, 0]], [[0, 0.2, 0.4], [0.2, 0, 0.6], [0.4, 0.6, 0]], loss=0.01)
    (link,) = fabric.route("host2", "host1")
    assert (link.bytes_per_s, link.latency_s, link.loss) == (60, 0.3, 0.01)
    assert len(fabric.links) == 6


def test_a_mesh_joins_each_pair_directly() -> None:
    fabric = nvlink_mesh(8, 25e9)
    assert len(fabric.links) == 56
    assert all(len(fabric.route("gpu3", gpu)) == 1 for gpu in fabric.hosts if gpu != "gpu3")


def test_what_crosses_the_pcie_root_shares_it_once() -> None:
    fabric = pcie_tree(2, 4, 16e9, root_bytes_per_s=20e9)
    assert [link.name for link in fabric.route("gpu1", "gpu6")] == [
        "gpu1->switch0",
        "switch0->root",
        "root complex",
        "root->switch1",
        "switch1->gpu6",
    ]
    assert len(fabric.route("gpu1", "gpu2")) == 2


def test_ring_and_torus_take_the_shorter_way_round() -> None:
    assert nodes(ring(8, 1e9).route("host1", "host7")) == ["host1", "host0", "host7"]
    grid = torus((4, 2, 3), 1e9)
    assert len(grid.hosts) == 24
    assert len(grid.links) == 2 * (24 + 12 + 24)
    assert len(grid.route("host0", "host23")) == 1 + 1 + 1
    assert len(ring(2, 1e9).links) == 2
    assert len(ring(1, 1e9).links) == 0


def test_a_last_mile_is_narrow_up_and_wide_down() -> None:
    fabric = last_mile([1e6, 2e6], [8e6, 9e6], [0.01, 0.02])
    assert [(k.bytes_per_s, k.latency_s) for k in fabric.route("host0", "host1")] == [(1e6, 0.01), (9e6, 0.02)]


def test_half_duplex_is_one_more_link_that_both_directions_cross() -> None:
    fabric = Fabric()
    one, other = fabric.add_host("a"), fabric.add_host("b")
    fabric.join_half_duplex(one, other, 100.0)
    assert [link.name for link in fabric.route("a", "b")] == ["a->b", "a=b"]
    assert fabric.route("a", "b")[1] is fabric.route("b", "a")[1]


def test_the_way_to_oneself_is_no_way() -> None:
    fabric = star(2, 1.0)
    assert fabric.route("host0", "host0") == ()
    assert fabric.shortest_routes("host0", "host0") == [()]
    assert fabric.k_shortest_routes("host0", "host0", 3) == [()]


def test_flows_spread_over_equal_routes_and_each_keeps_its_own() -> None:
    fabric = leaf_spine(8, 2, 4, 1e9)
    routes = [fabric.route("host0", "host7", flow) for flow in range(4000)]
    assert routes == [fabric.route("host0", "host7", flow) for flow in range(4000)]
    counts = Counter(routes)
    assert set(counts) == set(fabric.shortest_routes("host0", "host7"))
    assert all(900 < n < 1100 for n in counts.values())
    pairs = Counter(fabric.route(f"host{i}", f"host{j}")[1] for i in range(4) for j in range(4, 8))
    assert len(pairs) == 4


def test_routes_are_the_same_whatever_the_string_hash() -> None:
    code = (
        "from atoll.fabric import fat_tree; f = fat_tree(4, 1e9);"
        "print([k.name for i in range(50) for k in f.route('host0', 'host9', i)],"
        "[[k.name for k in r] for r in f.k_shortest_routes('host0', 'host9', 9)])"
    )
    texts = set()
    for seed in ("1", "2"):
        env = {**os.environ, "PYTHONHASHSEED": seed}
        texts.add(subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=True).stdout)
    assert len(texts) == 1


@pytest.mark.parametrize("seed", range(20))
def test_shortest_routes_are_those_of_networkx(seed: int) -> None:
    fabric = scattered(seed)
    for target in fabric.hosts[1:]:
        expected = {tuple(way) for way in networkx.all_shortest_paths(graph(fabric), "host0", target)}
        assert {tuple(nodes(route)) for route in fabric.shortest_routes("host0", target)} == expected
        assert all(tuple(nodes(fabric.route("host0", target, flow))) in expected for flow in range(5))


@pytest.mark.parametrize("seed", range(20))
def test_k_shortest_routes_are_those_of_networkx(seed: int) -> None:
    fabric = scattered(seed)
    expected = list(islice(networkx.shortest_simple_paths(graph(fabric), "host0", "host5", weight="weight"), 12))
    assert [nodes(r) for r in fabric.k_shortest_routes("host0", "host5", 12, lambda k: k.latency_s)] == expected


def test_there_are_no_more_routes_than_there_are() -> None:
    fabric = ring(5, 1.0)
    assert [len(route) for route in fabric.k_shortest_routes("host0", "host2", 9)] == [2, 3]


def test_parallel_links_are_routes_of_their_own() -> None:
    fabric = Fabric()
    fabric.add_host("a")
    fabric.add_host("b")
    rails = {fabric.add_link("a", "b", 1.0, name=f"rail{i}") for i in range(3)}
    assert {route[0] for route in fabric.k_shortest_routes("a", "b", 5)} == rails
    assert {fabric.route("a", "b", flow)[0] for flow in range(50)} == rails


def test_a_new_link_is_used_at_once() -> None:
    fabric = ring(6, 1.0)
    assert len(fabric.route("host0", "host3")) == 3
    fabric.add_link("host0", "host3", 1.0)
    assert len(fabric.route("host0", "host3")) == 1


def test_unknown_nodes_and_missing_ways_are_named() -> None:
    fabric = star(2, 1.0)
    fabric.add_host("island")
    for ask in (fabric.route, fabric.shortest_routes, lambda a, b: fabric.k_shortest_routes(a, b, 2)):
        with pytest.raises(InvalidData, match="no node 'atlantis' among the 4"):
            ask("host0", "atlantis")
        with pytest.raises(InvalidData, match="no route from 'host0' to 'island'"):
            ask("host0", "island")
    with pytest.raises(InvalidData, match="no node 'atlantis'"):
        fabric.add_link("host0", "atlantis", 1.0)


def test_names_are_given_once() -> None:
    fabric = star(2, 1.0)
    with pytest.raises(InvalidData, match="a node 'host0' already"):
        fabric.add_switch("host0")
    with pytest.raises(InvalidData, match="a link 'host0->switch' already"):
        fabric.add_link("host0", "switch", 1.0)


@pytest.mark.parametrize(
    "numbers", [{"bytes_per_s": nan}, {"bytes_per_s": -1.0}, {"bytes_per_s": inf}, {"latency_s": -1.0}, {"loss": 1.0}]
)
def test_a_link_of_impossible_numbers_is_refused(numbers: dict[str, float]) -> None:
    with pytest.raises(InvalidData, match=f"{next(iter(numbers))}=.* of link 'x'"):
        Link(0, "x", "a", "b", **{"bytes_per_s": 1.0, **numbers})


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InvalidData, match="10 hosts don't fit 4 leaves"):
        leaf_spine(10, 4, 2, 1.0)
    with pytest.raises(InvalidData, match="even number of ports, not 3"):
        fat_tree(3, 1.0)
    with pytest.raises(InvalidData, match="must both have 2 rows"):
        wan([[0, 1], [1, 0]], [[0, 1]])
    with pytest.raises(InvalidData, match="1 up, 2 down"):
        last_mile([1.0], [1.0, 2.0], [0.0])
