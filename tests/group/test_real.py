"""Real processes on loopback: kill -9, stop, cut off the master, join late. What survivors see is what the docs
promise."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import atoll
from tests.group.peer_process import ROOT, PeerProcess


def helpers_of(pid: int) -> list[int]:
    out = subprocess.run(["pgrep", "-P", str(pid)], capture_output=True, text=True, check=False).stdout
    return [int(line) for line in out.split()]


def assert_equal_histories(*peers: PeerProcess) -> None:
    """Whoever has a hash for a revision has the same one."""
    seen: dict[int, str] = {}
    for peer in peers:
        for revision, digest in peer.hashes().items():
            assert seen.setdefault(revision, digest) == digest, f"revision {revision} differs"


def test_kill_and_late_join_keep_all_states_equal(peers: Any) -> None:
    with atoll.Master() as master:
        three = [peers(master.address, 10**6, "--pace", "0.01", "--min-world", "3") for _ in range(3)]
        three[0].reach(20)
        late = peers(master.address, 10**6, "--pace", "0.01")  # which may take long, where much else runs
        late.reach(1)
        three[1].process.kill()
        lost = three[0].wait_for(lambda s: s["event"] == "lost")
        assert lost["world"] == 3
        last = len(three[0].events("step")) + 50
        for peer in (three[0], three[2], late):
            peer.reach(last)
    assert_equal_histories(*three, late)
    worlds = {s["world"] for s in three[0].events("step")}
    assert {3, 4} <= worlds
    assert late.events("synced")[0]["received"] > 0  # the newcomer got the state,
    assert three[0].events("synced")[-1]["received"] == 0  # and nothing moved when nothing differed


def test_all_go_to_the_end_and_leave_together(peers: Any) -> None:
    with atoll.Master() as master:
        two = [peers(master.address, 20, "--min-world", "2") for _ in range(2)]
        assert [peer.finish() for peer in two] == [0, 0]
    assert_equal_histories(*two)
    assert max(two[0].hashes()) == 20


def test_kill_in_a_large_reduce_is_noticed_at_once_and_leaves_the_input_alone(peers: Any) -> None:
    size = str(8 << 20)  # 64 MiB of float64
    with atoll.Master() as master:
        three = [peers(master.address, 10**6, "--size", size, "--min-world", "3") for _ in range(3)]
        for peer in three:
            peer.reach(2)
        three[0].process.kill()
        killed = time.time()
        for peer in three[1:]:
            lost = peer.wait_for(lambda s: s["event"] == "lost")
            assert lost["at"] - killed < 1.0 + 1.0  # the line itself is written on two busy cores
            assert lost["intact"]
            assert lost["world"] == 2
            after = peer.wait_for(lambda s: s["event"] == "step" and s["world"] == 2)
            assert after["first"] == float(after["revision"] - 1) * 3  # ranks 0 and 1 of the new ring
    assert_equal_histories(*three)


def test_a_stopped_peer_is_dropped_and_joins_again_when_it_thaws(peers: Any) -> None:
    with atoll.Master() as master:
        three = [peers(master.address, 10**6, "--pace", "0.01", "--min-world", "2", "--rejoin") for _ in range(3)]
        for peer in three:
            peer.reach(5)
        three[1].process.send_signal(signal.SIGSTOP)
        stopped = time.time()
        lost = three[0].wait_for(lambda s: s["event"] == "lost")
        assert "stopped" in lost["message"]
        assert lost["at"] - stopped < 5.0
        three[0].wait_for(lambda s: s["event"] == "step" and s["at"] > lost["at"] + 0.2)
        three[1].process.send_signal(signal.SIGCONT)
        three[1].wait_for(lambda s: s["event"] == "expelled")
        three[1].wait_for(lambda s: s["event"] == "step" and s["at"] > lost["at"] and s["world"] == 3)
    assert_equal_histories(*three)


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [5.0, 30.0])
def test_whoever_was_stopped_for_long_is_expelled_and_catches_up(peers: Any, seconds: float) -> None:
    with atoll.Master() as master:
        three = [peers(master.address, 10**6, "--pace", "0.01", "--min-world", "2", "--rejoin") for _ in range(3)]
        for peer in three:
            peer.reach(5)
        three[1].process.send_signal(signal.SIGSTOP)
        threading.Event().wait(seconds)  # the stop itself is what is tested
        three[1].process.send_signal(signal.SIGCONT)
        three[1].wait_for(lambda s: s["event"] == "expelled")
        back = three[0].wait_for(lambda s: s["event"] == "step" and s["revision"] > 50 and s["world"] == 3)
        three[1].reach(back["revision"])
    assert_equal_histories(*three)


@pytest.mark.slow
def test_a_short_stop_costs_nobody_the_membership(peers: Any) -> None:
    with atoll.Master() as master:
        two = [peers(master.address, 10**6, "--pace", "0.01", "--min-world", "2") for _ in range(2)]
        two[1].reach(5)
        two[1].process.send_signal(signal.SIGSTOP)
        before = two[0].said[-1]["revision"]
        threading.Event().wait(1.0)  # the stop itself is what is tested
        two[1].process.send_signal(signal.SIGCONT)
        two[0].reach(before + 20)
        assert not two[0].events("lost")
        assert not two[1].events("expelled")


def test_everybody_learns_that_the_master_is_gone(peers: Any) -> None:
    argv = [sys.executable, "-c", "import atoll; m = atoll.Master(); print(m.address, flush=True); m.run()"]
    master = subprocess.Popen(argv, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert master.stdout is not None
    address = master.stdout.readline().strip()
    two = [peers(address, 10**6, "--pace", "0.01", "--min-world", "2", "--reconnect", "0") for _ in range(2)]
    for peer in two:
        peer.reach(3)
    master.kill()
    master.wait()
    killed = time.time()
    for peer in two:
        failed = peer.wait_for(lambda s: s["event"] == "failed")
        assert failed["kind"] == "MasterLost"
        assert failed["at"] - killed < 3.0
        assert peer.finish() == 2


class MasterProcess:
    """`atoll master` with a file for its state; always at the same address."""

    def __init__(self, folder: Path, *options: str) -> None:
        self._argv = [
            sys.executable,
            "-m",
            "atoll",
            "master",
            "--json",
            "--state",
            str(folder / "master.json"),
            *options,
        ]
        self.address = self._start("127.0.0.1:0")

    def _start(self, listen: str) -> str:
        self.process = subprocess.Popen([*self._argv, "--listen", listen], stdout=subprocess.PIPE, text=True, cwd=ROOT)
        assert self.process.stdout is not None
        return str(json.loads(self.process.stdout.readline())["address"])

    def end(self, how: signal.Signals) -> int:
        self.process.send_signal(how)
        return self.process.wait()

    def again(self) -> None:
        self._start(self.address)


@pytest.fixture
def restartable(tmp_path: Path) -> Iterator[MasterProcess]:
    master = MasterProcess(tmp_path)
    yield master
    master.end(signal.SIGKILL)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
@pytest.mark.slow
def test_a_group_outlives_its_master(peers: Any, restartable: MasterProcess, how: signal.Signals) -> None:
    three = [peers(restartable.address, 10**6, "--pace", "0.01", "--min-world", "3") for _ in range(3)]
    for restarts in range(1, 4):
        for peer in three:
            peer.reach(20 * restarts)
        restartable.end(how)
        restartable.again()
        for peer in three:
            peer.wait_for(lambda said, p=peer, n=restarts: len(p.events("lost")) >= n)
            assert "a new master" in peer.events("lost")[-1]["message"]
    newcomer = peers(restartable.address, 10**6, "--pace", "0.01")
    assert newcomer.wait_for(lambda said: said["event"] == "step")["world"] == 4
    helpers = [helpers_of(peer.process.pid) for peer in three]
    assert all(len(some) == 1 for some in helpers)
    os.kill(three[0].process.pid, signal.SIGSTOP)  # the helpers have moved with their peers
    three[1].wait_for(lambda said: said["event"] == "lost" and "stopped for 3 s" in said["message"])
    three[1].reach(three[1].events("step")[-1]["revision"] + 10)
    hashes: dict[int, set[str]] = {}
    for peer in [*three, newcomer]:
        assert not peer.events("expelled")
        for said in peer.events("step"):
            hashes.setdefault(said["revision"], set()).add(said["hash"])
    assert all(len(some) == 1 for some in hashes.values())
    assert len(hashes) > 70


def test_another_master_that_stands_by_takes_over(peers: Any, restartable: MasterProcess, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    other = MasterProcess(tmp_path / "other", "--standby")
    try:
        both = f"{restartable.address},{other.address}"
        three = [peers(both, 10**6, "--pace", "0.01", "--min-world", "3") for _ in range(3)]
        for peer in three:
            peer.reach(20)
        restartable.end(signal.SIGKILL)
        killed = time.time()
        for peer in three:
            lost = peer.wait_for(lambda said: said["event"] == "lost")
            assert "a new master" in lost["message"]
            assert lost["at"] - killed < 5.0
        newcomer = peers(both, 10**6, "--pace", "0.01")
        assert newcomer.wait_for(lambda said: said["event"] == "step")["world"] == 4
        three[0].process.kill()
        three[1].wait_for(lambda said: said["event"] == "step" and said["world"] == 3 and said["at"] > killed)
        assert not [peer for peer in three if peer.events("expelled") or peer.events("failed")]
        known = [peer.hashes() for peer in [*three, newcomer]]
        for revision in set().union(*known):
            assert len({some[revision] for some in known if revision in some}) == 1
    finally:
        other.end(signal.SIGKILL)


def test_a_group_over_sockets_may_be_closed_again() -> None:
    with atoll.Master() as master, atoll.join(master.address) as group:
        group.close()
        group.close()


def test_a_master_that_is_closed_is_not_waited_for(peers: Any, restartable: MasterProcess) -> None:
    peer = peers(restartable.address, 10**6, "--pace", "0.01")
    peer.reach(3)
    assert restartable.end(signal.SIGINT) == 0
    closed = time.time()
    failed = peer.wait_for(lambda s: s["event"] == "failed")
    assert (failed["kind"], failed["message"]) == ("MasterLost", "the master was closed")
    assert failed["at"] - closed < 3.0
    restartable.again()
    fresh = peers(restartable.address, 5)
    assert fresh.reach(5)["world"] == 1  # nobody is waited for


def test_no_helper_outlives_its_peer(peers: Any) -> None:
    with atoll.Master() as master:
        peer = peers(master.address, 10**6, "--pace", "0.01")
        peer.reach(2)
        helpers = helpers_of(peer.process.pid)
        assert len(helpers) == 1
        peer.process.kill()
        peer.process.wait()
        deadline = time.monotonic() + 5.0
        while any(Path(f"/proc/{pid}").exists() for pid in helpers) and time.monotonic() < deadline:
            threading.Event().wait(0.05)
        assert not any(Path(f"/proc/{pid}").exists() for pid in helpers)


@pytest.mark.slow
def test_a_killed_helper_is_started_again(peers: Any) -> None:
    with atoll.Master() as master:
        two = [peers(master.address, 10**6, "--pace", "0.01", "--min-world", "2") for _ in range(2)]
        two[0].reach(2)
        (helper,) = helpers_of(two[0].process.pid)
        os.kill(helper, signal.SIGKILL)
        at = two[0].said[-1]["revision"]
        two[1].reach(at + 330)  # longer than the master would wait for a silent helper
        assert not two[1].events("lost")
        assert helpers_of(two[0].process.pid) not in ([], [helper])
