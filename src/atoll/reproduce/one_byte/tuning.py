"""Driver: fine-tuning by bytes: a tiny classifier on a task that is new to it, and a published model. (Just One Byte,
"Done when" 5.)"""

import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import numpy as np
import torch
from torch.nn import functional as F

from atoll.errors import InvalidConfig
from atoll.group.facade import Group
from atoll.group.local import LocalGroup
from atoll.model.store import find
from atoll.reproduce.api import Line, Say, judged, missing
from atoll.reproduce.commands import atoll
from atoll.reproduce.one_byte.bag import SECOND, pretrained, texts
from atoll.reproduce.threads import run_peers
from atoll.rng import stream
from atoll.train.one_byte.code import Code
from atoll.train.one_byte.settings import OneByteSettings
from atoll.train.one_byte.strategy import OneByte

BATCH: Final = 64
WITHIN_S: Final = 60.0
LR: Final = 0.03
MOST_ROUNDS: Final = 1500
TARGET: Final = 0.55
"""Loss of the mean text; chance is 0.69."""
PUBLISHED: Final = "smollm2"
LONGEST_S: Final = 7200.0
"""By then it has been trained."""


class Tuning:
    """The pretrained classifier, the texts of the second task, and the strategy between them."""

    def __init__(self, seed: int, code: Code | None = None) -> None:
        self.bag, self.texts = pretrained(seed), texts(SECOND, seed)
        self.strategy = OneByte(
            dict(self.bag.named_parameters()), self.loss, lambda: None, OneByteSettings(lr=LR), seed, code
        )
        self._seed = seed

    def loss(self, batch: torch.Tensor) -> torch.Tensor:
        """Of the texts whose numbers stand in the first column."""
        rows = batch[:, 0]
        return F.cross_entropy(self.bag(self.texts.features[rows]), self.texts.labels[rows])

    def whole(self) -> float:
        """Of all texts to learn from."""
        with torch.no_grad():
            return float(F.cross_entropy(self.bag(self.texts.features), self.texts.labels))

    def accuracy(self) -> float:
        """On the texts that are held out."""
        return self.bag.accuracy(self.texts.held_features, self.texts.held_labels)

    def step(self, rank: int, world: int) -> None:
        """A round on a batch of our own share of the texts."""
        own = np.arange(rank, len(self.texts.labels), world)
        rows = stream(self._seed, "batch", int(self.strategy.steps), rank).choice(own, BATCH)
        self.strategy.step(torch.from_numpy(np.stack([rows, rows], 1)))


def losses(tuning: Tuning, group: Group, rounds: int, until: float = 0.0) -> list[float]:
    """On all texts, every ten rounds, till one is low enough."""
    tuning.strategy.enter(group)
    found = [tuning.whole()]
    for t in range(rounds):
        tuning.step(group.rank, group.world)
        if (t + 1) % 10 == 0:
            found.append(tuning.whole())
            if found[-1] <= until:
                break
    return found


def shifted(seed: int, say: Say) -> Iterator[Line]:
    """One machine, a minute at most."""
    say("a pretrained classifier learns another task")
    tuning = Tuning(seed)
    tuning.strategy.enter(LocalGroup())
    before, began = tuning.accuracy(), time.perf_counter()
    while time.perf_counter() - began < 0.9 * WITHIN_S and int(tuning.strategy.steps) < MOST_ROUNDS:
        tuning.step(0, 1)
    took_s, after = time.perf_counter() - began, tuning.accuracy()
    yield Line(
        "5a",
        f"a classifier pretrained on other topics, {tuning.strategy.weights.numbers:,} parameters: held-out accuracy",
        ">= 10 points more within 60 s",
        f"{before:.1%} -> {after:.1%} in {int(tuning.strategy.steps)} rounds, {took_s:.0f} s",
        judged(after - before >= 0.10 and took_s <= WITHIN_S),
    )


def fewer_rounds(seed: int, say: Say) -> Iterator[Line]:
    """Four machines with a quarter of the texts each, and one with all."""
    say("four machines against one")

    def rounds(world: int) -> int:
        tunings = [Tuning(seed) for _ in range(world)]  # before there are threads: Python 3.11 parses in one only

        def peer(group: Group) -> int:
            return 10 * (len(losses(tunings[group.rank], group, MOST_ROUNDS, TARGET)) - 1)

        return int(max(run_peers(world, peer, timeout_s=300.0)))

    one, four = rounds(1), rounds(4)
    yield Line(
        "5b",
        f"rounds until the loss is {TARGET}: 4 machines, each with texts of its own, and 1 with all",
        "<= 0.6 of them",
        f"{four} and {one}: {four / one:.2f}",
        judged(four <= 0.6 * one < 0.6 * MOST_ROUNDS),
    )


def published(full: bool, say: Say) -> Iterator[Line]:
    """SmolLM2-135M on real labelled texts, by the command a user would give."""
    claim = "SmolLM2-135M tells docstrings of Python's library by topic, one of 4: held-out accuracy, `atoll train`"
    expected = ">= 10 points more"
    if not full:
        yield missing("5c", claim, expected, "many minutes, see --full")
        return
    try:
        find(PUBLISHED)
    except InvalidConfig as error:
        yield missing("5c", claim, expected, f"SmolLM2: {error}")
        return
    say("SmolLM2-135M, two peers: many minutes")
    summary = _trained()
    before, after = summary["right_before"], summary["right_after"]
    yield Line(
        "5c",
        claim,
        expected,
        f"{before:.1%} -> {after:.1%} in {summary['steps']} rounds; 2 peers sent {summary['bytes_sent']:,} bytes",
        judged(after - before >= 0.10 and summary["hashes_equal"]),
    )


def _trained() -> dict[str, Any]:
    """The last line of `atoll train --json`."""
    options = (
        *("--strategy", "one-byte", "--model.name", PUBLISHED, "--task", "docstrings", "--model.context", "48"),
        *("--steps", "200", "--batch", "8", "--peers", "2", "--one-byte.trainable", "*norm*"),
        *("--one-byte.lr", "6e-5"),
    )
    with TemporaryDirectory() as folder:
        return atoll("train", *options, folder=Path(folder), timeout_s=LONGEST_S)[-1]
