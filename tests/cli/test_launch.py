"""`atoll train` from outside: fake children say what real ones would, and die in every way."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psutil
import pytest

from atoll.cli.chaos import Chaos, Move
from atoll.cli.history import Event, History
from atoll.cli.launch import Launch, run_local
from atoll.cli.live import Facts
from atoll.config import RunDir
from atoll.errors import AtollError
from atoll.record import read_jsonl

FAKE = Path(__file__).with_name("fake.py")
PROGRAM = (sys.executable, "-S", "-E", str(FAKE))
posix_only = pytest.mark.skipif(sys.platform == "win32", reason="POSIX signals")


@dataclass
class Seen:
    """A view that keeps what it is told."""

    events: list[Event] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    facts: Facts = field(default_factory=dict)
    interrupt_at: int = -1
    """The update at which the user presses Ctrl-C."""
    updates: int = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        pass

    def event(self, event: Event) -> None:
        self.events.append(event)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self) -> None:
        self.updates += 1
        if self.updates == self.interrupt_at:
            raise KeyboardInterrupt

    def summary(self, facts: Facts) -> None:
        self.facts = facts


@pytest.fixture(autouse=True)
def no_child_is_left() -> Iterator[None]:
    before = set(psutil.Process().children(recursive=True))
    yield
    assert set(psutil.Process().children(recursive=True)) <= before


class Scene:
    """One run in a folder of its own."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.run, self.view = RunDir.create(folder, "trial"), Seen()
        self.run.config.touch()
        self.monkeypatch = monkeypatch
        self.history = History(1)

    def launch(
        self, peers: int = 2, *, with_chaos: bool = False, resume: bool = False, seed: int = 0, **plan: Any
    ) -> int:
        plan = {"steps": 9, **plan}
        self.monkeypatch.setenv("FAKE", json.dumps(plan))
        self.history = History(plan["steps"])
        launch = Launch(peers, with_chaos, self.run, resume, plan["steps"], seed, program=PROGRAM)
        return run_local(launch, self.history, self.view)

    def states(self) -> dict[str, str]:
        return {name: peer.state for name, peer in self.history.peers.items()}

    def recorded(self, kind: str) -> list[dict[str, Any]]:
        return [entry for entry in read_jsonl(self.run.record) if entry["event"] == kind]


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    return Scene(tmp_path, monkeypatch)


def test_all_peers_train_to_the_end(scene: Scene) -> None:
    assert scene.launch(peers=3) == 0
    assert scene.states() == {"peer-0": "done", "peer-1": "done", "peer-2": "done"}
    summary = scene.history.summary()
    assert (summary["steps"], summary["tokens"]) == (9, 3 * 9 * 100)
    assert (summary["bytes_sent"], summary["bytes_ddp"]) == (3 * 9 * 10, 3 * 9 * 200)
    assert scene.view.facts["model"] == str(scene.run.model)
    assert Path(scene.view.facts["plot"]).read_bytes().startswith(b"\x89PNG")
    assert "resume" not in scene.view.facts


def test_every_event_is_kept_and_only_what_children_said_is_passed_on(scene: Scene) -> None:
    scene.launch(peers=2)
    assert len(scene.recorded("step")) == 18
    assert [entry["peer"] for entry in scene.recorded("started")] == ["peer-0", "peer-1"]
    assert {event["event"] for event in scene.view.events} == {
        "listening",
        "asked",
        "joined",
        "synced",
        "step",
        "saved",
        "done",
    }


def test_lines_that_are_no_events_do_no_harm(scene: Scene) -> None:
    assert scene.launch(acts={"peer-0": "chatter"}) == 0


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_chaos_kills_one_and_another_takes_its_place(scene: Scene, seed: int) -> None:
    assert scene.launch(peers=3, with_chaos=True, seed=seed, chaos="replace") == 0
    states = scene.states()
    assert sorted(states) == ["peer-0", "peer-1", "peer-2", "peer-3"]
    assert sorted(states.values()) == ["done", "done", "done", "killed"]
    assert states["peer-3"] == "done"
    [killed] = scene.recorded("killed")
    assert any(note.startswith(f"{killed['peer']} was killed (SIGKILL) at step") for note in scene.view.notes)
    summary = scene.history.summary()
    assert (summary["failures_survived"], summary["joins"]) == (1, 1)


