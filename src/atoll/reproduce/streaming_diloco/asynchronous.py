"""Driver: without rounds: a server, workers of unequal speed, and both killed. (Liu et al. 2024, arXiv 2401.09135.)"""

import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

import atoll
from atoll.config import RunDir
from atoll.errors import AtollError
from atoll.group.virtual import World as GroupWorld
from atoll.net.streams import Streams
from atoll.reproduce.api import Line, Say, judged
from atoll.rng import stream
from atoll.runtime.api import Runtime, here
from atoll.runtime.processes import LocalProcesses
from atoll.sim.actors import World
from atoll.train.asynchronous.nesterov import DelayedNesterov
from atoll.train.asynchronous.server import Server
from atoll.train.asynchronous.worker import Worker
from atoll.train.loop import Trainer
from atoll.train.settings import ModelSettings, TrainSettings
from atoll.train.tasks import task_for
from atoll.train.text import Corpus

WORKERS: Final = 3
STEP_S: Final = 0.1
SLOW: Final = 3.0
MOMENT_S: Final = 0.09
EVERY: Final = 8
Events = list[dict[str, Any]]


def _settings(strategy: Any, steps: int, seed: int) -> TrainSettings:
    model = ModelSettings(width=32, layers=2, context=32)
    return TrainSettings(
        strategy=strategy, steps=steps, every=EVERY, model=model, lr=4e-3, warm_up=20, save_every=0, seed=seed
    )


