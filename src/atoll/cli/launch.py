"""Driver: `atoll train`: a master and its peers as processes of this machine, one of them killed on purpose if asked.

Nothing is polled: a line or the end of a child wakes the loop, and a timeout lets the view show that time passes.
"""

import json
import logging
import signal
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atoll import plot
from atoll.cli.chaos import Chaos, Move
from atoll.cli.history import Event, History
from atoll.cli.live import View
from atoll.cli.signals import INTERRUPTED
from atoll.config import RunDir
from atoll.errors import AtollError
from atoll.record import JsonlSink
from atoll.runtime.processes import Exit, LocalProcesses

log = logging.getLogger("atoll.launch")

MASTER = "master"
SERVER = "server"
TICK_S = 0.25
HEAR_S = 3.0
"""What a newcomer that took part to the end has said may be read so long after what the others said."""
LEAVE_S = 10.0
"""More than a peer takes to leave in order."""
MOST_MASTERS = 10
"""Started one after the other in a run."""


@dataclass(frozen=True)
class Launch:
    """What to start."""

    peers: int
    chaos: bool
    run: RunDir
    resume: bool
    steps: int
    seed: int
    """Chooses whom chaos kills."""
    serve_at: str = ""
    """HOST:PORT of the server of --strategy diloco-server, which takes the master's place. Empty: there is a master."""
    guard: tuple[str, ...] = ()
    """Flags by which the master and its peers know each other; without any they keep to loopback."""
    program: tuple[str, ...] = (sys.executable, "-m", "atoll")
    """Is given the arguments of `atoll master` and `atoll join`."""


def run_local(launch: Launch, history: History, view: View) -> int:
    """Train to the end and show it; returns 0, or 130 after a KeyboardInterrupt. Leaves no child behind.

    AtollError: no peer was left, the master ended, nothing was saved, or the peers' states differed. SaveFailed: the
    record can't be written.
    """
    trouble, code = "", 0
    with closing(JsonlSink(launch.run.record)) as record, view, LocalProcesses(launch.run.path) as processes:
        session = _Session(launch, history, view, record, processes)
        try:
            trouble = session.train()
        except KeyboardInterrupt:
            code = INTERRUPTED
            session.dismiss()
    trouble = trouble or _disagreement(history, launch.run)
    view.summary(_left_behind(launch, history, finished=not trouble and code == 0))
    if trouble:
        raise AtollError(trouble)
    return code


