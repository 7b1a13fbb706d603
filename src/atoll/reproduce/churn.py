"""Driver: a group under fire: processes on this machine are spawned, killed, stopped and worse at random, from one
seed.

`Churn` is the mechanism; what is done, how often and to whom says a `Plan`. The plain one spawns, SIGKILLs and
SIGSTOPs; `atoll.reproduce.stress` has a longer list.
"""

import heapq
import itertools
import json
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Protocol

import atoll
from atoll import rng
from atoll.reproduce.api import Say
from atoll.runtime.processes import LocalProcesses

FOREVER: Final = 10**9
MOST_PEERS: Final = 8
SETTLED_S: Final = 2.0
LONGEST_GAP_S: Final = 5.0
MOST_AT_THE_DOOR: Final = 3
MASTER: Final = "master"
_FIRST_STEP_S: Final = 30.0
_REMEMBERED: Final = 12


@dataclass
class Member:
    """A peer that runs."""

    name: str
    pid: int = 0
    elder: bool = False
    """Is never killed."""
    stepped: float = -1e9
    """When it last took a step: who has not yet holds no state, and doesn't count as alive."""
    hindered: int = 0
    """By so much that is done to it right now: frozen, cut off."""

    def able(self, now: float) -> bool:
        """Does it count as alive?"""
        return not self.hindered and now - self.stepped < SETTLED_S


@dataclass
class Report:
    """What a run came to."""

    seconds: float = 0.0
    steps: int = 0
    """Revisions that somebody reached."""
    worst_gap_s: float = 0.0
    """Longest time without a step, not counting that without a master. At least two peers are left alone, so there
    always could have been one."""
    done: Counter[str] = field(default_factory=Counter)
    """What was done to the group and what became of it: spawned, killed, stopped, expelled, ..."""
    live: int = 0
    world: int = 0
    """Of the last step."""
    failures: list[str] = field(default_factory=list)
    """Peers that ended in an error, and other things that must not be."""
    hashes: dict[int, str] = field(default_factory=dict)
    compared: int = 0
    """Hashes held against one that another peer had reported."""
    differing: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Did all hold?"""
        return not self.failures and not self.differing and self.compared > 0 and self.worst_gap_s <= LONGEST_GAP_S


Action = Callable[["Churn"], str]
"""Does something to the group and says what; "": not now."""


class Surroundings(Protocol):
    """What lies between the peers and the master. Here: nothing."""

    def enter(self, member: Member, master: str) -> tuple[str, list[str]]:
        """A new peer: where it looks for the master, and more options for it."""

    def leave(self, member: Member) -> None:
        """It has ended."""


class Open:
    """Nothing stands between them."""

    def enter(self, member: Member, master: str) -> tuple[str, list[str]]:
        return master, []

    def leave(self, member: Member) -> None:
        pass


# -- what can be done to any group -------------------------------------------------------------------------------------


def spawn(churn: "Churn") -> str:
    """One more peer, if there is room, and few others have still to take their first step."""
    at_the_door = sum(member.stepped < 0 for member in churn.members.values())
    if len(churn.members) >= churn.plan.most or at_the_door >= MOST_AT_THE_DOOR:
        return ""
    name = churn.spawn()
    return f"spawned {name}; {len(churn.members)} live"


def kill(churn: "Churn") -> str:
    """SIGKILL."""
    member = churn.pick(elders=False)
    if member is None:
        return ""
    churn.processes.kill(member.name)
    del churn.members[member.name]
    churn.plan.surroundings.leave(member)
    churn.report.done["killed"] += 1
    return f"killed {member.name}; {len(churn.members)} live"


def stop(churn: "Churn") -> str:
    """SIGSTOP, for a while: short enough to stay a member, or too long. Elders only the former."""
    member = churn.pick()
    if member is None or churn.held:
        return ""
    seconds = float(churn.dice.uniform(0.3, 2.0 if member.elder else 6.0))
    churn.processes.freeze(member.name)

    def thaw() -> None:
        if member.name in churn.members:
            churn.processes.thaw(member.name)

    churn.hinder(member, seconds, thaw, hold=True)
    churn.report.done["stopped"] += 1
    return f"stopped {member.name} for {seconds:.1f} s"


@dataclass(frozen=True)
class Plan:
    """What is done to the group, and of whom it consists."""

    actions: tuple[tuple[float, Action], ...] = ((1, spawn), (1, kill), (1, stop))
    """Each with its weight."""
    pause_s: tuple[float, float] = (0.3, 1.0)
    """Between one and the next: from, to."""
    master: str = "127.0.0.1:0"
    """Where it listens."""
    master_options: tuple[str, ...] = ()
    first: int = 3
    most: int = MOST_PEERS
    elders: int = 0
    """So many of the first ones are never killed."""
    options: tuple[str, ...] = ("--tags", "8")
    """For each peer."""
    env: tuple[tuple[str, str], ...] = ()
    """More of their environment, and the master's."""
    surroundings: Surroundings = field(default_factory=Open)