def asynchronous(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The identity, the race, the kills."""
    yield identity(seed)
    yield simulated(full, seed, say)
    yield raced(full, seed, say)
    yield from killed(seed, say)


def identity(seed: int) -> Line:
    """N pushes of the same."""
    rate, beta, worst = 0.7, 0.9, 0.0
    for workers in (1, 2, 3, 8, 50):
        rng = stream(seed, "delayed", workers)
        start, g = (torch.from_numpy(rng.normal(size=1000).astype(np.float32)) for _ in range(2))
        outer = DelayedNesterov(start.clone(), rate, beta)
        for _ in range(workers):
            outer.push(g.clone(), workers)
        worst = max(worst, float((outer.parameters - (start - rate * (1 + beta) * g)).abs().max()))
    return Line(
        "8a",
        "delayed Nesterov, from v = 0, c = 0: N pushes of the same g, N = 1, 2, 3, 8, 50",
        "move by rate x (1 + momentum) x g, within 1e-5",
        f"{worst:.1e} apart",
        judged(worst <= 1e-5),
    )


# -- unequal workers ---------------------------------------------------------------------------------------------------


def simulated(full: bool, seed: int, say: Say) -> Line:
    """The same programs in virtual time, where a step takes what we say."""
    steps = (60 if full else 20) * EVERY
    settings = _settings("diloco", steps, seed)
    text = Corpus.read(limit_bytes=1 << 20)
    say(f"{WORKERS} workers, one {SLOW:g} times slower, in virtual time: in rounds")
    together_s, together = _in_rounds(settings, text)
    say("and without")
    alone_s, alone, taken = _without_rounds(replace(settings, strategy="diloco-server"), text)
    return _race("8b", "simulated", steps, (together_s, together), (alone_s, alone, taken))


def _in_rounds(settings: TrainSettings, text: Corpus) -> tuple[float, float]:
    """DiLoCo: seconds from the first step to the last, loss at the end."""
    told: Events = []
    speeds = dict.fromkeys(range(WORKERS), 1.0) | {WORKERS - 1: SLOW}
    world = GroupWorld(settings.seed, cost=lambda op: STEP_S if op.kind == "train_step" else 0.0)

    def start(i: int) -> None:
        def report(event: str, **about: Any) -> None:
            told.append({"event": event, "at": here().now(), **about})
            if event == "step":
                here().sleep((speeds[i] - 1) * STEP_S)

        def main() -> None:
            trainer = Trainer(settings, text, report)
            trainer.run(lambda: atoll.join("m:1", min_world=WORKERS, timeout_s=None))

        world.start(f"worker-{i}", main)

    for i in range(WORKERS):
        start(i)
    torch.set_num_threads(1)
    world.run()
    return _span(told, STEP_S), _loss(told)


def _without_rounds(settings: TrainSettings, text: Corpus) -> tuple[float, float, int]:
    told: Events = []
    world = World(Streams(), settings.seed, cost=lambda op: STEP_S if op.kind == "train_step" else 0.0)

    def report(event: str, **about: Any) -> None:
        told.append({"event": event, "at": world.heap.now_s, **about})

    async def serve(runtime: Runtime) -> None:
        await Server(runtime, settings, task_for(settings, text), report).run("server:1")

    async def work(runtime: Runtime) -> None:
        await Worker(runtime, settings, task_for(settings, text), report, min_world=WORKERS).run("server:1")

    world.start("server", serve)
    for i in range(WORKERS):
        world.start(f"worker-{i}", work, slow=SLOW if i == WORKERS - 1 else 1.0)
    world.run()
    return _span(told, STEP_S), _loss(told), sum(said["event"] == "step" for said in told)


def raced(full: bool, seed: int, say: Say) -> Line:
    """Processes of this machine, stopped for most of the time: two have a third of a core each, one a ninth."""
    steps = (60 if full else 20) * EVERY
    found = {}
    for strategy in ("diloco", "diloco-server"):
        settings = _settings(strategy, steps, seed)
        say(f"{strategy}: {WORKERS} processes, one of them {SLOW:g} times slower")
        with tempfile.TemporaryDirectory() as folder, LocalProcesses(Path(folder)) as processes:
            crew = _Crew(processes, Path(folder), settings)
            if strategy == "diloco":
                with atoll.Master() as master:
                    crew.start_workers(master.address)
                    crew.wait(crew.all_done, 600.0)
            else:
                crew.start_workers(crew.start_server())
                crew.wait(crew.all_done, 600.0)
        told = crew.told
        steps_told = [said for said in told if said["event"] == "step"]
        found[strategy] = _span(told, 0.0), _loss(told), len(steps_told)
    return _race("8c", "real", steps, found["diloco"][:2], found["diloco-server"])


def _race(
    number: str, kind: Any, steps: int, rounds: tuple[float, float], without: tuple[float, float, int]
) -> Line:  # fmt: skip
    (together_s, together), (alone_s, alone, taken) = rounds, without
    least = 3 / (2 + 1 / SLOW) / SLOW
    worse = alone / together - 1
    return Line(
        number,
        f"{WORKERS} workers, one {SLOW:g}x slower, {WORKERS * steps} steps in all, H={EVERY}: without rounds against "
        "DiLoCo; loss on held-out text",
        f"sooner ({1 / least:.1f}x, were there nothing but steps); loss at most 5 % above",
        f"{alone_s:.1f} s against {together_s:.1f} s: {together_s / alone_s:.1f}x; {taken} of {WORKERS * steps} steps; "
        f"{alone:.3f} against {together:.3f}: {worse:+.1%}",
        judged(alone_s < together_s and taken >= WORKERS * steps and worse <= 0.05),
        kind,
    )


# -- kills -------------------------------------------------------------------------------------------------------------


def killed(seed: int, say: Say) -> Iterator[Line]:
    """A worker, then the server."""
    steps = 150 * EVERY
    settings = replace(_settings("diloco-server", steps, seed), save_every=100)
    with tempfile.TemporaryDirectory() as folder, LocalProcesses(Path(folder)) as processes:
        crew = _Crew(processes, Path(folder), settings, slowed=False)
        say("three workers and a server; a worker is killed")
        address = crew.start_server()
        crew.start_workers(address)
        crew.wait(lambda: crew.step() >= steps // 5, 300.0)
        processes.kill("worker-0")
        killed_at = time.time()
        crew.wait(lambda: crew.step() >= steps // 2, 300.0)
        moments = {name: crew.moments(name) for name in ("worker-1", "worker-2")}
        usual = max(_gap(some, before=killed_at) for some in moments.values())
        after = max(_gap(some, after=killed_at) for some in moments.values())
        yield Line(
            "8d",
            "SIGKILL to one of three workers: the others go on without a pause",
            "longest time between two steps about as before",
            f"{after * 1e3:.0f} ms after it, {usual * 1e3:.0f} ms before",
            judged(after < max(1.0, 5 * usual)),
        )
        say("the server is killed and started again")
        at = crew.step()
        processes.kill("server")
        crew.wait(lambda: "server" not in processes.alive(), 30.0)
        crew.start_server(address)
        crew.wait(crew.all_done, 300.0)
    resumed = [said["step"] for said in crew.told if said["event"] == "resumed"]
    done = sum(said["event"] == "done" and said["peer"] != "server" for said in crew.told)
    yield Line(
        "8e",
        "SIGKILL to the server, started again from its checkpoint: workers find it, the run ends",
        "2 workers at the end",
        f"killed after step {at}, went on from {', '.join(map(str, resumed))}; {done} workers at the end; "
        f"loss {_loss(crew.told):.3f}",
        judged(done == 2 and len(resumed) == 1),
    )


class _Crew:
    """Processes that train, and what they said."""

    def __init__(self, processes: LocalProcesses, folder: Path, settings: TrainSettings, slowed: bool = True) -> None:
        self.processes, self.folder = processes, folder
        self.run = RunDir.create(folder, "run")
        self.run.write_config(settings)
        self.parts = [f"worker-{i}" for i in range(WORKERS)] if slowed else []
        """Whoever has only a part of a core."""
        self.told: Events = []
        self._runs: dict[str, bool] = {}

    def start_server(self, address: str = "127.0.0.1:0") -> str:
        """The address where it listens."""
        argv = [sys.executable, "-m", "atoll", "train", "--peers", "0", "--listen", address, "--json"]
        argv += ["--resume", str(self.run.path), "--strategy", "diloco-server"]
        before = len(self._addresses())
        self.processes.start(argv, "server", stdout=self._line, env={"OMP_NUM_THREADS": "1"})
        self.wait(lambda: len(self._addresses()) > before, 120.0)
        return self._addresses()[-1]

    def start_workers(self, address: str) -> None:
        """All of them."""
        for i in range(WORKERS):
            where = self.folder / f"worker-{i}"
            where.mkdir()
            argv = [sys.executable, "-m", "atoll", "join", address, "--name", where.name, "--json"]
            argv += ["--min-world", str(WORKERS), "--run-dir", str(where), "--config", str(self.run.config)]
            self.processes.start(argv, where.name, stdout=self._line, env={"OMP_NUM_THREADS": "1"})

    def wait(self, ready: Callable[[], bool], seconds: float) -> None:
        """AtollError: it takes longer, or somebody failed."""
        deadline = time.monotonic() + seconds
        while not ready():
            if time.monotonic() > deadline:
                raise AtollError(f"nothing came of it in {seconds:g} s: {self.told[-3:]}")
            for said in self.told:
                if said["event"] == "failed":
                    raise AtollError(f"{said['peer']} failed: {said['message']}")
            self._throttle()
            self.processes.wait_any(MOMENT_S / 10)

    def all_done(self) -> bool:
        """Has everybody that lives come to the end?"""
        done = {said["peer"] for said in self.told if said["event"] == "done"}
        return bool(done) and not [name for name in self.processes.alive() if name not in done]

    def step(self) -> int:
        """Of the run."""
        return max((said["step"] for said in self.told if said["event"] == "step"), default=0)

    def moments(self, name: str) -> list[float]:
        """At which that worker has taken a step."""
        return [said["at"] for said in self.told if said["event"] == "step" and said["peer"] == name]

    def _addresses(self) -> list[str]:
        return [said["address"] for said in self.told if said["event"] == "listening"]

    def _line(self, name: str, line: str) -> None:
        said = json.loads(line)
        self.told.append({"peer": name, **said})

    def _throttle(self) -> None:
        """Each stands still but in its part of every moment, so that none takes a core from another."""
        at = time.monotonic() % MOMENT_S / MOMENT_S * WORKERS
        for i, name in enumerate(self.parts):
            runs = i <= at < i + (1 / SLOW if i == WORKERS - 1 else 1.0)
            if name in self.processes.alive() and runs != self._runs.get(name, True):
                self._runs[name] = runs
                (self.processes.thaw if runs else self.processes.freeze)(name)


def _span(told: Events, first_s: float) -> float:
    """From the beginning of the first step to the end of the last."""
    moments: list[float] = [said["at"] for said in told if said["event"] == "step"]
    return max(moments) - min(moments) + first_s


def _loss(told: Events) -> float:
    losses: list[float] = [said["loss"] for said in told if said["event"] == "evaluated"]
    return losses[-1]


def _gap(moments: list[float], before: float = float("inf"), after: float = 0.0) -> float:
    """The longest time between two steps, before or after a moment."""
    return max((b - a for a, b in pairwise(moments) if after < b < before), default=float("nan"))
