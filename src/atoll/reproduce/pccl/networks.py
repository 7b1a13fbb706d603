"""Driver: long, lossy, cut and uneven networks, in a lab on this machine: real TCP over shaped links. (PCCL, "Done
when" 3, 5, 7.)"""

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

from atoll.group.wiring.wire import RECONNECT_S
from atoll.net.lab import Lab, Shape, open_lab
from atoll.reproduce.api import Line, Say, judged, missing
from atoll.reproduce.churn import FOREVER
from atoll.reproduce.crew import PORT, Crew, Starter, crew_in, on
from atoll.reproduce.rivals import Settings, Spec, Task, Times, Way, compare

WAN: Final = Shape(rate_bits_per_s=300e6, delay_s=0.05, loss=1e-4)
OFFICE: Final = Shape(rate_bits_per_s=100e6, delay_s=0.005)
SLOW: Final = Shape(rate_bits_per_s=10e6, delay_s=0.005)
_DEVICE: Final = "wan0"


def silent_partition(say: Say) -> Iterator[Line]:
    """One of three hosts falls silent: nothing comes from it any more, no connection is closed."""
    say("a host is cut off without a word")
    with open_lab(4) as network, crew_in(network) as (peers, address):
        for host in (1, 2, 3):
            argv = ("-m", "atoll.reproduce.peer", address, str(FOREVER), "--pace", "0.01", "--min-world", "3")
            peers.start(f"host {host}", *argv, by=on(network, host))
        two, alone = ("host 1", "host 2"), "host 3"

        def go_on() -> bool:
            return all(any(said["world"] == 2 for said in peers.of("step", name)[-1:]) for name in two)

        def all_past(revision: int) -> bool:
            last = [peers.of("step", name)[-1:] for name in (*two, alone)]
            return all(some and some[0]["revision"] >= revision for some in last)

        peers.until(lambda: all_past(20), "20 steps", 60.0)
        network.cut(3)
        cut = time.time()
        peers.until(lambda: all(peers.of("lost", name) for name in two) and go_on(), "two who go on alone", 40.0)
        say("the one cut off looks for the master")
        peers.until(lambda: peers.of("failed", alone), "an end of that", RECONNECT_S + 20.0)
        lost, (failed, *_) = [peers.of("lost", name)[0] for name in two], peers.of("failed", alone)
    slowest, intact = max(said["at"] - cut for said in lost), all(said["intact"] for said in lost)
    yield Line(
        "3c",
        "a silent partition (no FIN): survivors go on; the one cut off learns of it too",
        f"<= 3 s; MasterLost when {RECONNECT_S:.0f} s of looking for it are over",
        f"survivors after {slowest:.1f} s, inputs {'intact' if intact else 'NOT intact'}; the one cut off: "
        f"{failed['kind']} after {failed['at'] - cut:.1f} s",
        judged(slowest <= 3.0 and intact and failed["kind"] == "MasterLost"),
    )


# -- 5, 6 --------------------------------------------------------------------------------------------------------------


def _by_name(times: list[Times]) -> dict[str, Times]:
    return {t.way: t for t in times}


def stripes(full: bool, say: Say) -> Iterator[Line]:
    """Eight connections against one, and against gloo, on a long, lossy link."""
    for number, control in [("5a", "cubic"), ("5b", "reno"), *([("5c", "bbr")] if full else [])]:
        say(f"stripes over 300 Mbit/s, 100 ms, 1e-4 loss ({control})")
        claim = f"32 MiB between two hosts, 300 Mbit/s, 100 ms, 1e-4 loss, {control}"
        with open_lab(2, WAN, congestion=control) as network, crew_in(network) as (peers, address):
            if network.congestion != control:
                yield missing(number, claim, "", f"{control}, which this kernel hasn't: it has {network.congestion}")
                continue
            rivals = {"cubic": ("1",), "reno": ("gloo",), "bbr": ("1", "gloo")}[control]
            one = Way("1", "one", algorithm="ring")
            ways = (Way("8", "many", algorithm="ring"), *(one if name == "1" else Way(name) for name in rivals))
            listen = f"{network.address(0)}:{PORT + 1}"
            other = peers.master("another master", "--insecure", listen=listen, by=on(network, 0))
            groups = {"many": Settings(address, connections=8), "one": Settings(other, connections=1)}
            task = Task(32 << 20, 4 if full else 2, 1, ways)
            spec = Spec(2, groups, (task,), _DEVICE)
            found = _by_name(compare(peers, spec, by=_hosts(network), timeout_s=400.0))
        ratios = {name: found[name].median_s / found["8"].median_s for name in rivals}
        equal = "1" not in found or found["8"].digest == found["1"].digest
        against = ", ".join(f"{name}: {found[name].spread}: {ratio:.1f}x" for name, ratio in ratios.items())
        same = f"; results {'equal' if equal else 'NOT equal'}" if "1" in found else ""
        measured = f"8 connections: {found['8'].spread}; {against}{same}"
        if control == "cubic":
            line = f"{claim}: 8 connections against one", ">= 2.5x, same bits", ratios["1"] >= 2.5
        elif control == "reno":
            line = f"{claim}: 8 connections against gloo", ">= 2x", ratios["gloo"] >= 2.0
        else:
            line = f"{claim}: 8 connections against one", "same bits (little gain: bbr fills links by itself)", True
        yield Line(number, line[0], line[1], measured, judged(equal and line[2]))


