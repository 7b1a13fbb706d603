"""Policy: how long until something happens, or until it is over: distributions of seconds."""

import math
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from atoll.errors import InvalidConfig


class Clock(Protocol):
    """A distribution of seconds."""

    def draw(self, rng: np.random.Generator) -> float: ...


@dataclass(frozen=True, slots=True)
class Fixed:
    """Always `seconds`; `math.inf`: it never happens, or never ends."""

    seconds: float

    def draw(self, rng: np.random.Generator) -> float:
        return self.seconds


@dataclass(frozen=True, slots=True)
class Exponential:
    """No memory: as likely to happen in the next second as in any other."""

    mean_s: float

    def __post_init__(self) -> None:
        _check(self.mean_s)

    def draw(self, rng: np.random.Generator) -> float:
        return self.mean_s * rng.standard_exponential()


@dataclass(frozen=True, slots=True)
class Weibull:
    """`shape` < 1: most fail young (as clusters do); > 1: they wear out."""

    mean_s: float
    shape: float

    def __post_init__(self) -> None:
        _check(self.mean_s, self.shape)

    def draw(self, rng: np.random.Generator) -> float:
        return self.mean_s / math.gamma(1 + 1 / self.shape) * rng.weibull(self.shape)


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Repairs, typically: most are short, a few very long. `sigma` is that of the logarithm."""

    mean_s: float
    sigma: float

    def __post_init__(self) -> None:
        _check(self.mean_s, self.sigma)

    def draw(self, rng: np.random.Generator) -> float:
        return self.mean_s * rng.lognormal(-self.sigma * self.sigma / 2, self.sigma)


def _check(mean_s: float, shape: float = 1.0) -> None:
    if not 0 < mean_s < math.inf:
        raise InvalidConfig(f"mean_s={mean_s} of a clock must be finite and above 0")
    if not 0 < shape < math.inf:
        raise InvalidConfig(f"the shape or sigma of a clock must be finite and above 0, not {shape}")
