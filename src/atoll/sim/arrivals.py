"""Policy: who asks when and how much, as seeded streams of arrivals for the virtual world.

A policy is given an `Arrival`, which does not know how long its answer will be; the world that plays the model is given
the `Demand`. A policy that asks for an `oracle` says so in its signature. Times, prompts and answers draw from streams
of their own, so changing one leaves the others as they were.
"""

import csv
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from atoll.errors import InvalidConfig, InvalidData
from atoll.rng import stream

COLUMNS = ("timestamp_s", "prompt_tokens", "output_tokens", "session", "hash_ids")


@dataclass(frozen=True, slots=True)
class Arrival:
    """What anybody may know of a request when it comes. `hash_ids` name the blocks of its prompt: equal ids at the
    start of two prompts are a shared prefix."""

    number: int
    at_s: float
    prompt_tokens: int
    session: str
    hash_ids: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Demand:
    """A request with its ground truth: the tokens its answer will have. For worlds, not for policies."""

    arrival: Arrival
    output_tokens: int


def oracle(demands: Iterable[Demand]) -> Callable[[Arrival], int]:
    """The output tokens of each arrival, for a policy that is meant to know the future."""
    known = {demand.arrival: demand.output_tokens for demand in demands}
    return known.__getitem__


class Process(Protocol):
    """A point process of arrival times in seconds, from 0 on, without end."""

    def times(self, rng: np.random.Generator) -> Iterator[float]: ...


@dataclass(frozen=True, slots=True)
class Poisson:
    """Independent arrivals."""

    rate_per_s: float

    def __post_init__(self) -> None:
        _check_positive(rate_per_s=self.rate_per_s)

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        return Gamma(self.rate_per_s, cv=1).times(rng)


@dataclass(frozen=True, slots=True)
class Gamma:
    """Independent gaps with the coefficient of variation `cv`: 1 is Poisson, more is burstier, less is more even."""

    rate_per_s: float
    cv: float

    def __post_init__(self) -> None:
        _check_positive(rate_per_s=self.rate_per_s, cv=self.cv)

    def times(self, rng: np.random.Generator) -> Iterator[float]:
        shape = 1 / (self.cv * self.cv)
        at_s = 0.0
        while True:
            at_s += rng.gamma(shape) / shape / self.rate_per_s
            yield at_s


@dataclass(frozen=True, slots=True)
class Mmpp:
    """Poisson whose rate jumps between two values, staying at each for an exponential time of that mean (Fischer and
    Meier-Hellstern, 1993)."""

    rates_per_s: tuple[float, float]
    stays_s: tuple[float, float]

    def __post_init__(self) -> None:
        _check_positive(rate_per_s=sum(self.rates_per_s), stay_s=min(self.stays_s))
        if min(self.rates_per_s) < 0:
            raise InvalidConfig(f"rates_per_s={self.rates_per_s} must be at least 0")

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


@dataclass(frozen=True, slots=True)
class Diurnal:
    """Poisson whose rate follows a cosine: mean * (1 + swing * cos(2 pi (t - peak) / period)), by thinning (Lewis and
    Shedler, 1979)."""

    mean_rate_per_s: float
    swing: float
    peak_s: float = 14 * 3600.0
    period_s: float = 24 * 3600.0

    def __post_init__(self) -> None:
        _check_positive(mean_rate_per_s=self.mean_rate_per_s, period_s=self.period_s)
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


class Lengths(Protocol):
    """A distribution of tokens."""

    def draw(self, rng: np.random.Generator) -> int: ...


@dataclass(frozen=True, slots=True)
class LogNormal:
    """Rounded, and drawn again where outside `low..high`; `sigma` is that of the logarithm."""

    median: float
    sigma: float
    low: int = 1
    high: int = 1 << 20

    def __post_init__(self) -> None:
        _check_positive(median=self.median, low=self.low)
        if not (self.low <= self.median <= self.high and 0 <= self.sigma < math.inf):
            raise InvalidConfig(f"{self} needs low <= median <= high and sigma >= 0")

    def draw(self, rng: np.random.Generator) -> int:
        while True:
            tokens = round(self.median * rng.lognormal(0, self.sigma))
            if self.low <= tokens <= self.high:
                return tokens