def quantised_on_a_slow_link(full: bool, say: Say) -> Iterator[Line]:
    """Fewer bytes are fewer seconds where the link is the limit."""
    say("uint8 over 100 Mbit/s")
    with open_lab(2, OFFICE) as network, crew_in(network) as (peers, address):
        ways = tuple(Way(codec or "fp32", "g", codec=codec) for codec in (None, "bf16", "uint8", "int4"))
        spec = Spec(2, {"g": Settings(address)}, (Task(16 << 20, 5 if full else 3, 1, ways),))
        found = _by_name(compare(peers, spec, by=_hosts(network), timeout_s=200.0))
    ratios = {name: found["fp32"].median_s / t.median_s for name, t in found.items()}
    yield Line(
        "6d",
        "16 MiB on a 100 Mbit/s link: uint8 against fp32",
        ">= 3x",
        f"fp32 {found['fp32'].spread}; " + ", ".join(f"{n} {ratios[n]:.1f}x" for n in ("bf16", "uint8", "int4")),
        judged(ratios["uint8"] >= 3.0),
    )


# -- 7 -----------------------------------------------------------------------------------------------------------------


def slow_pair(full: bool, say: Say) -> Iterator[Line]:
    """Six hosts, one pair of which is slow, and next to each other in the order of arrival."""
    say("a ring of six hosts with one slow pair")
    seconds: dict[str, float] = {}
    for name, flags in (("as they came", ("--no-measure",)), ("measured", ())):
        with open_lab(6, OFFICE) as network, crew_in(network, *flags) as (peers, address):
            network.set(0, 1, SLOW)
            asking = partial(peers.start, "status", "-m", "atoll", "status", address, "--json", by=on(network, 0))
            task = Task(6 << 20, 3 if full else 2, 1, (Way("ring", "g", algorithm="ring"),))
            spec = Spec(6, {"g": Settings(address)}, (task,))
            started = partial(_joined, peers, asking)  # in the order of hosts: the first two are the slow pair
            found = compare(peers, spec, started, by=_hosts(network), timeout_s=300.0)
            seconds[name] = statistics.median(found[0].seconds)
    ratio = seconds["as they came"] / seconds["measured"]
    fast = OFFICE.rate_bits_per_s / SLOW.rate_bits_per_s
    yield Line(
        "7",
        "six hosts, one pair ten times slower: the measured ring avoids it (exact = brute force: tests)",
        f"about {fast:.0f}x faster (>= {0.7 * fast:.0f}x)",
        f"{seconds['as they came']:.2f} s -> {seconds['measured']:.2f} s: {ratio:.1f}x",
        judged(ratio >= 0.7 * fast),
    )


def _joined(peers: Crew, ask: Callable[[], object], count: int) -> None:
    """Wait until there are so many members."""

    def members() -> int:
        ask()
        peers.until_ended("status", seconds=20.0)
        return len(peers.of("", "status")[-1]["members"])

    peers.until(lambda: members() >= count, f"member {count}", 30.0)


def _hosts(network: Lab) -> list[Starter]:
    return [on(network, host) for host in range(network.hosts)]
