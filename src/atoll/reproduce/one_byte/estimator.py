"""Driver: the byte against the float, the estimator against the gradient. (Just One Byte, "Done when" 2, 4, 8.)"""

import logging.handlers
from collections.abc import Iterator

import numpy as np
import torch

from atoll.group.facade import Group
from atoll.group.local import LocalGroup
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.one_byte.tuning import Tuning, losses
from atoll.reproduce.threads import run_peers
from atoll.rng import normal, stream
from atoll.train.one_byte.code import ByteCode, FloatCode
from atoll.train.one_byte.settings import OneByteSettings
from atoll.train.one_byte.strategy import OneByte

MANY = 100_000
SEEDS = 20_000
D = 20
ROUNDS = 400


def floats(seed: int, say: Say) -> Iterator[Line]:
    """The same schedule with numbers of four bytes."""
    say("bytes against floats")

    def last(code: ByteCode | FloatCode) -> float:
        tunings = [Tuning(seed, code=code) for _ in range(2)]

        def peer(group: Group) -> float:
            return losses(tunings[group.rank], group, ROUNDS)[-1]

        return float(np.mean(run_peers(2, peer)))

    byte, real = last(ByteCode()), last(FloatCode())
    yield Line(
        "2a",
        f"2 peers, {ROUNDS} rounds with bytes and with floats: loss on all training texts at the end",
        "within 5 %",
        f"{byte:.4f} and {real:.4f}: {byte / real - 1:+.1%}",
        judged(abs(byte / real - 1) <= 0.05),
    )


def codes(seed: int, say: Say) -> Iterator[Line]:
    """How far off a byte is."""
    say("the code")
    rng = stream(seed, "codes")
    given = np.exp(rng.uniform(-7.8, 7.8, MANY)) * rng.choice([-1.0, 1.0], MANY)
    nearest, dice = ByteCode(), ByteCode(stochastic=True)
    worst = float(np.abs(nearest.decode(nearest.encode(given, rng)) / given - 1).max())
    yield Line("2b", f"{MANY:,} numbers through the byte: largest relative error", "<= 6.5 %", f"{worst:.2%}",
               judged(worst <= 0.065))  # fmt: skip
    mean = float((dice.decode(dice.encode(given, rng)) / given - 1).mean())
    yield Line(
        "2c", "rounded stochastically: mean relative error", "< 0.3 %", f"{mean:+.3%}", judged(abs(mean) < 0.003)
    )


def unbiased(seed: int, say: Say) -> Iterator[Line]:
    """The mean over many noises."""
    say(f"the estimator over {SEEDS:,} noises")
    target = torch.linspace(-1, 1, D)
    x = torch.zeros(D)
    strategy = OneByte(
        {"x": x}, lambda batch: ((batch - x) ** 2).sum(1).mean() / 2, lambda: None, OneByteSettings(), seed
    )  # fmt: skip
    found = np.zeros(D)
    for t in range(SEEDS):
        _, gradients = strategy.estimate([target[None]], t, 0)
        (spoken,) = strategy.code.decode(strategy.code.encode(gradients, stream(0)))
        found += spoken * normal((seed, "one-byte", t, 0, 0), D)
    truth = -target.numpy()
    cosine = float(found @ truth / np.linalg.norm(found) / np.linalg.norm(truth))
    yield Line(
        "4",
        f"a bowl of {D} dimensions: cosine of the mean over {SEEDS:,} noises, bytes as spoken, and the gradient",
        "> 0.99",
        f"{cosine:.4f}",
        judged(cosine > 0.99),
    )


def nothing_said() -> Iterator[Line]:
    """A loss that is no number."""
    x = torch.ones(D)
    strategy = OneByte({"x": x}, lambda batch: (batch * x).sum(), lambda: None, OneByteSettings())
    strategy.enter(LocalGroup())
    warnings = logging.handlers.BufferingHandler(10)
    logger = logging.getLogger("atoll.train")
    logger.addHandler(warnings)
    try:
        strategy.step(torch.full((1, D), float("nan")))
    finally:
        logger.removeHandler(warnings)
    said = strategy.rounds[0].said
    unmoved, warned = bool((x == 1).all()), any("no number" in each.getMessage() for each in warnings.buffer)
    yield Line(
        "8c",
        "a loss that is no number: what is said, the parameters, the log",
        "0x00, unmoved, a warning",
        f"0x{said.hex()}, {'unmoved' if unmoved else 'moved'}, {'a warning' if warned else 'no word'}",
        judged(said == b"\0" and unmoved and warned),
    )
