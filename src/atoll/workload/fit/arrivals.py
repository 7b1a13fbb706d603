"""Policy: how bursty arrivals are, window by window (BurstGPT, Wang et al., 2025, arXiv 2401.17644), and over the week.

By moments a window keeps its mean rate and cv; likelihood, an option, sees the many short gaps and underrates bursts.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Literal

import numpy as np

from atoll.errors import InvalidConfig, InvalidData
from atoll.workload.fit.columns import Column
from atoll.workload.fit.stats import cv_of, gamma_by_likelihood
from atoll.workload.generate.processes import MAX_CV, MIN_CV, Windows

Method = Literal["moments", "likelihood"]
LEAST_GAPS: Final = 20
"""A window needs so many for a cv of its own."""
HOURS: Final = 168


@dataclass(frozen=True)
class Window:
    """`cv` is NaN where there are too few gaps to tell."""

    rate_per_s: float
    cv: float


def window_for(span_s: float) -> float:
    """20 minutes for long traces, as at the source; a minute for those that would have only a few such windows."""
    return 1200.0 if span_s > 6 * 3600 else 60.0


def windows_of(at_s: Column, window_s: float, method: Method = "moments", span_s: float = 0.0) -> list[Window]:
    """Rate and cv of each window from time 0 to `span_s` or the last arrival. A gap over the edge of a window belongs
    to none: the rate is the count by the window's length."""
    if not (0 < window_s < math.inf and len(at_s) and _end_s(at_s, span_s) / window_s < 1e7):
        raise InvalidConfig(f"{len(at_s)} arrivals can't be cut in windows of {window_s} s")
    cv_by: Callable[[Column], float] = cv_of if method == "moments" else _cv_by_likelihood
    edges = np.arange(int(_end_s(at_s, span_s) // window_s) + 2) * window_s
    found = []
    for start, end in zip(*_pairs(np.searchsorted(at_s, edges)), strict=True):
        gaps = np.diff(at_s[start:end])
        found.append(Window(int(end - start) / window_s, cv_by(gaps) if len(gaps) >= LEAST_GAPS else math.nan))
    return found


def fit_windows(at_s: Column, window_s: float, method: Method = "moments", span_s: float = 0.0) -> Windows:
    """The process whose windows are as those of the trace, in their order. One with too few gaps takes the median cv.
    Of the last, cut short by the trace's end, less than a quarter is left out if others have arrivals; more, or an only
    one, stands for a whole one."""
    found = windows_of(at_s, window_s, method, span_s)
    known = [window.cv for window in found if not math.isnan(window.cv)]
    usual = float(np.median(known)) if known else 1.0
    rates = [window.rate_per_s for window in found]
    cvs = [usual if math.isnan(window.cv) else min(max(window.cv, MIN_CV), MAX_CV) for window in found]
    last_s = _end_s(at_s, span_s) % window_s
    if last_s >= window_s / 4 or (len(found) == 1 and last_s):
        rates[-1] *= window_s / last_s
    elif any(rates[:-1]):
        rates, cvs = rates[:-1], cvs[:-1]
    return Windows(window_s, tuple(rates), tuple(cvs))


def cv_percentiles(at_s: Column, window_s: float) -> tuple[float, float, float]:
    """The 10th, 50th and 90th of the windows' cv, NaN where no window has one."""
    known = [window.cv for window in windows_of(at_s, window_s) if not math.isnan(window.cv)]
    low, middle, high = np.percentile(known, [10, 50, 90]) if known else (math.nan,) * 3
    return float(low), float(middle), float(high)


def hour_of_week(at_s: Column, begins_s: float, span_s: float = 0.0) -> tuple[float, ...]:
    """The rate in each hour of the week by the mean over all hours seen; 1 for an hour never seen. For `Seasonal`.

    Raises `InvalidData` for less than two days, which show no period.
    """
    span_s = _end_s(at_s, span_s)
    if span_s < 2 * 86400:
        raise InvalidData(f"{span_s / 3600:.1f} hours show no days; two days are needed")
    counts = np.bincount(((at_s + begins_s) // 3600).astype(int) % HOURS, minlength=HOURS).astype(float)
    seen_s = _seconds_seen(begins_s, span_s)
    rates = np.divide(counts, seen_s, out=np.full(HOURS, len(at_s) / span_s), where=seen_s > 0)
    mean = float(rates.mean())
    return tuple(float(rate) / mean for rate in rates)


def _seconds_seen(begins_s: float, span_s: float) -> Column:
    """How much of each hour of the week the trace covers."""
    first, last = begins_s, begins_s + span_s
    hours = np.arange(int(first // 3600), int(last // 3600) + 1)
    covered = np.minimum((hours + 1) * 3600.0, last) - np.maximum(hours * 3600.0, first)
    return np.bincount(hours % HOURS, weights=covered, minlength=HOURS)


def _cv_by_likelihood(gaps: Column) -> float:
    if not (gaps > 0).any():
        return math.nan
    return 1 / math.sqrt(gamma_by_likelihood(gaps)[0])


def _end_s(at_s: Column, span_s: float) -> float:
    return max(float(at_s[-1]), span_s)


def _pairs(places: Column) -> tuple[Column, Column]:
    return places[:-1], places[1:]
