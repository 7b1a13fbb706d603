"""Who votes but doesn't send, or doesn't take what it is sent, goes; whoever only waits for him stays."""

import threading
from typing import Any

import numpy as np
import pytest

import atoll
from atoll.errors import Expelled, PeerLost
from atoll.group.membership.stalls import BLAME_S, DEAF, SILENT, Stalls
from atoll.group.messages import Stalled
from atoll.group.progress import STALL_S
from atoll.group.virtual import World
from atoll.group.wiring import wire as wire_module
from atoll.runtime.api import here

RING = (1, 2, 3, 4)


def blamed(
    *said: tuple[int, int, int], stalls: Stalls | None = None, done: tuple[int, ...] = ()
) -> dict[int, str] | None:
    """Each: who, for whom it waits, how much it has."""
    stalls = stalls or Stalls()
    for who, awaited, received in said:
        stalls.note(who, Stalled(1, "no data", (awaited,), received), 0.0)
    assert not stalls.due(BLAME_S - 0.1)
    assert stalls.due(BLAME_S)
    found = stalls.to_blame(RING, set(done))
    stalls.clear()
    assert not stalls.due(BLAME_S)
    return found


def test_who_is_waited_for_and_waits_for_nobody_is_silent() -> None:
    assert blamed((1, 4, 0), (2, 1, 0), (4, 3, 0)) == {3: SILENT}


def test_as_long_as_somebody_gets_on_nobody_is_blamed() -> None:
    assert blamed((1, 4, 0)) is None
    assert blamed((1, 4, 0), (2, 4, 0)) is None
    assert blamed((1, 4, 0), (2, 4, 0), done=(3,)) == {4: SILENT}


def test_where_all_wait_it_is_whom_the_one_with_the_least_waits_for() -> None:
    assert blamed((1, 4, 30), (2, 1, 40), (3, 2, 10), (4, 3, 20)) == {2: SILENT}


def test_where_nobody_has_less_than_all_others_nobody_is_blamed() -> None:
    assert blamed((1, 4, 10), (2, 1, 10), (3, 2, 10), (4, 3, 10)) == {}


def test_one_alone_that_accuses_again_and_again_goes_itself() -> None:
    stalls = Stalls()
    assert blamed((1, 4, 0), stalls=stalls, done=(2, 3)) == {4: SILENT}
    assert blamed((1, 3, 0), stalls=stalls, done=(2, 4)) == {1: DEAF}


def test_one_alone_that_accuses_who_is_done_goes_itself() -> None:
    assert blamed((1, 4, 0), done=(2, 3, 4)) == {1: DEAF}


def test_several_that_wait_for_one_are_believed() -> None:
    stalls = Stalls()
    assert blamed((1, 4, 0), (2, 4, 0), stalls=stalls, done=(3,)) == {4: SILENT}
    assert blamed((1, 3, 0), (2, 3, 0), stalls=stalls, done=(4,)) == {3: SILENT}


@pytest.mark.slow
def test_a_peer_that_votes_but_sends_nothing_is_expelled_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire_module, "STALL_S", 1.0)
    monkeypatch.setattr(wire_module, "_CHECK_S", 0.2)
    said: dict[str, str] = {}

    def peer(name: str) -> None:
        with atoll.join(master.address, name=name, min_world=4, shared_memory=False, timeout_s=20.0) as group:
            if name == "mute":
                port: Any = group._membership.port
                monkeypatch.setattr(port._links, "send", lambda *_: None)
            x = np.full(1 << 18, group.rank, np.float32)
            try:
                group.all_reduce(x, "sum", algorithm="ring")
            except Expelled as error:
                said[name] = str(error)
                return
            except PeerLost as error:
                said[name] = str(error)
            assert (x == group.rank).all() or group.world == 3
            before = np.full(8, 1.0)
            group.all_reduce(before, "sum")
            assert before[0] == 3.0
            group.barrier()

    with atoll.Master() as master:
        threads = [threading.Thread(target=peer, args=(name,)) for name in ("anna", "bob", "mute", "dora")]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(30.0)
    assert said["mute"] == f"the group went on without this peer: {SILENT}"
    for name in ("anna", "bob", "dora"):
        assert said[name].startswith(f"lost mute ({SILENT})"), said


@pytest.mark.parametrize("what", ["small", "large", "send"])
def test_one_that_comes_late_costs_nobody_anything(what: str) -> None:
    """Who hasn't voted yet, or called `send`, owes no data however long the others wait. In virtual time."""

    def main() -> float:
        with atoll.join("any:1", min_world=3) as group:
            x = np.ones(4000 if what == "small" else 1 << 18, np.float32)
            if group.rank == 1:
                here().sleep(4 * STALL_S)
            if what != "send":
                group.all_reduce(x, "sum")
            elif group.rank == 0:
                group.recv(x, 1)
            elif group.rank == 1:
                group.send(x + 1, 0)
            group.barrier()
            return float(x[0])

    world = World()
    processes = [world.start(f"peer-{i}", main) for i in range(3)]
    world.run(until_s=100.0)
    assert [process.program.result for process in processes] == ([2.0, 1.0, 1.0] if what == "send" else [3.0] * 3)
