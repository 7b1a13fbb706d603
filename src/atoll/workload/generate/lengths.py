"""Policy: how long prompts and answers are, and how many turns a conversation has.

Each draw takes one number from its stream, so changing bounds never shifts what others draw. Zipf is BurstGPT's law
(Wang et al., 2025, arXiv 2401.17644); `Joint` keeps what its answers have to do with their prompts.
"""

import bisect
import math
from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from statistics import NormalDist
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from atoll.errors import InvalidConfig
from atoll.workload.generate.processes import check_positive

LONGEST = 1 << 20
_NORMAL = NormalDist()


class LogNormal(msgspec.Struct, frozen=True, tag_field="kind", tag="log-normal"):
    """Rounded, and within `low..high`; `sigma` is that of the logarithm."""

    median: float
    sigma: float
    low: int = 1
    high: int = LONGEST

    def __post_init__(self) -> None:
        check_positive(median=self.median, low=self.low)
        if not (self.low <= self.median <= self.high <= LONGEST and 0 <= self.sigma < math.inf):
            raise InvalidConfig(f"{self} needs low <= median <= high <= {LONGEST} and sigma >= 0")

    def draw(self, rng: np.random.Generator) -> int:
        below, above = self._share_below(self.low - 0.5), self._share_below(self.high + 0.5)
        share = below + (above - below) * rng.random()
        if not (self.sigma and 0 < share < 1):
            return round(self.median)
        tokens = round(self.median * math.exp(min(self.sigma * _NORMAL.inv_cdf(share), 700.0)))
        return min(max(tokens, self.low), self.high)

    def _share_below(self, tokens: float) -> float:
        return _NORMAL.cdf(math.log(tokens / self.median) / self.sigma) if self.sigma else 0.5


class Zipf(msgspec.Struct, frozen=True, tag_field="kind", tag="zipf"):
    """1 to `high`, each k as likely as k**-a: what drawing from the whole law and rejecting the rest would give."""

    a: float
    high: int

    def __post_init__(self) -> None:
        if not (1 < self.a < math.inf and 1 <= self.high <= LONGEST):
            raise InvalidConfig(f"{self} needs a > 1, where Zipf's law has a sum, and high in 1..{LONGEST}")

    def draw(self, rng: np.random.Generator) -> int:
        return int(np.searchsorted(_zipf_shares(self.a, self.high), rng.random(), side="right")) + 1


class Geometric(msgspec.Struct, frozen=True, tag_field="kind", tag="geometric"):
    """1 to `high`, each k after the first less likely than the one before by the same factor; `mean` if never cut."""

    mean: float
    high: int = LONGEST

    def __post_init__(self) -> None:
        if not (1 <= self.mean < math.inf and 1 <= self.high <= LONGEST):
            raise InvalidConfig(f"{self} needs mean >= 1 and high in 1..{LONGEST}")

    def draw(self, rng: np.random.Generator) -> int:
        share = rng.random()
        if self.mean == 1:
            return 1
        log_factor = math.log1p(-1 / self.mean)
        within = -math.expm1(self.high * log_factor)
        return min(1 + int(math.log1p(-share * within) / log_factor), self.high)


class Empirical(msgspec.Struct, frozen=True, tag_field="kind", tag="empirical"):
    """One of the measured values, each as likely."""

    values: Sequence[int]

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "values", tuple(self.values))
        check_positive(values=min(self.values, default=0))

    def draw(self, rng: np.random.Generator) -> int:
        return self.values[int(rng.random() * len(self.values))]


class Joint(msgspec.Struct, frozen=True, tag_field="kind", tag="joint"):
    """Answers by what was measured for prompts of about that length: `answers[i]` for prompts from `starts[i]` on.

    `starts` begins with 1 and rises.
    """

    starts: Sequence[int]
    answers: Sequence[Empirical]

    def __post_init__(self) -> None:
        msgspec.structs.force_setattr(self, "starts", tuple(self.starts))
        msgspec.structs.force_setattr(self, "answers", tuple(self.answers))
        rising = all(a < b for a, b in pairwise(self.starts))
        if not (self.starts and self.starts[0] == 1 and rising and len(self.starts) == len(self.answers)):
            raise InvalidConfig(f"the starts {list(self.starts)[:9]} must begin with 1, rise, and have answers each")

    def given(self, prompt_tokens: int) -> Empirical:
        """The answers to a prompt of that length."""
        return self.answers[max(bisect.bisect_right(self.starts, prompt_tokens) - 1, 0)]


AnyLengths = LogNormal | Zipf | Geometric | Empirical
AnyAnswers = LogNormal | Zipf | Geometric | Empirical | Joint


@lru_cache(maxsize=16)
def _zipf_shares(a: float, high: int) -> NDArray[Any]:
    """How likely is each of 1..high - 1 or less."""
    shares = np.cumsum(np.arange(1, high + 1, dtype=np.float64) ** -a)
    below: NDArray[Any] = shares[:-1] / shares[-1]
    return below
