"""Driver: without rounds: a server, workers of unequal speed, and both killed. (Liu et al. 2024, arXiv 2401.09135.)"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any, Final

import numpy as np
import torch

import atoll
from atoll.config import RunDir
from atoll.errors import AtollError
from atoll.group.virtual import World as GroupWorld
from atoll.net.streams import Streams
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.crew import Crew, Event, crew
from atoll.rng import stream
from atoll.runtime.api import Runtime, here
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
Events = list[Event]


def _settings(strategy: Any, steps: int, seed: int) -> TrainSettings:
    model = ModelSettings(width=32, layers=2, context=32)
    return TrainSettings(
        strategy=strategy, steps=steps, every=EVERY, model=model, lr=4e-3, warm_up=20, save_every=0, seed=seed
    )


def identity(seed: int) -> Iterator[Line]:
    """N pushes of the same."""
    rate, beta, worst = 0.7, 0.9, 0.0
    for workers in (1, 2, 3, 8, 50):
        rng = stream(seed, "delayed", workers)
        start, g = (torch.from_numpy(rng.normal(size=1000).astype(np.float32)) for _ in range(2))
        outer = DelayedNesterov(start.clone(), rate, beta)
        for _ in range(workers):
            outer.push(g.clone(), workers)
        worst = max(worst, float((outer.parameters - (start - rate * (1 + beta) * g)).abs().max()))
    yield Line(
        "8a",
        "delayed Nesterov, from v = 0, c = 0: N pushes of the same g, N = 1, 2, 3, 8, 50",
        "move by rate x (1 + momentum) x g, within 1e-5",
        f"{worst:.1e} apart",
        judged(worst <= 1e-5),
    )


# -- unequal workers ---------------------------------------------------------------------------------------------------


def simulated(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The same programs in virtual time, where a step takes what we say."""
    steps = (60 if full else 20) * EVERY
    settings = _settings("diloco", steps, seed)
    text = Corpus.read(limit_bytes=1 << 20)
    say(f"{WORKERS} workers, one {SLOW:g} times slower, in virtual time: in rounds")
    together_s, together = _in_rounds(settings, text)
    say("and without")
    alone_s, alone, taken = _without_rounds(replace(settings, strategy="diloco-server"), text)
    yield _race("8b", "simulated", steps, (together_s, together), (alone_s, alone, taken))


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


def raced(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """Processes of this machine, stopped for most of the time: two have a third of a core each, one a ninth."""
    steps = (60 if full else 20) * EVERY
    found = {}
    for strategy in ("diloco", "diloco-server"):
        settings = _settings(strategy, steps, seed)
        say(f"{strategy}: {WORKERS} processes, one of them {SLOW:g} times slower")
        with atoll.Master() as master, crew(MOMENT_S / 10) as several:
            workers = _Workers(several, settings)
            workers.start(master.address if strategy == "diloco" else workers.start_server())
            workers.until(workers.all_done, "the end of training", 600.0)
        told = [*several.of("step"), *several.of("evaluated")]
        found[strategy] = _span(told, 0.0), _loss(told), len(several.of("step"))
    yield _race("8c", "real", steps, found["diloco"][:2], found["diloco-server"])


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


def killed_without_rounds(seed: int, say: Say) -> Iterator[Line]:
    """A worker, then the server."""
    steps = 150 * EVERY
    with crew() as several:
        workers = _Workers(several, replace(_settings("diloco-server", steps, seed), save_every=100), slowed=False)
        say("three workers and a server; a worker is killed")
        address = workers.start_server()
        workers.start(address)
        workers.until(lambda: workers.step() >= steps // 5, "a fifth of the steps", 300.0)
        several.processes.kill("worker-0")
        killed_at = time.time()
        workers.until(lambda: workers.step() >= steps // 2, "half of the steps", 300.0)
        moments = [[said["at"] for said in several.of("step", f"worker-{i}")] for i in (1, 2)]
        usual = max(_gap(some, before=killed_at) for some in moments)
        after = max(_gap(some, after=killed_at) for some in moments)
        yield Line(
            "8d",
            "SIGKILL to one of three workers: the others go on without a pause",
            "longest time between two steps <= 5x that before, or 1 s",
            f"{after * 1e3:.0f} ms after it, {usual * 1e3:.0f} ms before",
            judged(after < max(1.0, 5 * usual)),
        )
        say("the server is killed and started again")
        at = workers.step()
        several.kill("server")
        workers.start_server(address)
        workers.until(workers.all_done, "the end of training", 300.0)
        resumed = [said["step"] for said in several.of("resumed")]
        done = sum(said["said_by"] != "server" for said in several.of("done"))
        loss = _loss(several.of("evaluated"))
    yield Line(
        "8e",
        "SIGKILL to the server, started again from its checkpoint: workers find it, the run ends",
        "2 workers at the end",
        f"killed after step {at}, went on from {', '.join(map(str, resumed))}; {done} workers at the end; "
        f"loss {loss:.3f}",
        judged(done == 2 and len(resumed) == 1),
    )


class _Workers:
    """Processes that train; `slowed`: each has only a part of a core."""

    def __init__(self, several: Crew, settings: TrainSettings, slowed: bool = True) -> None:
        self.crew = several
        self.run = RunDir.create(several.folder, "run")
        self.run.write_config(settings)
        self._slowed = [f"worker-{i}" for i in range(WORKERS)] if slowed else []
        self._runs: dict[str, bool] = {}

    def start_server(self, address: str = "127.0.0.1:0") -> str:
        """The address where it listens."""
        before = len(self.crew.of("listening"))
        argv = ("-m", "atoll", "train", "--peers", "0", "--listen", address, "--json", "--resume", str(self.run.path))
        self.crew.start("server", *argv, "--strategy", "diloco-server")
        self.until(lambda: len(self.crew.of("listening")) > before, "a server that listens", 120.0)
        return str(self.crew.of("listening")[-1]["address"])

    def start(self, address: str) -> None:
        """All of them."""
        for i in range(WORKERS):
            where = self.crew.folder / f"worker-{i}"
            where.mkdir()
            argv = ("-m", "atoll", "join", address, "--name", where.name, "--json", "--min-world", str(WORKERS))
            self.crew.start(where.name, *argv, "--run-dir", str(where), "--config", str(self.run.config))

    def until(self, holds: Callable[[], bool], what: str, seconds: float) -> None:
        """AtollError: it takes longer, or somebody failed."""

        def ready() -> bool:
            for said in self.crew.of("failed"):
                raise AtollError(f"{said['said_by']} failed: {said['message']}")
            self._throttle()
            return holds()

        self.crew.until(ready, what, seconds)

    def all_done(self) -> bool:
        """Has everybody that lives come to the end?"""
        done = {said["said_by"] for said in self.crew.of("done")}
        return bool(done) and done >= set(self.crew.running())

    def step(self) -> int:
        """Of the run."""
        return max((said["step"] for said in self.crew.of("step")[-100:]), default=0)

    def _throttle(self) -> None:
        """Each stands still but in its part of every moment, so that none takes a core from another."""
        at = time.monotonic() % MOMENT_S / MOMENT_S * WORKERS
        for i, name in enumerate(self._slowed):
            runs = i <= at < i + (1 / SLOW if i == WORKERS - 1 else 1.0)
            if name in self.crew.processes.alive() and runs != self._runs.get(name, True):
                self._runs[name] = runs
                (self.crew.processes.thaw if runs else self.crew.processes.freeze)(name)


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