def test_the_seed_chooses_whom_chaos_kills() -> None:
    def victim(seed: int) -> str:
        chaos = Chaos(4, seed)
        move = chaos.decide(trained(4, step=5, of=9))
        assert move is not None
        assert move.action == "kill"
        return move.name

    victims = [victim(seed) for seed in range(20)]
    assert victims == [victim(seed) for seed in range(20)]
    assert len(set(victims)) > 1


def test_chaos_waits_for_a_third_of_the_steps_and_replaces_its_victim_once() -> None:
    chaos = Chaos(2, 0)
    assert chaos.decide(trained(2, step=2, of=9)) is None
    history = trained(2, step=3, of=9)
    kill = chaos.decide(history)
    assert kill is not None
    history.add({"event": "killed", "peer": kill.name, "at": 9.0})
    assert chaos.decide(history) == Move("start", "peer-2")
    assert chaos.decide(history) is None


def test_chaos_waits_until_all_have_taken_a_step_in_the_newest_group() -> None:
    chaos, history = Chaos(2, 0), trained(2, step=3, of=9)
    history.add({"event": "joined", "peer": "guest", "at": 3.0, "id": 9, "world": 3, "rank": 2, "epoch": 2})
    assert chaos.decide(history) is None


def test_chaos_starts_nobody_when_the_training_ends() -> None:
    history = trained(2, step=9, of=9)
    history.add({"event": "done", "peer": "peer-0", "at": 9.0, "step": 9, "hash": "h", "sent": 0, "ddp": 0})
    assert Chaos(2, 0).decide(history) is None


def test_chaos_never_kills_the_only_peer(scene: Scene) -> None:
    assert scene.launch(peers=1, with_chaos=True, chaos="replace") == 0
    assert sorted(scene.states()) == ["peer-0", "peer-1", "peer-2"]
    assert scene.history.summary()["failures_survived"] == 1
    [killed], started = scene.recorded("killed"), scene.recorded("started")
    assert started[1]["at"] < killed["at"] < started[2]["at"]


def test_a_newcomer_that_finds_the_training_over_is_ended(scene: Scene) -> None:
    assert scene.launch(peers=2, with_chaos=True, chaos="late") == 0
    assert scene.states()["peer-2"] == "late"


def test_only_those_there_at_the_start_wait_for_each_other(scene: Scene) -> None:
    scene.launch(peers=2, with_chaos=True, chaos="replace")
    worlds = {entry["peer"]: entry["min_world"] for entry in scene.recorded("asked")}
    assert worlds == {"peer-0": 2, "peer-1": 2, "peer-2": 1}


@pytest.mark.parametrize(
    ("act", "reason"),
    [
        ("fail", "the disk is full"),
        ("crash", "Segmentation fault of the mind (exit code 3)"),
        pytest.param("die", "ended by SIGKILL", marks=posix_only),
    ],
)
def test_training_survives_an_unexpected_end_and_tells_why(scene: Scene, act: str, reason: str) -> None:
    assert scene.launch(peers=2, acts={"peer-1": act}) == 0
    assert scene.states() == {"peer-0": "done", "peer-1": "failed"}
    assert scene.view.notes.count(f"peer-1 failed: {reason}") == 1
    assert scene.history.summary()["failures_survived"] == 1


def test_when_nobody_is_left_the_error_tells_why_and_where_to_look(scene: Scene) -> None:
    with pytest.raises(AtollError, match="no peer is left") as raised:
        scene.launch(peers=2, acts={"peer-0": "fail", "peer-1": "crash"})
    assert "the disk is full" in str(raised.value)
    assert "Segmentation fault of the mind" in str(raised.value)
    assert str(scene.run.path / "logs") in str(raised.value)
    assert scene.view.facts  # the summary comes all the same


