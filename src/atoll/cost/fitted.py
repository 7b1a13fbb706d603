"""Policy: how many seconds an operation takes, by models fitted to measurements: a sum of prices, or a curve.

For planners and for virtual time. `CostModel` over `("1", "bytes")` is alpha + beta * bytes (Hockney, 1994); with
`"flops"` a reduction's gamma. `CostCurve` is for what is curved. Relative errors count, so small and large operations
weigh alike; `hold_out` sets points aside that judge a fit without having made it.
"""

import math
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass
from itertools import combinations, pairwise
from operator import itemgetter
from typing import Any, Protocol, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from atoll.errors import InvalidConfig, InvalidData

QUANTITIES = {"flops": "flop", "bytes": "byte", "tokens": "token"}
QUANTITIES |= {"prefill_tokens": "token", "prefill_pairs": "pair", "batch": "sequence", "context_tokens": "token"}
"""What an operation may have amounts of, and the units."""
UNITS = {"1": "s"} | {name: f"s/{unit}" for name, unit in QUANTITIES.items()}
"""Of the prices."""


@dataclass(frozen=True, slots=True)
class Op:
    """Work of one kind ("matmul", "send"). Raises `InvalidData` where an amount is negative or not finite.

    Of a step of a serving engine: `prefill_tokens` of prompts, and the `prefill_pairs` of one of them and one that it
    attends to; a `batch` of answers, one token each, which attend to `context_tokens` in all.
    """

    kind: str
    flops: float = 0
    bytes: float = 0
    tokens: float = 0
    prefill_tokens: float = 0
    prefill_pairs: float = 0
    batch: float = 0
    context_tokens: float = 0

    def __post_init__(self) -> None:
        serving = self.prefill_tokens, self.prefill_pairs, self.batch, self.context_tokens
        amounts = (self.flops, self.bytes, self.tokens, *serving)
        if min(amounts) >= 0 and sum(amounts) < math.inf:  # NaN makes the sum NaN
            return
        for name in QUANTITIES:
            amount = getattr(self, name)
            if not 0 <= amount < math.inf:
                raise InvalidData(f"{name}={amount} of op {self.kind!r} must be finite and at least 0")


@dataclass(frozen=True, slots=True)
class Sample:
    """A measurement. Raises `InvalidData` unless `seconds` are finite and above 0."""

    op: Op
    seconds: float

    def __post_init__(self) -> None:
        if not 0 < self.seconds < math.inf:
            raise InvalidData(f"seconds={self.seconds} of op {self.op.kind!r} must be finite and above 0")


