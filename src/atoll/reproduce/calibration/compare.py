"""Driver: two records side by side, a real one and a simulated one: each metric's mean and percentiles, never the mean
alone, which hides errors that go both ways.

Percentiles are those of `numpy.percentile` (linear between ranks). A count is compared by its total.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Final

import numpy as np

from atoll.errors import InvalidData
from atoll.record import read_jsonl

PERCENTILES: Final = (50, 90, 99)


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure of both; `error` is relative to the real one, with its sign. None: that is 0, and the other isn't."""

    real: float
    sim: float
    error: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One metric."""

    metric: str
    real_count: int
    sim_count: int
    figures: dict[str, Pair]


@dataclass(slots=True)
class Values:
    """What a record holds."""

    observed: dict[str, list[float]] = field(default_factory=dict)
    counted: dict[str, list[float]] = field(default_factory=dict)


def read_values(path: Path) -> Values:
    """Of a record file. InvalidData, which names the line: it is none."""
    values = Values()
    for number, entry in enumerate(read_jsonl(path), start=1):
        kind = entry.get("type")
        if kind not in ("observe", "count"):
            continue
        into, key = (values.observed, "value") if kind == "observe" else (values.counted, "n")
        name, value = entry.get("name"), entry.get(key)
        if value is None and isinstance(name, str) and key in entry:
            continue  # NaN or infinity, as JSON has it
        if not isinstance(name, str) or not isinstance(value, int | float) or not isfinite(value):
            raise InvalidData(f"{path}, line {number}: a {kind!r} needs a name and a number {key!r}; it has {entry}")
        into.setdefault(name, []).append(float(value))
    return values


def compare(real: Values, sim: Values) -> tuple[list[Comparison], list[str], list[str]]:
    """(what both have, only the real one, only the simulated one), by name."""
    rows = [
        Comparison(
            name, len(real.observed[name]), len(sim.observed[name]), _spread(real.observed[name], sim.observed[name])
        )
        for name in _in_both(real.observed, sim.observed)
    ]
    rows += [
        Comparison(
            name,
            len(real.counted[name]),
            len(sim.counted[name]),
            {"total": _pair(sum(real.counted[name]), sum(sim.counted[name]))},
        )
        for name in _in_both(real.counted, sim.counted)
    ]
    ours, theirs = ({*values.observed, *values.counted} for values in (real, sim))
    paired = {row.metric for row in rows}
    return rows, sorted(ours - paired), sorted(theirs - paired)


def _in_both(a: Mapping[str, object], b: Mapping[str, object]) -> list[str]:
    return [name for name in a if name in b]


def _spread(real: list[float], sim: list[float]) -> dict[str, Pair]:
    figures = {"mean": _pair(float(np.mean(real)), float(np.mean(sim)))}
    for percent in PERCENTILES:
        figures[f"P{percent}"] = _pair(float(np.percentile(real, percent)), float(np.percentile(sim, percent)))
    return figures


def _pair(real: float, sim: float) -> Pair:
    error = 0.0 if sim == real else None if not real else (sim - real) / abs(real)
    return Pair(real, sim, error)
