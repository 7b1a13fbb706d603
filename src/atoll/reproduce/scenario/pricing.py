"""Driver: what a scenario's operations cost, and how sure that is: calibrated, with the error, or plainly not."""

from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import msgspec
import numpy as np

from atoll.cost import UNITS, CostCurve, CostModel, Fitted, Op, from_json
from atoll.errors import InvalidConfig, InvalidData
from atoll.reproduce.scenario.settings import CostSettings
from atoll.rng import stream

UNCALIBRATED: Final = "uncalibrated"


class _File(msgspec.Struct):
    """Of a calibration, what is about operations."""

    models: dict[str, CostModel] = {}
    curves: dict[str, CostCurve] = {}


@dataclass
class Prices:
    """Tells the seconds of an operation on a host."""

    fitted: Mapping[str, Fitted]
    given: Mapping[str, Mapping[str, float]]
    spread: float
    seed: int

    def __post_init__(self) -> None:
        self.used: set[str] = set()
        self.warnings: dict[str, None] = {}
        self._luck: defaultdict[str, Callable[[], float]] = defaultdict(lambda: lambda: 0.0)

    def seconds(self, op: Op, host: str) -> float:
        """InvalidConfig: nothing says what `op` costs."""
        self.used.add(op.kind)
        factor = 1.0
        if self.spread:
            if host not in self._luck:
                self._luck[host] = partial(stream(self.seed, "spread", host).normal, 0.0, self.spread)
            factor = float(np.exp(self._luck[host]()))
        if op.kind in self.fitted:
            estimate = self.fitted[op.kind].estimate(op)
            if estimate.warning:
                self.warnings[estimate.warning] = None
            return factor * estimate.seconds
        self.check(op.kind)
        return factor * sum(p * (1.0 if f == "1" else getattr(op, f)) for f, p in self.given[op.kind].items())

    def check(self, kind: str) -> None:
        """InvalidConfig: nothing says what it costs."""
        if kind not in self.fitted and kind not in self.given:
            raise InvalidConfig(
                f"cost: says nothing of {kind!r}; give [cost.seconds.{kind}] flops = ..., or a calibration of it"
            )

    def calibration(self) -> str:
        """How far the prices are off, in words."""
        said = []
        for kind in sorted(self.used & self.fitted.keys()):
            r = self.fitted[kind].residuals
            where = "held out" if r.held_out else "of the fit itself"
            said.append(f"{kind}: median error {r.median:.1%}, worst {r.worst:.1%} on {r.points} points {where}")
        said += [f"{kind}: {UNCALIBRATED}" for kind in sorted(self.used - self.fitted.keys())]
        return "; ".join(said) if self.used & self.fitted.keys() else UNCALIBRATED


def prices(settings: CostSettings, seed: int) -> Prices:
    """InvalidConfig, InvalidData: a price is none, the calibration can't be read."""
    for kind, given in settings.seconds.items():
        for feature, price in given.items():
            if feature not in UNITS:
                raise InvalidConfig(f"cost.seconds.{kind}: has no {feature!r}; there are: {', '.join(UNITS)}")
            if not 0 <= price < float("inf"):
                raise InvalidConfig(f"cost.seconds.{kind}.{feature} = {price} must be at least 0 and finite")
    fitted = _read(settings.calibration) if settings.calibration else {}
    return Prices(fitted, settings.seconds, settings.spread, seed)


def _read(path: Path) -> dict[str, Fitted]:
    try:
        text = path.read_bytes()
        keys = msgspec.json.decode(text, type=dict[str, msgspec.Raw])
        if "models" in keys or "curves" in keys:
            file = msgspec.json.decode(text, type=_File)
            return {**file.models, **file.curves}
        model = from_json(text)
    except OSError as error:
        raise InvalidData(f"cost.calibration: {path} can't be read: {error.strerror}; name another file") from error
    except (msgspec.DecodeError, UnicodeDecodeError, InvalidConfig, InvalidData) as error:
        raise InvalidData(f"cost.calibration: {path}: {error}; make one with `atoll sim calibrate`") from error
    return {model.kind: model}
