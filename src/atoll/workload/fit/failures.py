"""Policy: the share of requests a source never answers, and how much of it comes with bursts."""

import numpy as np

from atoll.workload.fit.columns import Columns
from atoll.workload.generate.failures import Failures


def fit_failures(columns: Columns, window_s: float) -> Failures:
    """Least squares over windows, each counting as many times as it has requests; no part below 0."""
    window = (columns.at_s // window_s).astype(int)
    counts = np.bincount(window).astype(float)
    mean_rate_per_s = len(columns) / (float(columns.at_s[-1]) or window_s)
    excess = np.maximum(0.0, counts / (mean_rate_per_s * window_s) - 1)[window]
    failed = columns.failed.astype(float)
    spread = excess - excess.mean()
    slope = float((spread * failed).sum() / (spread**2).sum()) if (spread**2).sum() else 0.0
    slope = min(max(slope, 0.0), 1.0)
    base = min(max(float(failed.mean() - slope * excess.mean()), 0.0), 1.0)
    return Failures(base, slope, mean_rate_per_s, window_s)
