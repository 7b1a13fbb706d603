"""Driver: a trace, and a model of it, as pictures."""

from collections.abc import Mapping
from pathlib import Path
from typing import Final

import numpy as np

from atoll import plot
from atoll.workload.fit.columns import Column

SHARES: Final = 200
"""Points of a distribution."""


def rates(path: Path, at_s: Mapping[str, Column], title: str) -> None:
    """How many arrive a second, over time. Raises as `plot.lines` does."""
    span_s = max(float(times[-1]) for times in at_s.values())
    unit_s, unit = (
        (86400.0, "days") if span_s > 3 * 86400 else (3600.0, "hours") if span_s > 3 * 3600 else (60.0, "minutes")
    )
    step_s = max(span_s / 180, 1e-9)
    series = {name: _counted(times, step_s, unit_s) for name, times in at_s.items()}
    plot.lines(path, series, title=title, xlabel=f"time, {unit}", ylabel=f"requests/s, means of {step_s:.3g} s")


def lengths(path: Path, tokens: Mapping[str, Column], title: str) -> None:
    """The share of lengths up to each, but for the longest hundredth. Raises as `plot.lines` does."""
    shares = np.linspace(0, 0.99, SHARES)
    series = {name: (np.quantile(values, shares).tolist(), shares.tolist()) for name, values in tokens.items()}
    plot.lines(path, series, title=title, xlabel="tokens", ylabel="share of requests")


def _counted(at_s: Column, step_s: float, unit_s: float) -> tuple[list[float], list[float]]:
    counts = np.bincount((at_s // step_s).astype(int))
    return ((np.arange(len(counts)) + 0.5) * step_s / unit_s).tolist(), (counts / step_s).tolist()