def hold_out(samples: Sequence[Sample], every: int = 4) -> tuple[list[Sample], list[Sample]]:
    """(to fit, to judge): every so many-th different op with all its repetitions, whatever the order of the samples.

    The smallest and the largest of each amount stay to be fitted, so that no model is judged on an extrapolation.
    Raises `InvalidConfig` for `every` < 2, `InvalidData` where nothing lies between the ends.
    """
    if every < 2:
        raise InvalidConfig(f"every={every} must be at least 2, or nothing is left to fit")
    ops = sorted({sample.op for sample in samples}, key=astuple)
    ends = {end(ops, key=lambda op: _amount(op, q)) for q in QUANTITIES for end in (min, max) if ops}
    between = [op for op in ops if op not in ends]
    if not between:
        raise InvalidData(f"{len(ops)} different ops leave none to hold out; measure sizes between the ends")
    judges = set(between[every // 2 :: every] or between[:1])
    return [s for s in samples if s.op not in judges], [s for s in samples if s.op in judges]


@dataclass(frozen=True, slots=True)
class Residuals:
    """|predicted - measured| / measured over so many `points`: held out ones, or (too rosy) those of the fit."""

    median: float
    p90: float
    p99: float
    worst: float
    log_mean: float  # of measured / predicted, as is its standard deviation
    log_sigma: float
    points: int
    held_out: bool


@dataclass(frozen=True, slots=True)
class Estimate:
    """What an operation should take, and what is doubtful about it, if anything is."""

    seconds: float
    warning: str | None


@dataclass(frozen=True, kw_only=True)
class Fitted(ABC):
    """What every model tells: what it is about, where, when and from what it was fitted, and how far it is off."""

    kind: str
    units: dict[str, str]
    fingerprint: str  # of the machine that measured
    fitted_on: str  # a date
    fitted_range: dict[str, tuple[float, float]]
    residuals: Residuals

    @abstractmethod
    def seconds(self, op: Op) -> float:
        """What `op` should take. Raises `InvalidData` where it is of another kind."""

    def within_range(self, op: Op) -> bool:
        """Was every feature of `op` measured at no less and no more? Else `seconds` is an extrapolation."""
        return not self._outside(op)

    def estimate(self, op: Op) -> Estimate:
        """`seconds`, with a warning where they are an extrapolation."""
        outside = ", ".join(self._outside(op))
        warning = f"the cost of {self.kind!r} is extrapolated: {outside}; measure there" if outside else None
        return Estimate(self.seconds(op), warning)

    def draw(self, op: Op, rng: np.random.Generator) -> float:
        """`seconds` with log-normal noise, spread about them as the measurements were."""
        return self.seconds(op) * rng.lognormal(self.residuals.log_mean, self.residuals.log_sigma)

    def to_json(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> Self:
        """The inverse of `to_json`. Raises `InvalidData` where `text` is no such model."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidData(f"not a cost model: {error}") from error

    def _outside(self, op: Op) -> list[str]:
        ranges = ((f, _amount(op, f), low, high) for f, (low, high) in self.fitted_range.items())
        return [f"{f}={x:g} is outside {low:g}..{high:g}" for f, x, low, high in ranges if not low <= x <= high]


@dataclass(frozen=True, kw_only=True)
class CostModel(Fitted):
    """seconds = sum of coefficient * feature, over features among "1" and the quantities of an `Op`."""

    coefficients: dict[str, float]

    def __post_init__(self) -> None:
        _check_features(tuple(self.coefficients))
        for feature, coefficient in self.coefficients.items():
            if not 0 <= coefficient < math.inf:
                raise InvalidData(f"coefficient {feature}={coefficient} of {self.kind!r} must be finite and at least 0")
        if self.units != {feature: UNITS[feature] for feature in self.coefficients}:
            raise InvalidData(f"units {self.units} of {self.kind!r} must be those of {UNITS}")
        if set(self.fitted_range) != set(self.coefficients) - {"1"}:
            raise InvalidData(f"fitted_range of {self.kind!r} must name the same features as the coefficients")

    @classmethod
    def fit(
        cls,
        kind: str,
        features: Sequence[str],
        samples: Sequence[Sample],
        *,
        held_out: Sequence[Sample] = (),
        fingerprint: str = "",
        fitted_on: str = "",
    ) -> "CostModel":
        """The coefficients >= 0 with the least sum of squared relative errors over `samples`.

        The residuals are those on `held_out`, where given. Raises `InvalidConfig` for a feature there is not,
        `InvalidData` where a sample is of another kind or the samples are too alike to tell the features apart.
        """
        _check_features(features)
        for sample in (*samples, *held_out):
            _check_kind(kind, sample.op)
        relative = _relative(features, samples)
        coefficients = _non_negative_least_squares(kind, features, relative)
        amounts = {f: [_amount(sample.op, f) for sample in samples] for f in features if f != "1"}
        judges = _relative(features, held_out or samples)
        return cls(
            kind=kind,
            coefficients={f: float(c) for f, c in zip(features, coefficients, strict=True)},
            units={f: UNITS[f] for f in features},
            fingerprint=fingerprint,
            fitted_on=fitted_on,
            fitted_range={f: (min(measured), max(measured)) for f, measured in amounts.items()},
            residuals=residuals_of(judges @ coefficients, bool(held_out)),
        )

    def seconds(self, op: Op) -> float:
        _check_kind(self.kind, op)
        seconds = 0.0
        for feature, coefficient in self.coefficients.items():
            seconds += coefficient * (1.0 if feature == "1" else getattr(op, feature))
        return seconds


@dataclass(frozen=True, kw_only=True)
class CostCurve(Fitted):
    """seconds as a rising curve of one amount: straight between its points where both axes are logarithmic.

    Below the first point it is flat; beyond the last it goes on as over the last octave, as the square at most.
    """

    feature: str
    points: tuple[tuple[float, float], ...]  # (amount, seconds)

    def __post_init__(self) -> None:
        _check_curved(self.feature)
        if self.units != {self.feature: QUANTITIES[self.feature], "seconds": "s"}:
            raise InvalidData(f"units {self.units} of {self.kind!r} must be those of {QUANTITIES}, seconds in s")
        if len(self.points) < 2 or not all(0 < x < math.inf and 0 < y < math.inf for x, y in self.points):
            raise InvalidData(f"the curve of {self.kind!r} needs 2 or more points, finite and above 0")
        if not all(a[0] < b[0] and a[1] <= b[1] for a, b in pairwise(self.points)):
            raise InvalidData(f"the points of {self.kind!r} must rise")
        if self.fitted_range != {self.feature: (self.points[0][0], self.points[-1][0])}:
            raise InvalidData(f"fitted_range of {self.kind!r} must be from its first point to its last")

    @classmethod
    def fit(
        cls,
        kind: str,
        feature: str,
        samples: Sequence[Sample],
        *,
        held_out: Sequence[Sample] = (),
        fingerprint: str = "",
        fitted_on: str = "",
    ) -> "CostCurve":
        """The rising curve with the least sum of squared log errors, with a point at each amount that was measured.

        For the rest as `CostModel.fit`. Raises `InvalidData` also where a sample has none of `feature`.
        """
        _check_curved(feature)
        for sample in (*samples, *held_out):
            _check_kind(kind, sample.op)
        logs: dict[float, list[float]] = {}
        for sample in samples:
            logs.setdefault(_amount(sample.op, feature), []).append(math.log(sample.seconds))
        amounts = sorted(logs)
        if len(amounts) < 2 or amounts[0] == 0:
            raise InvalidData(f"the curve of {kind!r} needs samples of 2 or more amounts of {feature}, all above 0")
        levels = _rising([(sum(logs[x]) / len(logs[x]), len(logs[x])) for x in amounts])
        points = tuple((x, math.exp(level)) for x, level in zip(amounts, levels, strict=True))
        ratios = [_on_curve(points, _amount(s.op, feature)) / s.seconds for s in held_out or samples]
        return cls(
            kind=kind,
            feature=feature,
            points=points,
            units={feature: QUANTITIES[feature], "seconds": "s"},
            fingerprint=fingerprint,
            fitted_on=fitted_on,
            fitted_range={feature: (amounts[0], amounts[-1])},
            residuals=residuals_of(np.array(ratios), bool(held_out)),
        )

    def seconds(self, op: Op) -> float:
        _check_kind(self.kind, op)
        return _on_curve(self.points, _amount(op, self.feature))


def from_json(text: str | bytes) -> CostModel | CostCurve:
    """The model, of either class, that `to_json` wrote. Raises `InvalidData` where `text` is none."""
    try:
        keys = msgspec.json.decode(text, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidData(f"not a cost model: {error}") from error
    return CostCurve.from_json(text) if "points" in keys else CostModel.from_json(text)


class Model(Protocol):
    """What tells the seconds of operations of one kind."""

    def seconds(self, op: Op) -> float: ...


Costs = Callable[[Op], float] | Mapping[str, Model]
"""What tells the seconds of all: a function, or a model for each kind."""


def free(op: Op) -> float:
    """Nothing takes any time."""
    return 0.0


def seconds_by(costs: Costs) -> Callable[[Op], float]:
    """As a function. It raises `InvalidConfig` for an operation of a kind there is no model of."""
    if not isinstance(costs, Mapping):
        return costs

    def seconds(op: Op) -> float:
        model = costs.get(op.kind)
        if model is None:
            known = ", ".join(map(repr, sorted(costs))) or "none"
            raise InvalidConfig(
                f"there is no cost model of {op.kind!r} (there are: {known}); fit one, or give its cost"
            )
        return model.seconds(op)

    return seconds


def _amount(op: Op, feature: str) -> float:
    return 1.0 if feature == "1" else float(getattr(op, feature))


def _check_features(features: Sequence[str]) -> None:
    unknown = set(features) - set(UNITS)
    if unknown or not features or len(set(features)) < len(features):
        raise InvalidConfig(f"features {tuple(features)} must be different ones among {', '.join(UNITS)}")


def _check_curved(feature: str) -> None:
    if feature not in QUANTITIES:
        raise InvalidConfig(f"feature {feature!r} of a curve must be one of {', '.join(QUANTITIES)}")


def _check_kind(kind: str, op: Op) -> None:
    if op.kind != kind:
        raise InvalidData(f"op {op.kind!r} is not what the cost model of {kind!r} is about; use the model of its kind")


def _relative(features: Sequence[str], samples: Sequence[Sample]) -> NDArray[Any]:
    """Each sample's features per second measured: times the prices, what is predicted in units of what was measured."""
    rows = [[_amount(sample.op, f) / sample.seconds for f in features] for sample in samples]
    return np.array(rows, float).reshape(len(samples), len(features))


def residuals_of(ratios: NDArray[Any], held_out: bool) -> Residuals:
    """From predicted / measured."""
    errors = np.abs(ratios - 1)
    logs = -np.log(ratios[ratios > 0])
    median, p90, p99, worst = (float(q) for q in np.percentile(errors, [50, 90, 99, 100]))
    mean, sigma = (float(logs.mean()), float(logs.std())) if logs.size else (0.0, 0.0)
    return Residuals(median, p90, p99, worst, mean, sigma, errors.size, held_out)


def _non_negative_least_squares(kind: str, features: Sequence[str], relative: NDArray[Any]) -> NDArray[Any]:
    """Least |relative @ x - 1| over x >= 0: the optimum is plain least squares on the features it does not set to 0."""
    n = len(features)
    scale = relative.max(axis=0, initial=0.0)
    scaled = relative / np.where(scale > 0, scale, 1.0)
    if np.linalg.matrix_rank(scaled) < n:
        raise InvalidData(
            f"{len(relative)} samples of {kind!r} can't tell {', '.join(features)} apart; measure more, different sizes"
        )
    best, least = np.zeros(n), math.inf
    for size in range(1, n + 1):
        for active in combinations(range(n), size):
            x = np.zeros(n)
            x[list(active)] = np.linalg.lstsq(scaled[:, active], np.ones(len(scaled)), rcond=None)[0]
            error = float(np.square(scaled @ x - 1).sum())
            if (x >= 0).all() and error < least:
                best, least = x / scale, error
    return best


def _rising(levels: Sequence[tuple[float, int]]) -> list[float]:
    """The rising sequence nearest to (value, weight)s: neighbours that fall become their mean (Ayer et al., 1955)."""
    pools: list[tuple[float, int, int]] = []  # mean, weight, how many
    for value, weight in levels:
        pools.append((value, weight, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (a, m, i), (b, n, j) = pools[-2:]
            pools[-2:] = [((a * m + b * n) / (m + n), m + n, i + j)]
    return [mean for mean, _, n in pools for _ in range(n)]


def _on_curve(points: Sequence[tuple[float, float]], amount: float) -> float:
    i = bisect_right(points, amount, key=itemgetter(0))
    if i == 0:
        return points[0][1]
    if i < len(points):
        (x0, y0), (x1, y1) = points[i - 1 : i + 1]
        return min(y1, y0 * math.pow(y1 / y0, _log_ratio(amount, x0) / _log_ratio(x1, x0)))
    x1, y1 = points[-1]
    x0, y0 = next((point for point in reversed(points) if 2 * point[0] <= x1), points[0])
    return y1 * math.pow(amount / x1, min(2.0, math.log(y1 / y0) / _log_ratio(x1, x0)))


def _log_ratio(b: float, a: float) -> float:
    return math.log1p((b - a) / a)  # above 0 for all b > a, where b / a may be rounded to 1
