"""Driver: long, lossy, cut and uneven networks, in a lab on this machine: real TCP over shaped links. (PCCL, "Done
when" 3, 5, 7.)"""

import json
import queue
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

from atoll.errors import LabUnavailable
from atoll.group.wiring.wire import RECONNECT_S
from atoll.net import lab
from atoll.net.lab import Lab, Shape
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.rivals import Settings, Spec, Task, Times, Way, compare

PORT: Final = 48148
WAN: Final = Shape(rate_bits_per_s=300e6, delay_s=0.05, loss=1e-4)
OFFICE: Final = Shape(rate_bits_per_s=100e6, delay_s=0.005)
SLOW: Final = Shape(rate_bits_per_s=10e6, delay_s=0.005)
_DEVICE: Final = "wan0"


def networks(full: bool, say: Say) -> Iterator[Line]:
    """All of it, or why it can't be shown here."""
    try:
        yield silent_partition(say)
        yield from stripes(full, say)
        yield quantised_on_a_slow_link(full, say)
        yield slow_pair(full, say)
    except LabUnavailable as error:
        claims = {"3c": "a silent partition", "5": "stripes", "6d": "uint8 on 100 Mbit/s", "7": "a slow pair of hosts"}
        for number, claim in claims.items():
            yield Line(number, claim, "", f"needs a network lab: {error}", "not yet", "-")


