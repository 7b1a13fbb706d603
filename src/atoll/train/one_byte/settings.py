"""Interface: what the strategy `one-byte` can be told. The same on all peers."""

from dataclasses import dataclass
from typing import Final, Literal

from atoll.train.limits import ABOVE_0, AT_LEAST_0, AT_LEAST_1, Range, check

MOST_SAMPLES: Final = 1024
"""Bytes a peer may say in a round: they travel in its vote."""
LIMITS: Final = {
    **dict.fromkeys(("lr", "epsilon", "reference", "link_mbit"), ABOVE_0),
    "samples": Range(1, MOST_SAMPLES),
    "clip": AT_LEAST_0,
    "hash_every": AT_LEAST_1,
}


@dataclass(frozen=True)
class OneByteSettings:
    """For `--strategy one-byte`; the same on all peers."""

    lr: float = 1e-4
    """Learning rate: how far a round goes along each noise, times the gradient along it."""
    epsilon: float = 1e-3
    """How far the parameters are moved to and fro to see which way the loss falls; in units of a parameter."""
    samples: int = 1
    """Gradients, and so bytes, of a peer per round, each along a noise of its own, on its share of the batch."""
    noise: Literal["normal", "signs"] = "normal"
    """What a direction is made of. signs: of 1 and -1, which are made several times as fast."""
    scale: Literal["sqrt", "mean"] = "sqrt"
    """A round's step is the sum over its n gradients, divided by the root of n, or by n."""
    rounding: Literal["nearest", "stochastic"] = "nearest"
    """Of a gradient to its byte. stochastic: right on average."""
    reference: float = 1.0
    """The gradient in the middle of the byte's range, which reaches from 0.0004 to 2600 times that."""
    clip: float = 0.0
    """Cut gradients to so many times the median of the round's, so that nobody can say much that is wrong. 0: don't."""
    hash_every: int = 64
    """Rounds between comparisons of the peers' parameters; whose differ are mended."""
    trainable: str = "*"
    """Which parameters are trained: a pattern of their names; several, with commas."""
    catch_up: Literal["auto", "replay", "fetch"] = "auto"
    """How a newcomer gets to the others' parameters: from the log, or sent by them. auto: by what takes less time."""
    link_mbit: float = 100.0
    """How fast parameters could be sent to a newcomer, for `auto`."""

    def check(self) -> None:
        """InvalidConfig names the flag that makes no sense. (Not at birth: the command line would bury it in a box.)"""
        check(self, LIMITS, "one_byte.")
