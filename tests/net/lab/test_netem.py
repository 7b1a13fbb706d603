"""The netem back end: its commands, by their text; and all but netem itself, by running them with another queue."""

import shutil
import subprocess
from collections.abc import Iterator

import pytest

from atoll.errors import LabUnavailable
from atoll.net.lab import namespaces, netem
from atoll.net.lab.api import Shape
from atoll.net.lab.namespaces import NamespaceLab
from atoll.net.lab.netem import NetemWires
from tests.net.lab.hosts import Program, listening, round_trips

KNOWN = "Specified qdisc kind is unknown"
"""What tc says of a command that it understands, but the kernel doesn't."""

SHAPES = {
    Shape(rate_bits_per_s=20e6, delay_s=0.05): "limit 259 delay 50000us rate 20000000bit",
    Shape(rate_bits_per_s=20e6, delay_s=0.05, jitter_s=0.01, loss=0.001, queue_bytes=150_000): (
        "limit 200 delay 55000us 5000us loss 0.1000000% rate 20000000bit"
    ),
    Shape(): "limit 175 delay 0us rate 1000000000bit",
    Shape(loss=1e-6): "limit 175 delay 0us loss 0.0001000% rate 1000000000bit",
}


@pytest.mark.parametrize("shape", SHAPES)
def test_a_shape_in_netems_words(shape: Shape) -> None:
    assert netem.netem(shape) == f"netem {SHAPES[shape]}"


def test_the_queue_towards_a_host_is_chosen_by_where_packets_come_from() -> None:
    commands = netem.classes(3, Shape())
    assert commands[:5] == [
        "qdisc add dev port0 root handle 1: htb default fff",
        "class add dev port0 parent 1: classid 1:fff htb rate 100gbit burst 10mb cburst 10mb quantum 60000",
        "class add dev port0 parent 1: classid 1:2 htb rate 100gbit burst 10mb cburst 10mb quantum 60000",
        "qdisc replace dev port0 parent 1:2 handle 11: netem limit 175 delay 0us rate 1000000000bit",
        "filter add dev port0 parent 1: protocol ip u32 match ip src 10.77.0.2/32 flowid 1:2",
    ]
    assert sum(command.startswith("filter") for command in commands) == 3 * 2
    assert netem.queue(31, 7, Shape()).startswith("qdisc replace dev port7 parent 1:20 handle 2f: netem ")


def test_hosts_are_cabled_to_the_bridge_and_know_each_other() -> None:
    assert netem.cables(["lab-0", "lab-1"], "wan0") == [
        "link add bridge type bridge stp_state 0",
        "link set bridge up",
        "link add port0 type veth peer name wan0 netns lab-0",
        "link set port0 mtu 1500 master bridge up",
        "link add port1 type veth peer name wan0 netns lab-1",
        "link set port1 mtu 1500 master bridge up",
    ]
    assert netem.plug(1, 3, "wan0") == [
        "link set wan0 address 02:00:00:00:00:02 gso_max_segs 1 up",
        "neigh add 10.77.0.1 lladdr 02:00:00:00:00:01 dev wan0 nud permanent",
        "neigh add 10.77.0.3 lladdr 02:00:00:00:00:03 dev wan0 nud permanent",
    ]


@pytest.fixture
def namespace() -> Iterator[str]:
    if why := namespaces.unavailable() or ("" if shutil.which("tc") else "there is no `tc`"):
        pytest.skip(f"no network namespace with tc: {why}")
    name = namespaces.trial_namespace()
    namespaces.run(["ip", "netns", "add", name])
    yield name
    namespaces.remove(name)


@pytest.mark.parametrize("shape", SHAPES)
def test_tc_understands_the_words(namespace: str, shape: Shape) -> None:
    command = ["tc", "-n", namespace, "qdisc", "add", "dev", "lo", "root", *netem.netem(shape).split()]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0 or KNOWN in done.stderr


def test_what_carries_netem_works_with_another_queue_too(namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        namespaces.batch("tc", namespace, ["qdisc add dev lo root handle 1: htb"])
    except LabUnavailable as error:
        pytest.skip(f"no htb in this kernel: {error}")
    monkeypatch.setattr(netem, "netem", lambda shape: f"pfifo limit {shape.queue_bytes}")
    with NamespaceLab(3, "cubic", lambda names, device: NetemWires(names, device, Shape(queue_bytes=100))) as lab:
        assert round_trips(lab, 0, 1, 5000)[0] < 0.01
        bridge = f"{lab._namespaces[0].rpartition('-')[0]}-bridge"
        assert packets_by_source(bridge, 1)["1:1"] > 15
        assert packets_by_source(bridge, 1)["1:3"] == 0
        assert packets_by_source(bridge, 0)["1:2"] > 15
        lab.set(0, 1, Shape(queue_bytes=77))
        assert "limit 77p" in namespaces.run(["tc", "-n", bridge, "qdisc", "show", "dev", "port0"])
        with listening(lab, 2, "echo", 5001), Program(lab, 0, "chat", lab.expose(2, 5001)) as chat:
            assert chat.hear() == "connected"
            lab.cut(2)
            chat.tell("one")
            assert chat.hear() == "sent"
            assert not chat.says_something(0.3)
            lab.heal(2)
            assert chat.hear() == "one\n"


def packets_by_source(bridge: str, to: int) -> dict[str, int]:
    """How many packets each class towards a host has seen, by its number."""
    shown = namespaces.run(["tc", "-n", bridge, "-s", "class", "show", "dev", f"port{to}"]).split()
    return {shown[at + 2]: int(shown[shown.index("pkt", at) - 1]) for at, word in enumerate(shown) if word == "class"}
