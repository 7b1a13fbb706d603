"""Policy: when requests come, as point processes drawn from seeded streams.

`Gamma` renewal is what BurstGPT fits per window (Wang et al., 2025, arXiv 2401.17644); `Windows` strings such windows
together, `Seasonal` lays days and weeks over any of them.
"""

import bisect
import math
from collections.abc import Iterator, Sequence
from itertools import accumulate

import msgspec
import numpy as np

from atoll.errors import InvalidConfig


class Poisson(msgspec.Struct, frozen=True, tag_field="kind", tag="poisson"):
    """Independent arrivals."""

    rate_per_s: float

    def __post_init__(self) -> None:
        check_positive(rate_per_s=self.rate_per_s)

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        return Gamma(self.rate_per_s, cv=1).times(rng)


class Gamma(msgspec.Struct, frozen=True, tag_field="kind", tag="gamma"):
    """Independent gaps with the coefficient of variation `cv`: 1 is Poisson, more is burstier, less is more even.

    BurstGPT's shape alpha is 1 / cv**2, its scale theta cv**2 / rate.
    """

    rate_per_s: float
    cv: float

    def __post_init__(self) -> None:
        check_positive(rate_per_s=self.rate_per_s)
        _check_cvs((self.cv,))

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        shape = 1 / (self.cv * self.cv)
        at_s = 0.0
        while True:
            at_s += rng.gamma(shape) / shape / self.rate_per_s
            yield at_s


class Mmpp(msgspec.Struct, frozen=True, tag_field="kind", tag="mmpp"):
    """Poisson whose rate jumps between two values, staying at each for an exponential time of that mean (Fischer and
    Meier-Hellstern, 1993)."""

    rates_per_s: tuple[float, float]
    stays_s: tuple[float, float]

    def __post_init__(self) -> None:
        check_positive(rate_per_s=sum(self.rates_per_s), stay_s=min(self.stays_s))
        if min(self.rates_per_s) < 0:
            raise InvalidConfig(f"rates_per_s={self.rates_per_s} must be at least 0")
        if self.mean_rate_per_s * sum(self.stays_s) < 1e-6:
            raise InvalidConfig(f"{self} jumps more than a million times between two arrivals; make its stays longer")

    @property
    def mean_rate_per_s(self) -> float:
        """In the long run."""
        return sum(r * s for r, s in zip(self.rates_per_s, self.stays_s, strict=True)) / sum(self.stays_s)

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        state = int(rng.random() * sum(self.stays_s) >= self.stays_s[0])
        at_s, until_s = 0.0, rng.exponential(self.stays_s[state])
        while True:
            rate = self.rates_per_s[state]
            at_s += rng.standard_exponential() / rate if rate else math.inf
            if at_s < until_s:
                yield at_s
            else:  # no memory: draw afresh from the moment of the jump
                state, at_s = 1 - state, until_s
                until_s += rng.exponential(self.stays_s[state])


class Diurnal(msgspec.Struct, frozen=True, tag_field="kind", tag="diurnal"):
    """Poisson whose rate follows a cosine: mean * (1 + swing * cos(2 pi (t - peak) / period)), by thinning (Lewis and
    Shedler, 1979)."""

    mean_rate_per_s: float
    swing: float
    peak_s: float = 14 * 3600.0
    period_s: float = 24 * 3600.0

    def __post_init__(self) -> None:
        check_positive(mean_rate_per_s=self.mean_rate_per_s, period_s=self.period_s)
        if not 0 <= self.swing <= 1:
            raise InvalidConfig(f"swing={self.swing} must be in [0, 1], so that no rate is negative")

    def rate_per_s(self, at_s: float) -> float:
        """The rate at that moment."""
        turn = 2 * math.pi * (at_s - self.peak_s) / self.period_s
        return self.mean_rate_per_s * (1 + self.swing * math.cos(turn))

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        highest = self.mean_rate_per_s * (1 + self.swing)
        for at_s in Poisson(highest).times(rng):
            if rng.random() * highest < self.rate_per_s(at_s):
                yield at_s