class _Session:
    """The children from the first to the last."""

    def __init__(
        self, launch: Launch, history: History, view: View, record: JsonlSink, processes: LocalProcesses
    ) -> None:
        self._launch, self._history, self._view, self._record = launch, history, view, record
        self._processes = processes
        self._chaos = Chaos(launch.peers, launch.seed) if launch.chaos else None
        self._head = SERVER if launch.serve_at else MASTER
        self._address = ""
        self._masters = 0
        self._trouble = ""
        self._running: set[str] = set()  # peers
        self._late: set[str] = set()
        self._alone_since: float | None = None
        """Peers that came after the start and have not met the others yet."""
        self._dismissed = False

    def train(self) -> str:
        """Start all, go on until all have ended; returns what went wrong, if anything."""
        self._start_master(self._launch.serve_at or "127.0.0.1:0")
        while self._running or not self._address:
            self._turn(TICK_S)
            if self._trouble:
                return self._trouble
            if self._chaos and (move := self._chaos.decide(self._history)):
                self._make(move)
            self._end_latecomers()
            self._view.update()
        self._hear_server(LEAVE_S if self._history.model_saved else 0.0)
        return self._missing()

    def dismiss(self) -> None:
        """Let the peers leave; whoever has not gone by then is ended with the master. The history stands still,
        but for what is saved."""
        self._dismissed = True
        self._view.note("interrupted: the peers end their step, save and leave; once more ends them at once")
        served = [SERVER] if SERVER in self._processes.alive() else []
        for name in [*self._running, *served]:
            self._processes.interrupt(name)
        deadline = time.monotonic() + LEAVE_S
        while self._running and (left := deadline - time.monotonic()) > 0:
            self._turn(left)
        self._hear_server(deadline - time.monotonic())

    def _hear_server(self, seconds: float) -> None:
        """To its last word."""
        deadline = time.monotonic() + seconds
        while SERVER in self._processes.alive() and (left := deadline - time.monotonic()) > 0:
            self._turn(left)
        self._turn(0)

    # -- what comes in ------------------------------------------------------------------------------------------------

    def _turn(self, timeout_s: float) -> None:
        for end in self._processes.wait_any(timeout_s):
            if end.name == self._head:
                self._on_master_end(end)
            else:
                self._on_peer_end(end)

    def _on_line(self, name: str, line: str) -> None:
        try:
            event = json.loads(line)
        except ValueError:
            event = None
        if not isinstance(event, dict):
            log.info("%s: %s", name, line)
            return
        self._view.event(event)
        self._tell(event)
        if self._dismissed:
            return
        if name == self._head and event.get("event") == "listening" and not self._address:
            self._address = event["address"]
            self._view.note(f"the {self._head} listens on {self._address}; the peers load torch, then they join")
            for number in range(self._launch.peers):
                self._start(f"peer-{number}", min_world=self._launch.peers)
        elif event.get("world", 1) > 1:
            self._late.discard(name)

    def _on_peer_end(self, end: Exit) -> None:
        self._running.discard(end.name)
        state = self._history.peers[end.name].state
        if not (state in ("killed", "late", "failed") or (state == "done" and end.code == 0)):
            self._announce("failed", end.name, message=self._why(end))

    def _on_master_end(self, end: Exit) -> None:
        if self._dismissed or (end.code == 0 and end.name == SERVER):
            return
        if self._running and self._masters < MOST_MASTERS:
            self._view.note(f"the {self._head} ended ({self._why(end)}): another takes over at its address")
            self._start_master(self._address)
        elif self._running or not self._address:
            self._trouble = f"the {self._head} ended: {self._why(end)}; logs in {self._logs}"

    # -- what goes out ------------------------------------------------------------------------------------------------

    def _make(self, move: Move) -> None:
        if move.action == "start":
            self._late.add(move.name)
            self._start(move.name, min_world=1)
        else:
            self._processes.kill(move.name)
            self._announce("killed", move.name)

    def _start_master(self, address: str) -> None:
        self._masters += 1
        if self._launch.serve_at:
            arguments = ["train", "--strategy", "diloco-server", "--peers", "0", "--listen", address, "--json"]
            arguments += ["--resume", str(self._launch.run.path), *self._launch.guard]
            self._processes.start(
                [*self._launch.program, *arguments], SERVER, stdout=self._on_line, env={"OMP_NUM_THREADS": "1"}
            )
            return
        state = self._launch.run.path / "master.json"
        arguments = ["master", "--listen", address, "--state", str(state), "--json", *self._launch.guard]
        self._processes.start([*self._launch.program, *arguments], MASTER, stdout=self._on_line)

    def _start(self, name: str, min_world: int) -> None:
        run = self._launch.run
        options = ["--config", str(run.config), "--run-dir", str(run.path), "--name", name]
        options += ["--min-world", str(min_world), "--json", *(["--resume"] if self._launch.resume else [])]
        options += self._launch.guard
        child = self._processes.start(
            [*self._launch.program, "join", self._address, *options],
            name,
            stdout=self._on_line,
            env={"OMP_NUM_THREADS": "1"},  # else each takes all cores, and all are slower
        )
        self._running.add(name)
        self._announce("started", name, pid=child.pid)

    def _end_latecomers(self) -> None:
        """The group is closing: a newcomer would find nobody, and train anew alone over what has just been saved."""
        peers = self._history.peers.values()
        last = max((peer for peer in peers if peer.state == "done"), key=lambda peer: peer.epoch, default=None)
        late = self._late & self._running
        if last is None or not late:
            return
        heard = sum(peer.epoch == last.epoch for peer in peers)
        if heard < (last.world or 1):  # somebody of the last ring has yet to be heard: it may be a newcomer
            others = self._running - late
            self._alone_since = None if others else self._alone_since or time.monotonic()
            if self._alone_since is None or time.monotonic() - self._alone_since < HEAR_S:
                return
        for name in late:
            self._processes.kill(name)
            self._announce("late", name)
        self._late.clear()

    def _announce(self, kind: str, name: str, **fields: Any) -> None:
        """An event of ours, which no child can tell."""
        self._tell({"event": kind, "peer": name, "at": time.time(), **fields})

    def _tell(self, event: Event) -> None:
        self._record.write(dict(event))
        if self._dismissed and event.get("event") != "saved":
            return
        if text := self._history.add(event):
            self._view.note(text)

    # -- how it ended -------------------------------------------------------------------------------------------------

    @property
    def _logs(self) -> Path:
        return self._launch.run.path / "logs"

    def _missing(self) -> str:
        """What a finished run should have and this one has not."""
        peers = self._history.peers.values()
        failed: dict[str, list[str]] = {}
        for peer in peers:
            if peer.state == "failed":
                failed.setdefault(peer.reason, []).append(peer.name)
        reasons = "; ".join(f"{', '.join(names)}: {reason}" for reason, names in failed.items())
        if not any(peer.state == "done" for peer in peers):
            return f"no peer is left ({reasons}); logs in {self._logs}"
        return "" if self._history.model_saved else f"no model was saved ({reasons}); logs in {self._logs}"

    def _why(self, end: Exit) -> str:
        """Why a child ended that did not say so itself."""
        if end.code < 0:
            return f"ended by {signal.Signals(-end.code).name}"
        lines = (self._logs / f"{end.name}.log").read_text("utf-8", errors="replace").split("\n")
        said = next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")
        return f"{said} (exit code {end.code})"


def _disagreement(history: History, run: RunDir) -> str:
    if wrong := history.disagreements():
        return f"the peers held different states at revision {wrong[0]}: this is a bug; please report {run.record}"
    return ""


def _left_behind(launch: Launch, history: History, *, finished: bool) -> dict[str, str]:
    """Paths, and how to go on with a run that is not finished."""
    run, facts = launch.run, {"run": str(launch.run.path)}
    if history.model_saved:
        facts["model"] = str(run.model)
    if curve := history.loss_curve():
        picture = run.plots / "loss.png"
        try:
            plot.lines(
                picture,
                {"mean over peers": (list(curve), list(curve.values()))},
                title=f"atoll train {run.path.name}",
                xlabel="step",
                ylabel="training loss (nats)",
                marks=history.marks(),
            )
            facts["plot"] = str(picture)
        except AtollError as error:
            log.warning("no loss curve: %s", error)
    if not finished and history.checkpoint is not None:
        facts["resume"] = f"atoll train --resume {run.path.name}"
    return facts