@contextmanager
def _master(network: Lab, host: int, *flags: str, port: int = PORT) -> Iterator[str]:
    """A master on a host of the lab."""
    address = f"{network.address(host)}:{port}"
    argv = [sys.executable, "-m", "atoll", "master", "--listen", address, "--json", "--insecure", *flags]
    process = network.start(host, argv, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        if not process.stdout.readline():
            raise LabUnavailable("the master could not be started there")
        yield address
    finally:
        process.kill()
        process.wait()


def _starter(network: Lab) -> Any:
    def start(number: int, argv: list[str]) -> "subprocess.Popen[str]":
        env_argv = ["env", "OMP_NUM_THREADS=1", *argv]
        return network.start(number, env_argv, stdout=subprocess.PIPE, text=True)

    return start


# -- 3c ----------------------------------------------------------------------------------------------------------------


def silent_partition(say: Say) -> Line:
    """One of three hosts falls silent: nothing comes from it any more, no connection is closed."""
    say("a host is cut off without a word")
    heard: queue.Queue[tuple[int, dict[str, Any]]] = queue.Queue()
    with lab.open_lab(4) as network, _master(network, 0) as address:
        processes = []
        for host in (1, 2, 3):
            argv = [sys.executable, "-m", "atoll.reproduce.peer", address, str(10**9), "--pace", "0.01"]
            process = network.start(host, [*argv, "--min-world", "3"], stdout=subprocess.PIPE, text=True)
            processes.append(process)
            threading.Thread(target=_listen, args=(host, process, heard), daemon=True).start()
        _until(heard, lambda said: said["event"] == "step" and said["revision"] >= 20, {1, 2, 3}, 60.0)
        network.cut(3)
        cut = time.time()
        survivors = _until(heard, lambda said: said["event"] == "lost", {1, 2}, 20.0)
        _until(heard, lambda said: said["event"] == "step" and said["world"] == 2, {1, 2}, 20.0)
        say("the one cut off looks for the master")
        alone = _until(heard, lambda said: said["event"] == "failed", {3}, RECONNECT_S + 20.0)
        for process in processes:
            process.kill()
    slowest = max((said["at"] - cut for said in survivors.values()), default=float("inf"))
    cut_off = alone[3]["at"] - cut if alone else float("inf")
    intact = all(said["intact"] for said in survivors.values())
    return Line(
        "3c",
        "a silent partition (no FIN): survivors go on; the one cut off learns of it too",
        f"<= 3 s; MasterLost when {RECONNECT_S:.0f} s of looking for it are over",
        f"survivors after {slowest:.1f} s, inputs {'intact' if intact else 'NOT intact'}; the one cut off: "
        f"{alone[3]['kind'] if alone else 'nothing'} after {cut_off:.1f} s",
        judged(slowest <= 3.0 and len(survivors) == 2 and intact and bool(alone) and alone[3]["kind"] == "MasterLost"),
    )


def _listen(host: int, process: "subprocess.Popen[str]", heard: "queue.Queue[tuple[int, dict[str, Any]]]") -> None:
    assert process.stdout is not None
    for line in process.stdout:
        heard.put((host, json.loads(line)))


def _until(
    heard: "queue.Queue[tuple[int, dict[str, Any]]]", wanted: Any, hosts: set[int], timeout_s: float
) -> dict[int, dict[str, Any]]:
    """The first wanted event of each of these hosts, as far as they come in time."""
    found: dict[int, dict[str, Any]] = {}
    end = time.monotonic() + timeout_s
    while set(found) < hosts:
        try:
            host, said = heard.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            break
        if host in hosts and host not in found and wanted(said):
            found[host] = said
    return found


# -- 5, 6 --------------------------------------------------------------------------------------------------------------


def _by_name(times: list[Times]) -> dict[str, Times]:
    return {t.way: t for t in times}


def stripes(full: bool, say: Say) -> Iterator[Line]:
    """Eight connections against one, and against gloo, on a long, lossy link."""
    for number, control in [("5a", "cubic"), ("5b", "reno"), *([("5c", "bbr")] if full else [])]:
        say(f"stripes over 300 Mbit/s, 100 ms, 1e-4 loss ({control})")
        with lab.open_lab(2, WAN, congestion=control) as network, _master(network, 0) as address:
            rivals = {"cubic": ("1",), "reno": ("gloo",), "bbr": ("1", "gloo")}[control]
            one = Way("1", "one", algorithm="ring")
            ways = (Way("8", "many", algorithm="ring"), *(one if name == "1" else Way(name) for name in rivals))
            with _master(network, 0, port=PORT + 1) as other:
                groups = {"many": Settings(address, connections=8), "one": Settings(other, connections=1)}
                task = Task(32 << 20, 4 if full else 2, 1, ways)
                found = _by_name(compare(Spec(2, groups, (task,), _DEVICE), _starter(network), timeout_s=400.0))
            used = network.congestion
        ratios = {name: found[name].median_s / found["8"].median_s for name in rivals}
        equal = "1" not in found or found["8"].digest == found["1"].digest
        against = ", ".join(f"{name}: {found[name].spread}: {ratio:.1f}x" for name, ratio in ratios.items())
        same = f"; results {'equal' if equal else 'NOT equal'}" if "1" in found else ""
        measured = f"{used}: 8 connections: {found['8'].spread}; {against}{same}"
        claim = f"32 MiB between two hosts, 300 Mbit/s, 100 ms, 1e-4 loss, {control}"
        ok = equal and used == control
        if control == "cubic":
            line = f"{claim}: 8 connections against one", ">= 2.5x, same bits", ratios["1"] >= 2.5
        elif control == "reno":
            line = f"{claim}: 8 connections against gloo", ">= 2x", ratios["gloo"] >= 2.0
        else:
            line = f"{claim}: 8 connections against one", "little gain: bbr fills links by itself", True
        yield Line(number, line[0], line[1], measured, judged(ok and line[2]))


def quantised_on_a_slow_link(full: bool, say: Say) -> Line:
    """Fewer bytes are fewer seconds where the link is the limit."""
    say("uint8 over 100 Mbit/s")
    with lab.open_lab(2, OFFICE) as network, _master(network, 0) as address:
        ways = tuple(Way(codec or "fp32", "g", codec=codec) for codec in (None, "bf16", "uint8", "int4"))
        spec = Spec(2, {"g": Settings(address)}, (Task(16 << 20, 5 if full else 3, 1, ways),))
        found = _by_name(compare(spec, _starter(network), timeout_s=200.0))
    ratios = {name: found["fp32"].median_s / t.median_s for name, t in found.items()}
    return Line(
        "6d",
        "16 MiB on a 100 Mbit/s link: uint8 against fp32",
        ">= 3x",
        f"fp32 {found['fp32'].spread}; " + ", ".join(f"{n} {ratios[n]:.1f}x" for n in ("bf16", "uint8", "int4")),
        judged(ratios["uint8"] >= 3.0),
    )


# -- 7 -----------------------------------------------------------------------------------------------------------------


def slow_pair(full: bool, say: Say) -> Line:
    """Six hosts, one pair of which is slow, and next to each other in the order of arrival."""
    say("a ring of six hosts with one slow pair")
    seconds: dict[str, float] = {}
    for name, flags in (("as they came", ["--no-measure"]), ("measured", [])):
        with lab.open_lab(6, OFFICE) as network, _master(network, 0, *flags) as address:
            network.set(0, 1, SLOW)
            started = _in_order(network, address)
            task = Task(6 << 20, 3 if full else 2, 1, (Way("ring", "g", algorithm="ring"),))
            found = compare(Spec(6, {"g": Settings(address)}, (task,)), started, timeout_s=300.0)
            seconds[name] = statistics.median(found[0].seconds)
    ratio = seconds["as they came"] / seconds["measured"]
    fast = OFFICE.rate_bits_per_s / SLOW.rate_bits_per_s
    return Line(
        "7",
        "six hosts, one pair ten times slower: the measured ring avoids it (exact = brute force: tests)",
        f"about {fast:.0f}x faster (>= {0.7 * fast:.0f}x)",
        f"{seconds['as they came']:.2f} s -> {seconds['measured']:.2f} s: {ratio:.1f}x",
        judged(ratio >= 0.7 * fast),
    )


def _in_order(network: Lab, address: str) -> Any:
    """Starts peers so that they join in the order of hosts: the first two are the slow pair."""
    start = _starter(network)

    def started(number: int, argv: list[str]) -> "subprocess.Popen[str]":
        process: subprocess.Popen[str] = start(number, argv)
        _wait_for_members(network, address, number + 1)
        return process

    return started


def _wait_for_members(network: Lab, address: str, count: int) -> None:
    argv = [sys.executable, "-m", "atoll", "status", address, "--json"]
    end = time.monotonic() + 30.0
    while time.monotonic() < end:
        asked = network.start(0, argv, stdout=subprocess.PIPE, text=True)
        out = asked.communicate(timeout=20.0)[0]
        if out and len(json.loads(out.splitlines()[0])["members"]) >= count:
            return
