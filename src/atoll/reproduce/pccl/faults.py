"""Driver: does a group survive churn, a kill in a large reduce, a newcomer at the wrong moment? (PCCL, "Done when"
2-4.)"""

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

import atoll
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.churn import FOREVER, Churn
from atoll.runtime.processes import LocalProcesses


def churn(seconds: float, seed: int, say: Say) -> Line:
    say(f"churn for {seconds:g} s: up to 8 processes, 8 tags in flight")
    r = Churn(seed, say=say).run(seconds)
    did = ", ".join(f"{r.done[what]} {what}" for what in ("spawned", "killed", "stopped", "expelled"))
    measured = (
        f"{r.steps} steps, {did}; "
        f"worst gap {r.worst_gap_s:.1f} s; {r.compared} hashes compared, "
        f"{len(r.differing)} differ; {len(r.failures)} failures"
    )
    return Line(
        "2",
        f"{seconds:g} s of random spawn, SIGKILL and SIGSTOP, 8 tags in flight: steps go on, states stay equal",
        "no gap > 5 s, no hash differs",
        measured + "".join(f"; {f}" for f in r.failures[:2]),
        judged(r.ok),
    )


def kill_in_a_large_reduce(say: Say) -> Iterator[Line]:
    say("SIGKILL in a 64 MiB reduce")
    heard: dict[str, list[dict[str, Any]]] = {}

    def line(name: str, text: str) -> None:
        heard.setdefault(name, []).append(json.loads(text))

    def wait_until(peers: LocalProcesses, ready: Callable[[], bool], seconds: float = 60.0) -> bool:
        deadline = time.monotonic() + seconds
        while not ready() and time.monotonic() < deadline:
            peers.wait_any(0.2)
        return ready()

    def steps(name: str, world: int = 0) -> list[dict[str, Any]]:
        return [s for s in heard.get(name, []) if s["event"] == "step" and world in (0, s["world"])]

    def losses(name: str) -> list[dict[str, Any]]:
        return [s for s in heard.get(name, []) if s["event"] == "lost"]

    with tempfile.TemporaryDirectory() as folder, atoll.Master() as master, LocalProcesses(Path(folder)) as peers:
        for name in ("a", "b", "c"):
            argv = [sys.executable, "-m", "atoll.reproduce.peer", master.address, str(FOREVER), "--size", str(8 << 20)]
            peers.start([*argv, "--min-world", "3"], name, stdout=line, env={"OMP_NUM_THREADS": "1"})
        wait_until(peers, lambda: all(len(steps(n)) >= 2 for n in "abc"))
        peers.kill("a")
        killed = time.time()
        wait_until(peers, lambda: all(losses(n) and steps(n, world=2) for n in "bc"))
        lost = [losses(n)[0] for n in "bc" if losses(n)]
        after = [steps(n, world=2)[0] for n in "bc" if steps(n, world=2)]
    slowest = max((s["at"] - killed for s in lost), default=float("inf"))
    right = len(after) == 2 and all(s["first"] == float(s["revision"] - 1) * 3 for s in after)
    equal = len({s["hash"] for s in after}) == 1
    yield Line(
        "3a",
        "a peer is killed in a 64 MiB reduce: survivors raise at once, their input unchanged",
        "<= 1 s, unchanged",
        f"{slowest * 1e3:.0f} ms; {sum(s['intact'] for s in lost)} of 2 unchanged",
        judged(slowest <= 1.0 and len(lost) == 2 and all(s["intact"] for s in lost)),
    )
    yield Line(
        "3b",
        "the retry gives the right sum of those who are left",
        "right, equal",
        f"{'right' if right else 'wrong'}, {'equal' if equal else 'unequal'}",
        judged(right and equal),
    )