class Windows(msgspec.Struct, frozen=True, tag_field="kind", tag="windows"):
    """Gamma renewal whose rate and cv change from window to window; after the last comes the first again.

    A gap that outlasts its window goes on in the next at that one's rate, so windows keep the counts they should have,
    and an empty one (rate 0) only delays.
    """

    window_s: float
    rates_per_s: tuple[float, ...]
    cvs: tuple[float, ...]

    def __post_init__(self) -> None:
        check_positive(window_s=self.window_s, windows=len(self.cvs))
        _check_cvs(self.cvs)
        if len(self.cvs) != len(self.rates_per_s):
            raise InvalidConfig(f"{len(self.rates_per_s)} windows have rates and {len(self.cvs)} have cvs; give both")
        check_positive(mean_rate_per_s=self.mean_rate_per_s)
        if min(self.rates_per_s) < 0:
            raise InvalidConfig(f"the rate {min(self.rates_per_s)} of a window must be at least 0")

    @property
    def mean_rate_per_s(self) -> float:
        """Over all windows."""
        return sum(self.rates_per_s) / len(self.rates_per_s)

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        clock = _Rates(self.window_s, self.rates_per_s)
        due = 0.0  # in expected arrivals
        while True:
            shape = 1 / self.cvs[clock.step(due)] ** 2
            due += rng.gamma(shape) / shape
            yield clock.at_s(due)


class Seasonal(msgspec.Struct, frozen=True, tag_field="kind", tag="seasonal"):
    """A process sped up and slowed down: `weights` are the rates of successive steps against one another, again and
    again, `begins_s` into the first. 168 steps of an hour are a week."""

    base: Poisson | Gamma | Windows
    weights: tuple[float, ...]
    step_s: float = 3600.0
    begins_s: float = 0.0

    def __post_init__(self) -> None:
        check_positive(step_s=self.step_s, mean_weight=sum(self.weights))
        if min(self.weights) < 0 or not 0 <= self.begins_s < math.inf:
            raise InvalidConfig("the weights of the seasons, and when they begin, must be at least 0")

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        mean = sum(self.weights) / len(self.weights)
        clock = _Rates(self.step_s, tuple(weight / mean for weight in self.weights))
        skipped = clock.due(self.begins_s)
        for at_s in self.base.times(rng):
            yield max(0.0, clock.at_s(skipped + at_s) - self.begins_s)


MIN_CV, MAX_CV = 1e-3, 1e2  # beyond, floats no longer draw what was meant

AnyProcess = Poisson | Gamma | Mmpp | Diurnal | Windows | Seasonal


def scaled(process: AnyProcess, factor: float) -> AnyProcess:
    """The same with `factor` times as many arrivals: bursts, days and windows keep their length, gaps shrink."""
    check_positive(factor=factor)
    match process:
        case Poisson() | Gamma():
            return msgspec.structs.replace(process, rate_per_s=process.rate_per_s * factor)
        case Mmpp(rates_per_s=(low, high)):
            return msgspec.structs.replace(process, rates_per_s=(low * factor, high * factor))
        case Diurnal():
            return msgspec.structs.replace(process, mean_rate_per_s=process.mean_rate_per_s * factor)
        case Windows():
            return msgspec.structs.replace(process, rates_per_s=tuple(rate * factor for rate in process.rates_per_s))
        case Seasonal():
            return msgspec.structs.replace(process, base=scaled(process.base, factor))


class _Rates:
    """Turns expected arrivals into seconds and back, where the rate is constant in each of some steps, for ever."""

    def __init__(self, step_s: float, rates: tuple[float, ...]) -> None:
        self._step_s, self._rates = step_s, rates
        self._ends = list(accumulate(rate * step_s for rate in rates))
        self._last_busy = max(i for i, rate in enumerate(rates) if rate)

    def step(self, due: float) -> int:
        """In which step so many are due; never in one without any."""
        return self._place(due)[1]

    def at_s(self, due: float) -> float:
        """When so many are due."""
        round_, step, left = self._place(due)
        return (round_ * len(self._rates) + step) * self._step_s + left / self._rates[step]

    def due(self, at_s: float) -> float:
        """How many are due until then."""
        steps, rest = divmod(at_s, self._step_s)
        rounds, step = divmod(int(steps), len(self._rates))
        before = self._ends[step - 1] if step else 0.0
        return rounds * self._ends[-1] + before + rest * self._rates[step]

    def _place(self, due: float) -> tuple[int, int, float]:
        rounds, rest = divmod(due, self._ends[-1])
        step = min(bisect.bisect_right(self._ends, rest), self._last_busy)
        return int(rounds), step, rest - (self._ends[step - 1] if step else 0.0)


def _check_cvs(cvs: Sequence[float]) -> None:
    for cv in cvs:
        if not MIN_CV <= cv <= MAX_CV:
            raise InvalidConfig(f"cv={cv} must be in {MIN_CV}..{MAX_CV:g}")


def check_positive(**settings: float) -> None:
    """Raises `InvalidConfig` naming the first that is not finite and above 0."""
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise InvalidConfig(f"{name}={value} must be finite and above 0")
