"""Driver: does a group survive churn, a kill in a large reduce, a newcomer at the wrong moment, the end of its master?
(PCCL, "Done when" 2-4, 8.)"""

import threading
import time
from collections.abc import Iterator
from itertools import pairwise
from typing import Any, Final

import numpy as np

import atoll
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.churn import FOREVER, Churn
from atoll.reproduce.crew import Crew, Event, crew

NAMES: Final = "abc"


def churn(seconds: float, seed: int, say: Say) -> Iterator[Line]:
    say(f"churn for {seconds:g} s: up to 8 processes, 8 tags in flight")
    r = Churn(seed, say=say).run(seconds)
    did = ", ".join(f"{r.done[what]} {what}" for what in ("spawned", "killed", "stopped", "expelled"))
    measured = (
        f"{r.steps} steps, {did}; "
        f"worst gap {r.worst_gap_s:.1f} s; {r.compared} hashes compared, "
        f"{len(r.differing)} differ; {len(r.failures)} failures"
    )
    yield Line(
        "2",
        f"{seconds:g} s of random spawn, SIGKILL and SIGSTOP, 8 tags in flight: steps go on, states stay equal",
        "no gap > 5 s, no hash differs",
        measured + "".join(f"; {f}" for f in r.failures[:2]),
        judged(r.ok),
    )


def kill_in_a_large_reduce(say: Say) -> Iterator[Line]:
    say("SIGKILL in a 64 MiB reduce")
    with atoll.Master() as master, crew() as peers:
        for name in NAMES:
            _start(peers, name, master.address, "--size", str(8 << 20), "--min-world", "3", "--tell-begun")

        def after_kill(name: str) -> list[Event]:
            return [said for said in peers.of("step", name) if said["world"] == 2]

        peers.until(lambda: all(len(peers.of("step", name)) >= 2 for name in NAMES), "some steps", 60.0)
        begun = len(peers.of("begun", "a"))
        peers.until(lambda: len(peers.of("begun", "a")) > begun, "another reduce", 60.0)
        peers.processes.kill("a")
        killed = time.time()
        peers.until(lambda: all(peers.of("lost", name) and after_kill(name) for name in "bc"), "two who go on", 60.0)
        lost = [peers.of("lost", name)[0] for name in "bc"]
        after = [after_kill(name)[0] for name in "bc"]
    slowest = max(s["at"] - killed for s in lost)
    right = all(s["first"] == float(s["revision"] - 1) * 3 for s in after)
    equal = len({s["hash"] for s in after}) == 1
    yield Line(
        "3a",
        "a peer is killed in a 64 MiB reduce: survivors raise at once, their input unchanged",
        "<= 1 s, unchanged",
        f"{slowest * 1e3:.0f} ms; {sum(s['intact'] for s in lost)} of 2 unchanged",
        judged(slowest <= 1.0 and all(s["intact"] for s in lost)),
    )
    yield Line(
        "3b",
        "the retry gives the right sum of those who are left",
        "right, equal",
        f"{'right' if right else 'wrong'}, {'equal' if equal else 'unequal'}",
        judged(right and equal),
    )


def master_restarts(say: Say) -> Iterator[Line]:
    """Twice, at a time when operations are on their way."""
    say("the master is killed and started again, twice")
    with crew() as peers:
        state = "--state", str(peers.folder / "master.json")
        address = peers.master("master", *state)
        for name in NAMES:
            _start(peers, name, address, "--tags", "8", "--min-world", "3")

        def all_past(revision: int) -> bool:
            return all(_revision(peers, name) >= revision for name in NAMES)

        peers.until(lambda: all_past(20), "20 steps", 40.0)
        for _ in range(2):
            peers.kill("master")
            peers.master("master", *state, listen=address)
            target = 20 + max(_revision(peers, name) for name in NAMES)
            peers.until(lambda target=target: all_past(target), "20 more steps", 40.0)  # type: ignore[misc]
        alive = set(NAMES) <= set(peers.running())
        steps = [peers.of("step", name) for name in NAMES]
        trouble = [*peers.of("expelled"), *peers.of("failed")]
    gap_s = max((b["at"] - a["at"] for some in steps for a, b in pairwise(some)), default=float("inf"))
    revisions = [said["revision"] for some in steps for said in some]
    skipped = sum(b["revision"] - a["revision"] != 1 for some in steps for a, b in pairwise(some))
    taken = len(set(revisions))
    differ = len({(s["revision"], s["hash"]) for some in steps for s in some}) - taken
    yield Line(
        "8q",
        "the master is killed and started again: peers come back with their revision, no step is lost or taken twice",
        "nobody leaves, no step skipped, equal states, gap <= 5 s",
        f"{taken} steps, {skipped} skipped or taken twice, {differ} states differ, longest gap {gap_s:.1f} s"
        + "".join(f"; {said['said_by']}: {said['message']}" for said in trouble[:2]),
        judged(alive and not trouble and not skipped and not differ and gap_s <= 5.0),
    )


def _start(peers: Crew, name: str, address: str, *options: str) -> None:
    peers.start(name, "-m", "atoll.reproduce.peer", address, str(FOREVER), *options)


def _revision(peers: Crew, name: str) -> int:
    return int(peers.of("step", name)[-1]["revision"]) if peers.of("step", name) else 0


def newcomer_during_a_reduce(say: Say) -> Iterator[Line]:
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
    yield Line(
        "4",
        "a newcomer waits while an async reduce runs, then holds the same state; then nothing moves",
        "1 state, 0 bytes",
        measured,
        judged(bool(ok)),
    )