def test_what_all_failed_of_is_told_once(scene: Scene) -> None:
    with pytest.raises(AtollError) as raised:
        scene.launch(peers=2, acts={"peer-0": "fail", "peer-1": "fail"})
    assert str(raised.value).count("the disk is full") == 1
    assert "peer-0, peer-1: " in str(raised.value)


def test_a_run_that_saves_no_model_is_no_success(scene: Scene) -> None:
    with pytest.raises(AtollError, match="no model was saved"):
        scene.launch(peers=2, acts={"peer-0": "forget", "peer-1": "forget"})


def test_different_states_are_an_error_that_names_the_revision(scene: Scene) -> None:
    with pytest.raises(AtollError, match="revision 2"):
        scene.launch(peers=2, acts={"peer-1": "differ"})
    assert scene.history.summary()["hashes_equal"] is False


@pytest.mark.parametrize(("act", "reason"), [("refuse", "this port is taken"), ("crash", "out of votes")])
def test_without_its_master_the_run_ends(scene: Scene, act: str, reason: str) -> None:
    with pytest.raises(AtollError, match=f"the master ended: {reason}|the master is gone"):
        scene.launch(peers=2, acts={"master": act})


def test_resuming_tells_each_peer(scene: Scene) -> None:
    scene.launch(peers=2, resume=True)
    assert {entry["peer"] for entry in scene.recorded("resumed")} == {"peer-0", "peer-1"}


def test_a_run_can_be_interrupted_before_it_has_begun(scene: Scene) -> None:
    scene.view.interrupt_at = 1
    assert scene.launch(peers=2) == 130


INTERRUPTED_RUN = """
import sys
from pathlib import Path
from rich.console import Console
from atoll.cli.history import History
from atoll.cli.launch import Launch, run_local
from atoll.cli.live import JsonView
from atoll.config import RunDir
history = History(9)
launch = Launch(2, False, RunDir(Path(sys.argv[1])), False, 9, 0, program=tuple(sys.argv[2:]))
sys.exit(run_local(launch, history, JsonView(history, Console())))
"""


@posix_only
def test_ctrl_c_ends_all_children_and_still_sums_up(tmp_path: Path) -> None:
    environment = {**os.environ, "FAKE": json.dumps({"steps": 9, "hold": 3, "checkpoint": 2})}
    command = [sys.executable, "-c", INTERRUPTED_RUN, str(tmp_path), *PROGRAM]
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, encoding="utf-8"
    ) as launcher:
        assert launcher.stdout is not None
        events = (json.loads(line) for line in launcher.stdout)
        waiting = {"peer-0", "peer-1"}
        while waiting:
            event = next(events)
            if event.get("step") == 3:
                waiting.discard(event["peer"])
        children = psutil.Process(launcher.pid).children(recursive=True)
        launcher.send_signal(signal.SIGINT)
        rest = list(events)
        assert launcher.stderr is not None
        errors = launcher.stderr.read()
        assert launcher.wait(20) == 130
    assert len(children) == 3
    assert not any(child.is_running() for child in children)
    assert rest[-1]["event"] == "summary"
    assert (rest[-1]["steps"], rest[-1]["failures_survived"]) == (3, 0)
    assert rest[-1]["resume"] == f"atoll train --resume {tmp_path.name}"
    assert errors == ""


def trained(peers: int, *, step: int, of: int) -> History:
    """A group that has taken `step` steps."""
    history = History(of)
    for rank in range(peers):
        where = {"peer": f"peer-{rank}", "at": float(step), "world": peers, "rank": rank, "epoch": 1}
        history.add({"event": "joined", "id": rank, **where})
        counts = {"tokens": 1, "seconds": 0.1, "waited": 0.0, "sent": 1, "ddp": 2}
        history.add({"event": "step", "step": step, "loss": 1.0, **counts, **where})
    return history