@dataclass(frozen=True, slots=True)
class Empirical:
    """One of the measured values, each as likely."""

    values: Sequence[int]

    def __post_init__(self) -> None:
        _check_positive(values=min(self.values, default=0))

    def draw(self, rng: np.random.Generator) -> int:
        return self.values[int(rng.integers(len(self.values)))]


def open_loop(process: Process, prompt: Lengths, output: Lengths, seed: int, name: str = "") -> Iterator[Demand]:
    """Arrivals that come whatever becomes of those before, each a session of its own, without end."""
    times, prompts, outputs = (stream(seed, "arrivals", name, what) for what in ("times", "prompts", "outputs"))
    for number, at_s in enumerate(process.times(times)):
        arrival = Arrival(number, at_s, prompt.draw(prompts), session=f"{name}{number}")
        yield Demand(arrival, output.draw(outputs))


class ClosedLoop:
    """So many users, each of whom asks, reads the answer, thinks for an exponential time and asks again.

    A user's draws are a stream of their own: who is answered first changes when the others ask, never what.
    """

    def __init__(self, users: int, think_s: float, prompt: Lengths, output: Lengths, seed: int, name: str = "") -> None:
        _check_positive(users=users, think_s=think_s)
        self.think_s, self.prompt, self.output = think_s, prompt, output
        self._rngs = {f"{name}{user}": stream(seed, "arrivals", name, user) for user in range(users)}
        self._asked = 0

    def start(self) -> list[Demand]:
        """The first request of each user, in order of time: all think first."""
        first = [self._ask(session, 0.0) for session in self._rngs]
        return sorted(first, key=lambda demand: demand.arrival.at_s)

    def handle(self, answered: Arrival, now_s: float) -> Demand:
        """The next request of the user whose `answered` was finished at `now_s`."""
        return self._ask(answered.session, now_s)

    def _ask(self, session: str, now_s: float) -> Demand:
        rng = self._rngs[session]
        at_s = now_s + self.think_s * rng.standard_exponential()
        arrival = Arrival(self._asked, at_s, self.prompt.draw(rng), session)
        self._asked += 1
        return Demand(arrival, self.output.draw(rng))


def read_trace(lines: Iterable[str]) -> Iterator[Demand]:
    """A CSV with the header `timestamp_s,prompt_tokens,output_tokens[,session[,hash_ids]]`, in order of time; hash ids
    are separated by spaces. Raises `InvalidData` naming the line that is wrong."""
    rows = csv.reader(lines)
    header = next(rows, [])
    if tuple(header) not in {COLUMNS[:n] for n in (3, 4, 5)}:
        raise InvalidData(f"the trace begins with {header}; it must be {', '.join(COLUMNS)}, the last two may miss")
    number, before_s = 0, 0.0
    for row in filter(None, rows):
        try:
            demand = _parsed(number, row, len(header))
        except ValueError as error:
            raise InvalidData(f"line {rows.line_num} of the trace, {row}: {error}") from error
        if not before_s <= demand.arrival.at_s < math.inf:
            raise InvalidData(f"line {rows.line_num} of the trace, {row}, is earlier than the one before; sort them")
        yield demand
        number, before_s = number + 1, demand.arrival.at_s


def write_trace(demands: Iterable[Demand]) -> Iterator[str]:
    """The inverse of `read_trace`: lines, without their ends."""
    yield ",".join(COLUMNS)
    for demand in demands:
        a = demand.arrival
        session = '"' + a.session.replace('"', '""') + '"'
        yield f"{a.at_s!r},{a.prompt_tokens},{demand.output_tokens},{session},{' '.join(map(str, a.hash_ids))}"


def _parsed(number: int, cells: Sequence[str], columns: int) -> Demand:
    if len(cells) != columns:
        raise ValueError(f"it has {len(cells)} columns, not {columns}")
    at_s, prompt, output = float(cells[0]), int(cells[1]), int(cells[2])
    if prompt < 1 or output < 1:
        raise ValueError("tokens must be at least 1")
    session = cells[3] if columns > 3 else str(number)
    hash_ids = tuple(int(block) for block in cells[4].split()) if columns > 4 else ()
    return Demand(Arrival(number, at_s, prompt, session, hash_ids), output)


def _check_positive(**settings: float) -> None:
    for name, value in settings.items():
        if not 0 < value < math.inf:
            raise InvalidConfig(f"{name}={value} must be finite and above 0")
