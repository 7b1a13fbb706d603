"""Training runs of a model so small that a whole group of peers trains in a fraction of a second, in virtual time."""

from collections.abc import Callable
from itertools import chain, repeat
from pathlib import Path
from typing import Any

import numpy as np
import torch

import atoll
from atoll.errors import AtollError
from atoll.group.facade import Group
from atoll.group.virtual import Process, World
from atoll.runtime.api import here
from atoll.train.loop import Folders, Trainer
from atoll.train.settings import ModelSettings, TrainSettings
from atoll.train.text import Corpus

STEP_S = 0.01


def corpus(seed: int = 0, windows: int = 600) -> Corpus:
    """Words of a small dictionary in random order."""
    rng = np.random.default_rng(seed)
    words = [bytes(rng.integers(97, 123, n).tolist()) for n in rng.integers(2, 8, 30)]
    text = b" ".join(words[i] for i in rng.integers(0, 30, windows * 8))
    tokens = np.frombuffer(text, np.uint8)
    assert len(tokens) > 16 * windows + 1000
    return Corpus(tokens[: 16 * windows + 1], tokens[-1000:], f"text {seed}")


def tiny(**changes: Any) -> TrainSettings:
    """Settings of a run of twelve steps."""
    model = ModelSettings(width=16, layers=1, heads=2, context=16)
    return TrainSettings(
        **{
            "model": model,
            "steps": 12,
            "batch": 2,
            "every": 4,
            "fragments": 1,
            "warm_up": 3,
            "save_every": 0,
            **changes,
        }
    )


class Peer:
    """A process that trains: what it reported, and the error it ended with."""

    def __init__(self, trainer: Trainer, log: list[dict[str, Any]], awaits: int = 1) -> None:
        self.trainer, self.log, self.awaits = trainer, log, awaits
        self.error: AtollError | None = None
        self.to_the_end: bool | None = None
        self.process: Process

    def events(self, name: str) -> list[dict[str, Any]]:
        return [entry for entry in self.log if entry["event"] == name]

    def last(self, name: str) -> dict[str, Any]:
        return self.events(name)[-1]

    @property
    def done(self) -> bool:
        return bool(self.events("done"))

    @property
    def parameters(self) -> torch.Tensor:
        return self.trainer.state.tensors["parameters"]

    def hashes(self) -> dict[int, str]:
        """By revision, after each exchange."""
        return {e["revision"]: e["hash"] for e in self.events("step") if "hash" in e}


class Run:
    """A world in which peers train; a step takes `STEP_S` of its time."""

    def __init__(self, settings: TrainSettings, seed: int = 0, text: Corpus | None = None, **world: Any) -> None:
        torch.set_num_threads(1)
        self.settings, self.text = settings, text or corpus()
        self.world = World(seed, cost=lambda op: STEP_S, **world)
        self.peers: list[Peer] = []

    def start(
        self, *, delay_s: float = 0.0, min_world: int = 1, settings: TrainSettings | None = None,
        text: Corpus | None = None, folder: Path | None = None, resume: bool = False,
        also: Callable[..., None] = lambda event, **about: None,
    ) -> Peer:  # fmt: skip
        """One more peer. `also` hears its reports, in its own thread."""
        log: list[dict[str, Any]] = []

        def report(event: str, **about: Any) -> None:
            log.append({"event": event, "at": here().now(), **about})
            also(event, **about)

        folders = folders_in(folder) if folder else None
        peer = Peer(Trainer(settings or self.settings, text or self.text, report, folders), log, min_world)

        worlds = chain([min_world], repeat(1))  # who comes back waits for nobody

        def enter() -> Group:
            return atoll.join("m:1", min_world=next(worlds), timeout_s=None)

        def main() -> None:
            try:
                if resume:
                    assert folders is not None
                    peer.trainer.resume(folders.checkpoint)
                peer.to_the_end = peer.trainer.run(enter)
            except AtollError as error:
                peer.error = error

        peer.process = self.world.start(f"peer-{len(self.peers)}", main, delay_s)
        self.peers.append(peer)
        return peer

    def at(self, seconds: float, fn: Callable[[], object]) -> None:
        """Call `fn` at that moment."""
        self.world.loop.post(round(seconds * 1e9), fn)

    def run(self) -> "Run":
        self.world.run()
        return self


def folders_in(path: Path) -> Folders:
    return Folders(path / "checkpoint", path / "model")


def group_of(n: int, settings: TrainSettings, **world: Any) -> Run:
    """`n` peers that begin together, not yet run."""
    run = Run(settings, **world)
    for _ in range(n):
        run.start(min_world=n)
    return run


def check_agreement(peers: list[Peer]) -> None:
    """Whoever reported a hash of the shared state in the same epoch at the same revision reported the same one."""
    seen: dict[tuple[str, int, int], str] = {}
    for peer in peers:
        for entry in peer.log:
            if "revision" in entry and "hash" in entry:
                key = entry["event"], entry["epoch"], entry["revision"]
                assert seen.setdefault(key, entry["hash"]) == entry["hash"], f"states differ at {key}"
