"""Policy: the statistics the fits are made of, in NumPy alone."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

Numbers = NDArray[Any]


def cv_of(values: Numbers) -> float:
    """Standard deviation by mean; NaN where there are fewer than two values or their mean is 0."""
    mean = float(values.mean()) if len(values) > 1 else 0.0
    return float(values.std()) / mean if mean else math.nan


def gamma_by_likelihood(values: Numbers) -> tuple[float, float]:
    """Shape and scale under which the positive ones of the values are likeliest (Minka, 2002)."""
    positive = values[values > 0]
    mean = float(positive.mean())
    s = math.log(mean) - float(np.log(positive).mean())
    if s < 1e-9:  # all the same: as even as can be
        return 1e9, mean / 1e9
    shape = (3 - s + math.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    for _ in range(20):
        slope = 1 / shape - trigamma(shape)
        shape = 1 / (1 / shape + (math.log(shape) - digamma(shape) - s) / (shape**2 * slope))
    return shape, mean / shape


def digamma(x: float) -> float:
    """Of x > 0, by its recurrence and asymptotic series."""
    result = 0.0
    while x < 6:
        result -= 1 / x
        x += 1
    y = 1 / (x * x)
    return result + math.log(x) - 0.5 / x - y * (1 / 12 - y * (1 / 120 - y * (1 / 252 - y / 240)))


def trigamma(x: float) -> float:
    """Its derivative."""
    result = 0.0
    while x < 6:
        result += 1 / (x * x)
        x += 1
    y = 1 / (x * x)
    return result + 1 / x + y / 2 + y / x * (1 / 6 - y * (1 / 30 - y * (1 / 42 - y / 30)))


def ks_distance(a: ArrayLike, b: ArrayLike) -> float:
    """The largest distance between the two samples' distribution functions (Kolmogorov and Smirnov); NaN if one is
    empty."""
    first, second = np.sort(np.asarray(a)), np.sort(np.asarray(b))
    if not (len(first) and len(second)):
        return math.nan
    every = np.concatenate([first, second])
    gaps = np.searchsorted(first, every, "right") / len(first) - np.searchsorted(second, every, "right") / len(second)
    return float(np.abs(gaps).max())


def spearman(a: ArrayLike, b: ArrayLike) -> float:
    """Rank correlation, equal values sharing their mean rank; NaN where one does not vary."""
    ranks = [_ranks(np.asarray(values)) for values in (a, b)]
    if len(ranks[0]) < 2 or not all(r.std() for r in ranks):
        return math.nan
    return float(np.corrcoef(ranks[0], ranks[1])[0, 1])


def quantiles(values: Numbers, most: int) -> Sequence[int]:
    """The values in order, or so many evenly spaced ones of them."""
    ordered = np.sort(values)
    if len(ordered) > most:
        ordered = ordered[((np.arange(most) + 0.5) * len(ordered) / most).astype(int)]
    return tuple(int(value) for value in ordered)


def _ranks(values: Numbers) -> Numbers:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return (last - (counts - 1) / 2)[inverse]
