"""Driver: the group's own schedules over simulated fabrics, beside closed forms. (Simulator, "Done when" 3 and 9.)"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from math import log2
from typing import Final

from atoll.fabric import Fabric, leaf_spine, nvlink_mesh, ring, star
from atoll.group.collectives import schedules
from atoll.group.virtual import Sized, simulate
from atoll.reproduce.api import Line, Say, judged
from atoll.runtime.schedule import Compute, Lane, Recv, Schedule, Send
from atoll.sim.loop import Loop
from atoll.sim.net import Network

_ALPHA: Final = 10e-6
"""Seconds a way takes."""
_RATE: Final = 1e9
_SIZE: Final = 64 << 20
_WITHIN: Final = 0.01
_DIFFERENT: Final = ("mesh", "ring", "leaf-spine 4:1")

Of = Callable[[int], Schedule]
"""The schedule of a rank."""


def collectives(say: Say) -> Iterator[Line]:
    """Alone, sharing, on other topologies, and at scale."""
    say("collectives in virtual time")
    for number, name, formula in (
        ("3a", "ring all-reduce", "2 (N - 1) (alpha + S / (N B))"),
        ("3b", "ring reduce-scatter", "(N - 1) (alpha + S / (N B))"),
        ("3c", "ring all-gather", "(N - 1) (alpha + S / (N B))"),
        ("3d", "halving and doubling", "2 log2(N) alpha + 2 (N - 1) S / (N B)"),
        ("3e", "all-to-all, all at once", "alpha + (N - 1) S / (N B)"),
    ):
        found = {n: alone(name, n) / theory(name, n) - 1 for n in (2, 8, 64)}
        measured = "; ".join(f"N={n}: {off:+.2%}" for n, off in found.items())
        ok = all(abs(off) <= _WITHIN for off in found.values())
        yield Line(number, f"{name}, uncontended", f"{formula}, within 1 %", measured, judged(ok), "simulated")

    fabric = leaf_spine(4, 2, 1, _RATE, oversub=2.0, latency_s=_ALPHA / 4)
    both = [*fabric.hosts[::2], *fabric.hosts[1::2]]  # each ring has a host under each leaf
    one_s = seconds(lambda rank: schedules.ring_all_reduce(rank, 2), both[:2], fabric)
    two_s = seconds(two_rings, both, fabric)
    expected = 2 * (_ALPHA + _SIZE / _RATE)
    off = two_s / expected - 1
    yield Line(
        "3f", "two rings over shared spine links", f"half of each for each: {expected * 1e3:.1f} ms, within 1 %",
        f"{two_s * 1e3:.1f} ms ({off:+.2%}); one alone {one_s * 1e3:.1f} ms", judged(abs(off) <= _WITHIN), "simulated",
    )  # fmt: skip

    fabrics = {
        "star": star(16, _RATE), "mesh": nvlink_mesh(16, _RATE / 15), "ring": ring(16, _RATE),
        "leaf-spine 4:1": leaf_spine(16, 4, 4, _RATE, oversub=4.0),
    }  # fmt: skip
    times = {name: seconds(all_to_all(16), fabric.hosts, fabric, 16 * 16) for name, fabric in fabrics.items()}
    measured = "; ".join(f"{name}: {took * 1e3:.1f} ms" for name, took in times.items())
    claim = "the same all-to-all of 16 on a mesh, a ring and an oversubscribed leaf-spine"
    apart = len({round(times[name] * 1e3, 1) for name in _DIFFERENT}) == 3
    yield Line("3g", claim, "different times", measured, judged(apart), "simulated")


def a_thousand_ranks(say: Say) -> Iterator[Line]:
    """How long the simulator takes for them."""
    say("an all-reduce of 1,024 ranks")
    fabric = leaf_spine(1024, 32, 16, _RATE, latency_s=_ALPHA / 4)
    began = time.perf_counter()
    found = seconds(lambda rank: schedules.ring_all_reduce(rank, 1024), fabric.hosts, fabric, 1024, 1 << 30)
    took = time.perf_counter() - began
    expected = 2 * 1023 * (_ALPHA + (1 << 30) / 1024 / _RATE)
    ok = took < 60 and abs(found / expected - 1) <= _WITHIN
    measured = f"{took:.1f} s; {found:.3f} s of virtual time, theory {expected:.3f} s"
    yield Line("9d", "ring all-reduce of 1,024 ranks on leaf-spine, 2,046 steps", "< 60 s", measured, judged(ok))


def alone(name: str, n: int) -> float:
    """On a switch without bottleneck."""
    fabric = star(n, _RATE, _ALPHA / 2)
    makers = {
        "ring all-reduce": schedules.ring_all_reduce,
        "ring reduce-scatter": schedules.ring_reduce_scatter,
        "ring all-gather": schedules.ring_all_gather,
        "halving and doubling": schedules.halving_all_reduce,
    }
    if name in makers:
        return seconds(lambda rank: makers[name](rank, n), fabric.hosts, fabric, n)
    return seconds(all_to_all(n), fabric.hosts, fabric, n * n)


def theory(name: str, n: int) -> float:
    """After Thakur, Rabenseifner and Gropp (2005), with alpha the latency of the whole way."""
    part = _SIZE / (n * _RATE)
    return {
        "ring all-reduce": 2 * (n - 1) * (_ALPHA + part),
        "ring reduce-scatter": (n - 1) * (_ALPHA + part),
        "ring all-gather": (n - 1) * (_ALPHA + part),
        "halving and doubling": 2 * log2(n) * _ALPHA + 2 * (n - 1) * part,
        "all-to-all, all at once": _ALPHA + (n - 1) * part,
    }[name]


def all_to_all(n: int) -> Of:
    """Each gives each an nth of what it has."""
    return lambda rank: schedules.all_to_all(rank, n, lambda a, b: range(a * n + b, a * n + b + 1))


def two_rings(rank: int) -> Schedule:
    """Ranks 0 and 1 are one, 2 and 3 another."""
    first = rank // 2 * 2

    def shifted(lane: Lane) -> Lane:
        for step in lane:
            match step:
                case Send(to):
                    yield replace(step, to=to + first)
                case Recv(source):
                    yield replace(step, source=source + first)
                case Compute():
                    yield step

    return [shifted(lane) for lane in schedules.ring_all_reduce(rank - first, 2)]


def seconds(schedule: Of, hosts: list[str], fabric: Fabric, pieces: int = 2, nbytes: int = _SIZE) -> float:
    """Of virtual time. `pieces`: into how many a rank's tensor of `nbytes` is cut; n * n of them are of n tensors."""
    n = len(hosts)
    cut = Sized(nbytes).pieces(n) * n if pieces == n * n else Sized(nbytes).pieces(pieces)
    return simulate(schedule, cut, hosts, Network(Loop(), fabric)).seconds
