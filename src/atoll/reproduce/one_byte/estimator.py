"""Driver: the byte against the float, the estimator against the gradient. (Just One Byte, "Done when" 2, 4, 8.)"""

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


def floats(seed: int, say: Say) -> Line:
    """The same schedule with numbers of four bytes."""
    say("bytes against floats")

    def last(code: ByteCode | FloatCode) -> float:
        tunings = [Tuning(seed, code=code) for _ in range(2)]

        def peer(group: Group) -> float:
            return losses(tunings[group.rank], group, ROUNDS)[-1]

        return float(np.mean(run_peers(2, peer)))

    byte, real = last(ByteCode()), last(FloatCode())
    return Line(
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


def unbiased(seed: int, say: Say) -> Line:
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
    return Line(
        "4",
        f"a bowl of {D} dimensions: cosine of the mean over {SEEDS:,} noises, bytes as spoken, and the gradient",
        "> 0.99",
        f"{cosine:.4f}",
        judged(cosine > 0.99),
    )


def nothing_said() -> Line:
    """A loss that is no number."""
    x = torch.ones(D)
    strategy = OneByte({"x": x}, lambda batch: (batch * x).sum(), lambda: None, OneByteSettings())
    strategy.enter(LocalGroup())
    strategy.step(torch.full((1, D), float("nan")))
    said = strategy.rounds[0].said
    unmoved = bool((x == 1).all())
    return Line("8c", "a loss that is no number: what is said, and the parameters", "0x00, unmoved",
                f"0x{said.hex()}, {'unmoved' if unmoved else 'moved'}", judged(said == b"\0" and unmoved))  # fmt: skip