def master_restarts(say: Say) -> Line:
    """Twice, at a time when operations are on their way."""
    say("the master is killed and started again, twice")
    steps: dict[str, list[dict[str, Any]]] = {name: [] for name in "abc"}
    trouble: list[str] = []
    address: list[str] = []

    def line(name: str, text: str) -> None:
        said = json.loads(text)
        if said["event"] == "listening":
            address.append(said["address"])
        elif said["event"] == "step":
            steps[name].append(said)
        elif said["event"] in ("expelled", "failed"):
            trouble.append(f"{name} {said['event']}: {said['message']}")

    def wait_until(children: LocalProcesses, ready: Callable[[], bool], seconds: float = 40.0) -> None:
        deadline = time.monotonic() + seconds
        while not ready() and time.monotonic() < deadline:
            children.wait_any(0.2)

    def all_past(revision: int) -> bool:
        return all(some and some[-1]["revision"] >= revision for some in steps.values())

    with tempfile.TemporaryDirectory() as folder, LocalProcesses(Path(folder)) as children:

        def start_master(listen: str) -> None:
            argv = [sys.executable, "-m", "atoll", "master", "--json", "--listen", listen]
            children.start([*argv, "--state", str(Path(folder) / "master.json")], "master", stdout=line)

        start_master("127.0.0.1:0")
        wait_until(children, lambda: bool(address))
        for name in steps:
            argv = [sys.executable, "-m", "atoll.reproduce.peer", address[0], str(FOREVER), "--tags", "8"]
            children.start([*argv, "--min-world", "3"], name, stdout=line, env={"OMP_NUM_THREADS": "1"})
        wait_until(children, lambda: all_past(20))
        for _ in range(2):
            children.kill("master")
            wait_until(children, lambda: "master" not in children.alive())
            start_master(address[0])
            target = 20 + max(some[-1]["revision"] for some in steps.values() if some)
            wait_until(children, lambda target=target: all_past(target))  # type: ignore[misc]
        alive = set(steps) <= set(children.alive())
    gap_s = max((b["at"] - a["at"] for some in steps.values() for a, b in pairwise(some)), default=float("inf"))
    revisions = [said["revision"] for some in steps.values() for said in some]
    skipped = sum(b["revision"] - a["revision"] != 1 for some in steps.values() for a, b in pairwise(some))
    taken = len(set(revisions))
    differ = len({(s["revision"], s["hash"]) for some in steps.values() for s in some}) - taken
    return Line(
        "8q",
        "the master is killed and started again: peers come back with their revision, no step is lost or taken twice",
        "nobody leaves, no step skipped, equal states, gap <= 5 s",
        f"{taken} steps, {skipped} skipped or taken twice, {differ} states differ, longest gap {gap_s:.1f} s"
        + "".join(f"; {text}" for text in trouble[:2]),
        judged(alive and not trouble and not skipped and not differ and gap_s <= 5.0 and len(address) == 3),
    )


def newcomer_during_a_reduce(say: Say) -> Line:
    say("a newcomer joins while a reduce is on its way")
    asked_in = threading.Event()
    results: dict[str, Any] = {}
    with atoll.Master() as master:

        def newcomer() -> None:
            asked_in.set()
            with atoll.join(master.address) as group:
                state = atoll.SharedState({"w": np.zeros(1 << 20, np.float32)})
                results["first"] = group.sync(state).bytes_received
                results["steady"] = group.sync(state).bytes_received
                results["newcomer"] = state.digest(), group.world
                group.barrier()

        late = threading.Thread(target=newcomer, daemon=True)

        def incumbent(name: str) -> None:
            with atoll.join(master.address, min_world=2) as group:
                w = np.arange(1 << 20, dtype=np.float32)
                state = atoll.SharedState({"w": w}, revision=5)
                group.sync(state)
                x = np.ones(16 << 20, np.float32)
                work = group.all_reduce_async(x, "sum")
                if group.rank == 0:
                    late.start()
                asked_in.wait(10.0)
                world_in_flight = group.world
                result = work.wait(60.0)
                while not group.peers_pending():  # it may not have reached the master yet
                    group.barrier()
                group.update_topology()
                group.sync(state)
                group.sync(state)
                results[name] = state.digest(), group.world
                results["reduce"] = result.world == 2 and world_in_flight == 2 and float(x[0]) == 2.0
                group.barrier()

        threads = [threading.Thread(target=incumbent, args=(n,), daemon=True) for n in ("one", "two")]
        for thread in threads:
            thread.start()
        for thread in [*threads, late]:
            thread.join(60.0)
    states = {results.get(name) for name in ("one", "two", "newcomer")}
    ok = len(states) == 1 and None not in states and results.get("reduce") and results["steady"] == 0
    measured = (
        f"reduce finished by 2: {bool(results.get('reduce'))}; {len(states)} state(s) on 3 peers; newcomer received "
        f"{results.get('first', 0) / 2**20:.0f} MiB, then {results.get('steady')} bytes"
    )
    return Line(
        "4",
        "a newcomer waits while an async reduce runs, then holds the same state; then nothing moves",
        "1 state, 0 bytes",
        measured,
        judged(bool(ok)),
    )
