"""`atoll train` with each strategy on real processes: one is killed, one sleeps for longer than the group has patience,
one comes late."""

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, get_args, get_type_hints

import psutil
import pytest

from atoll.train.settings import TrainSettings
from tests.cli.test_commands import assert_nothing_is_left, atoll_command

STRATEGIES = get_args(get_type_hints(TrainSettings)["strategy"])
MORE = {
    "streaming": ("--fragments", "2", "--delay", "1", "--codec", "e3m0"),
    "diloco": ("--codec", "uint8"),
    "eager": ("--consensus", "5"),
    "one-byte": ("--one-byte.lr", "2e-3"),
}
STEPS = 2000
FLAGS = (
    *("--model.width", "32", "--model.layers", "2", "--model.heads", "2", "--model.context", "32", "--batch", "8"),
    *("--steps", str(STEPS), "--every", "10", "--warm-up", "20", "--save-every", "0", "--lr", "2e-3"),
)
LIMIT_S = 240.0


class Told:
    """What processes say, line by line."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self._lines: queue.Queue[str] = queue.Queue()

    def listen(self, process: "subprocess.Popen[str]") -> None:
        def read() -> None:
            assert process.stdout is not None
            for line in process.stdout:
                self._lines.put(line)

        threading.Thread(target=read, daemon=True).start()

    def until(self, seen: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        """Until an event from now on is of that kind."""
        deadline = time.monotonic() + LIMIT_S
        while True:
            try:
                event = json.loads(self._lines.get(timeout=max(0.0, deadline - time.monotonic())))
            except queue.Empty:
                raise AssertionError(f"never came: {what}; last: {self.events[-5:]}") from None
            self.events.append(event)
            if seen(event):
                return event

    def all(self, kind: str, peer: str = "") -> list[dict[str, Any]]:
        return [e for e in self.events if e.get("event") == kind and peer in (e.get("peer"), "")]


def is_step(event: dict[str, Any], peer: str, world: int) -> bool:
    return event.get("event") == "step" and event["peer"] == peer and event["world"] == world


def pid_of(trainer: int, name: str) -> int:
    """Of a peer, not of its helper."""
    [found] = [
        child.pid
        for child in psutil.Process(trainer).children()
        if "join" in (words := child.cmdline()) and name in words
    ]
    return found


@contextmanager
def started(*argv: str, cwd: Path, told: Told) -> Iterator["subprocess.Popen[str]"]:
    process = atoll_command(*argv, cwd=cwd)
    told.listen(process)
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def survive(strategy: str, tmp_path: Path, told: Told) -> dict[str, Any]:
    """One of three is killed, another sleeps for longer than anybody has patience, one comes late; the summary."""
    argv = ["train", "--strategy", strategy, "--peers", "3", "--name", "run", "--json", *FLAGS, *MORE.get(strategy, ())]
    with started(*argv, cwd=tmp_path, told=told) as trainer:
        address = told.until(lambda e: e.get("event") == "listening", "an address")["address"]
        told.until(lambda e: is_step(e, "peer-0", 3) and e["step"] > 20, "steps of three")
        os.kill(pid_of(trainer.pid, "peer-1"), signal.SIGKILL)
        told.until(lambda e: is_step(e, "peer-0", 2), "steps without the one that was killed")
        sleeper = pid_of(trainer.pid, "peer-2")
        os.kill(sleeper, signal.SIGSTOP)
        told.until(lambda e: is_step(e, "peer-0", 1), "steps without the one that sleeps")
        argv = ["join", address, "--config", str(tmp_path / "run.toml"), "--run-dir", str(tmp_path), "--name", "late"]
        (tmp_path / "run.toml").write_text((tmp_path / "runs" / "run" / "config.toml").read_text())
        with started(*argv, "--json", cwd=tmp_path, told=told) as late:
            os.kill(sleeper, signal.SIGCONT)
            told.until(lambda e: is_step(e, "late", 3), "steps of three, a newcomer among them")
            summary = told.until(lambda e: e.get("event") == "summary", "the end")
            assert trainer.wait(LIMIT_S) == 0
            assert late.wait(LIMIT_S) == 0
    assert summary["failures_survived"] >= 1
    before, after = (e["loss"] for e in told.all("evaluated"))
    assert after < before - (0.02 if strategy == "one-byte" else 1.0)
    assert_nothing_is_left()
    return summary


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.timeout(2 * LIMIT_S)
@pytest.mark.parametrize("strategy", [name for name in STRATEGIES if name != "diloco-server"])
def test_a_run_outlives_a_kill_and_a_long_sleep_and_lets_one_join(strategy: str, tmp_path: Path) -> None:
    told = Told()
    summary = survive(strategy, tmp_path, told)
    assert [e["message"] for e in told.all("expelled")], "who slept was not sent away"
    assert told.all("expelled")[0]["peer"] == "peer-2"
    assert len(told.all("joined", "peer-2")) == 2
    ends = {e["peer"]: e for e in told.all("done")}
    assert ends.keys() == {"peer-0", "peer-2", "late"}
    assert {e["step"] for e in ends.values()} == {STEPS}
    assert len({e["hash"] for e in ends.values()}) == 1
    hashes: dict[tuple[int, int], set[str]] = {}
    for event in told.all("step"):
        if "hash" in event:
            hashes.setdefault((event["epoch"], event["revision"]), set()).add(event["hash"])
    assert all(len(some) == 1 for some in hashes.values())
    assert summary["hashes_equal"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")
@pytest.mark.timeout(2 * LIMIT_S)
def test_a_server_goes_on_with_whoever_is_there_and_who_slept_goes_on_where_it_was(tmp_path: Path) -> None:
    told = Told()
    survive("diloco-server", tmp_path, told)
    changes = [(e["event"], e["who"]) for e in told.all("went") + told.all("came")]
    assert sorted(changes[:2]) == [("went", "peer-1"), ("went", "peer-2")]
    assert [e["message"] for e in told.all("came") if e["who"] == "peer-2"] == ["peer-2 joined", "peer-2 is back"]
    assert len(told.all("joined", "peer-2")) == 1, "it was only frozen: its connection is the same"
    assert not told.all("alone")
    assert {e["peer"] for e in told.all("done")} == {"server", "peer-0", "peer-2", "late"}
    [end] = told.all("done", "server")
    assert end["step"] == STEPS
    assert {e["world"] for e in told.all("applied")} == {1, 2, 3}
