"""Policy: how many seconds an operation takes, as a non-negative linear model fitted to measurements.

For planners and for virtual time. alpha + beta * bytes is `("1", "bytes")` (Hockney, 1994); relative errors count, so
small and large operations weigh alike.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from atoll.errors import InvalidConfig, InvalidData

UNITS = {"1": "s", "flops": "s/flop", "bytes": "s/byte", "tokens": "s/token"}
QUANTITIES = ("flops", "bytes", "tokens")


@dataclass(frozen=True, slots=True)
class Op:
    """Work of one kind ("matmul", "send", "decode"). Raises `InvalidData` where an amount is negative or not finite."""

    kind: str
    flops: float = 0
    bytes: float = 0
    tokens: float = 0

    def __post_init__(self) -> None:
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


@dataclass(frozen=True, slots=True)
class Residuals:
    """|predicted - measured| / measured on the samples of the fit."""

    median: float
    worst: float


@dataclass(frozen=True)
class CostModel:
    """seconds = sum of coefficient * feature, over features among "1", "flops", "bytes" and "tokens"."""

    kind: str
    coefficients: dict[str, float]
    units: dict[str, str]
    fingerprint: str  # of the machine that measured
    fitted_range: dict[str, tuple[float, float]]
    residuals: Residuals

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
        cls, kind: str, features: Sequence[str], samples: Sequence[Sample], *, fingerprint: str = ""
    ) -> "CostModel":
        """The coefficients >= 0 with the least sum of squared relative errors.

        Raises `InvalidConfig` for a feature there is not; `InvalidData` where a sample is of another kind or the
        samples are too few or too alike to tell the features apart.
        """
        _check_features(features)
        for sample in samples:
            _check_kind(kind, sample.op)
        amounts = np.array([[_amount(sample.op, f) for f in features] for sample in samples], float)
        seconds = np.array([sample.seconds for sample in samples], float)
        relative = amounts.reshape(len(samples), len(features)) / seconds[:, None]
        coefficients = _non_negative_least_squares(kind, features, relative)
        errors = np.abs(relative @ coefficients - 1)
        return cls(
            kind=kind,
            coefficients={f: float(c) for f, c in zip(features, coefficients, strict=True)},
            units={f: UNITS[f] for f in features},
            fingerprint=fingerprint,
            fitted_range={
                f: (float(column.min()), float(column.max()))
                for f, column in zip(features, amounts.T, strict=True)
                if f != "1"
            },
            residuals=Residuals(median=float(np.median(errors)), worst=float(errors.max())),
        )

    def seconds(self, op: Op) -> float:
        """What `op` should take. Raises `InvalidData` where it is of another kind."""
        _check_kind(self.kind, op)
        return sum(c * _amount(op, f) for f, c in self.coefficients.items())

    def within_range(self, op: Op) -> bool:
        """Was every feature of `op` measured at no less and no more? Else `seconds` is an extrapolation."""
        return all(low <= _amount(op, f) <= high for f, (low, high) in self.fitted_range.items())

    def to_json(self) -> str:
        return msgspec.json.format(msgspec.json.encode(self), indent=2).decode()

    @classmethod
    def from_json(cls, text: str | bytes) -> "CostModel":
        """The inverse of `to_json`. Raises `InvalidData` where `text` is no cost model."""
        try:
            return msgspec.json.decode(text, type=cls)
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise InvalidData(f"not a cost model: {error}") from error


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


def _check_kind(kind: str, op: Op) -> None:
    if op.kind != kind:
        raise InvalidData(f"op {op.kind!r} is not what the cost model of {kind!r} is about; use the model of its kind")


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