class Churn:
    """Does every moment something from the plan. What can hold the whole group up is done one at a time, and the next
    only after another step: so a gap is one thing's doing."""

    def __init__(
        self,
        seed: int,
        plan: Plan | None = None,
        *,
        say: Say = lambda text: None,
        progress: Callable[["Churn"], None] = lambda churn: None,
        heard: Callable[[str, dict[str, Any]], None] = lambda name, said: None,
        folder: Path | None = None,
    ) -> None:
        self.dice = rng.stream(seed, "churn")
        self.plan, self.say = plan or Plan(), say
        self.report = Report()
        self.members: dict[str, Member] = {}
        self.address = ""
        self.elapsed_s = 0.0
        self.total_s = 0.0
        self.processes: LocalProcesses
        self._progress, self._heard, self._folder = progress, heard, folder
        self._later: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self._last_step = 0.0
        self._holding = False
        self._released = 0.0
        self._did: deque[str] = deque(maxlen=_REMEMBERED)
        self._master_runs = False
        self._master_killed = 0.0
        self._excused_s = 0.0
        """Without a master since the last step."""
        self._late = False

    def run(self, seconds: float) -> Report:
        """Go on for so long, then end all."""
        self.total_s = seconds
        with ExitStack() as stack:
            folder = self._folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
            self.processes = stack.enter_context(LocalProcesses(folder))
            self._state = folder / "master.json"
            self.start_master(self.plan.master, *self.plan.master_options)
            self._wait_until(lambda: self._master_runs, "the master doesn't start")
            for _ in range(self.plan.first):
                self.spawn()
            self._wait_until(lambda: self.report.steps > 0, "no step")
            self._go_on(seconds)
        return self.report

    def _go_on(self, seconds: float) -> None:
        began = self._last_step = time.monotonic()
        action = self._soon(began)
        while (now := time.monotonic()) < began + seconds:
            due = min(action, began + seconds, self._later[0][0] if self._later else action)
            self._hear(min(due - now, 1.0))
            now = time.monotonic()
            self.elapsed_s = self.report.seconds = now - began
            while self._later and self._later[0][0] <= now:
                heapq.heappop(self._later)[2]()
            if now >= action:
                self._act()
                action = self._soon(time.monotonic())
            self.report.live = len(self.members)
            self._progress(self)
        self._hear(0.0)

    # -- for actions ----------------------------------------------------------------------------------------------

    def able(self) -> list[Member]:
        """Who counts as alive."""
        now = time.monotonic()
        return [member for member in self.members.values() if member.able(now)]

    def pick(self, elders: bool = True) -> Member | None:
        """One to whom something may happen: two others are left alone."""
        able = self.able()
        some = [member for member in able if elders or not member.elder]
        return some[int(self.dice.integers(len(some)))] if len(able) > 2 and some else None

    def later(self, seconds: float, what: Callable[[], None]) -> None:
        """Do it then."""
        heapq.heappush(self._later, (time.monotonic() + seconds, next(self._numbers), what))

    def hinder(self, member: Member, seconds: float, end: Callable[[], None], *, hold: bool = False) -> None:
        """It doesn't count as alive for so long; then comes `end`."""
        member.hindered += 1
        if hold:
            self.hold()

        def over() -> None:
            end()
            member.hindered -= 1
            if hold:
                self.release()

        self.later(seconds, over)

    @property
    def held(self) -> bool:
        """May the group be waiting for the end of something?"""
        return self._holding or self._last_step <= self._released

    def hold(self) -> None:
        """The group may have to wait from now on."""
        self._holding = True

    def release(self) -> None:
        """No longer."""
        self._holding, self._released = False, time.monotonic()

    def spawn(self) -> str:
        """Start a peer; returns its name."""
        number = self.report.done["spawned"]
        member = Member(f"peer-{number}", elder=number < self.plan.elders)
        self.report.done["spawned"] += 1
        address, options = self.plan.surroundings.enter(member, self.address)
        argv = [sys.executable, "-m", "atoll.reproduce.peer", address, str(FOREVER), "--pace", "0.01", "--rejoin"]
        argv += ["--name", member.name, *self.plan.options, *options]
        env = {"OMP_NUM_THREADS": "1", **dict(self.plan.env)}
        child = self.processes.start(argv, member.name, stdout=self._line, env=env)
        member.pid = child.pid
        self.members[member.name] = member
        return member.name

    def start_master(self, address: str, *options: str) -> None:
        """At that address; with what the one before wrote down."""
        argv = [sys.executable, "-m", "atoll", "master", "--json", "--state", str(self._state), "--listen", address]
        argv += options
        self.master_pid = self.processes.start(argv, MASTER, stdout=self._line, env=dict(self.plan.env)).pid

    def kill_master(self) -> None:
        """SIGKILL."""
        self._master_runs, self._master_killed = False, time.monotonic()
        self.processes.kill(MASTER)

    # -- inside -------------------------------------------------------------------------------------------------------

    def _soon(self, now: float) -> float:
        return now + float(self.dice.uniform(*self.plan.pause_s))

    def _wait_until(self, ready: Callable[[], bool], otherwise: str) -> None:
        deadline = time.monotonic() + _FIRST_STEP_S
        while not ready() and time.monotonic() < deadline:
            self._hear(0.2)
        if not ready():
            why = "; ".join(self.report.failures) or "nobody says why"
            raise atoll.AtollError(f"{otherwise} within {_FIRST_STEP_S:g} s: {why}")

    def _act(self) -> None:
        weights = [weight for weight, _ in self.plan.actions]
        chosen = int(self.dice.choice(len(weights), p=[weight / sum(weights) for weight in weights]))
        action = self.plan.actions[chosen][1]
        if len(self.able()) <= 2:
            action = spawn
        if did := action(self):
            self._did.append(f"{self.elapsed_s:.1f} s: {did}")
            self.say(self._did[-1])

    def _hear(self, timeout_s: float) -> None:
        """Take in what the peers say, for at most so long."""
        for exit_ in self.processes.wait_any(max(0.0, timeout_s)):
            member = self.members.pop(exit_.name, None)
            if member is not None:
                self.plan.surroundings.leave(member)
            if exit_.code > 0 or member is not None:
                self.report.failures.append(f"{exit_.name} ended with {exit_.code}")
        self._gap(time.monotonic())

    def _gap(self, now: float) -> None:
        if not self._master_runs:
            return
        gap = now - (self._last_step or now) - self._excused_s
        self.report.worst_gap_s = max(self.report.worst_gap_s, gap)
        if gap > LONGEST_GAP_S and not self._late:
            self._late = True
            self.report.failures.append(f"no step for {LONGEST_GAP_S:g} s after {'; '.join(self._did)}")

    def _line(self, name: str, line: str) -> None:
        said: dict[str, Any] = json.loads(line)
        self._heard(name, said)
        event = said["event"]
        member = self.members.get(name)
        if event == "listening":
            self.address, self._master_runs = said["address"], True
            if self._master_killed:
                self._excused_s += time.monotonic() - self._master_killed
        elif event == "failed":
            self.report.failures.append(f"{name}: {said['message']}")
        elif event in ("expelled", "turned away", "lost"):
            self.report.done[event] += 1
            if member is not None and event == "expelled":
                member.stepped = -1e9
        if "hash" in said:
            self._compare(said["revision"], said["hash"])
        if event == "step":
            now = time.monotonic()
            self._gap(now)
            self._last_step, self._late, self._excused_s = now, False, 0.0
            if member is not None:
                member.stepped = now
            self.report.steps, self.report.world = max(self.report.steps, said["revision"]), said["world"]

    def _compare(self, revision: int, digest: str) -> None:
        known = self.report.hashes.get(revision)
        if known is None:
            self.report.hashes[revision] = digest
            return
        self.report.compared += 1
        if known != digest and revision not in self.report.differing:
            self.report.differing.append(revision)
