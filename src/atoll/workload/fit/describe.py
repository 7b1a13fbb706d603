"""Policy: what a trace is like: rates, bursts, lengths, failures, sessions."""

import math
from dataclasses import dataclass

import numpy as np

from atoll.errors import InvalidData
from atoll.workload.fit.arrivals import cv_percentiles, window_for
from atoll.workload.fit.columns import Column, Columns, jittered, tick_s
from atoll.workload.fit.conversations import sessions_of
from atoll.workload.fit.stats import cv_of, gamma_by_likelihood, spearman


@dataclass(frozen=True, slots=True)
class Sizes:
    """Lengths in tokens."""

    mean: float
    p50: float
    p95: float
    p99: float
    max: int


@dataclass(frozen=True, slots=True)
class Arrivals:
    """`alpha` and `theta_s` are one Gamma for all gaps, by likelihood; `window_cv` the 10th, 50th and 90th percentile
    of windows' cv. `tick_s`: to what the source rounded its times; they were spread over it first."""

    rate_per_s: float
    gap_cv: float
    alpha: float
    theta_s: float
    window_s: float
    window_cv: tuple[float, float, float]
    tick_s: float


@dataclass(frozen=True, slots=True)
class Talks:
    """Sessions: how many turns they have, how long users think, how many later turns repeat what was said before."""

    sessions: int
    turns_mean: float
    turns_max: int
    think_p50_s: float
    think_p90_s: float
    grows: float


@dataclass(frozen=True, slots=True)
class Description:
    """Of all requests of one service; lengths of those that were answered."""

    service: str
    requests: int
    span_s: float
    failed_share: float
    arrivals: Arrivals | None
    """None where there are too few for any rate."""
    prompt: Sizes | None
    output: Sizes | None
    spearman: float
    """Rank correlation of prompts with their answers."""
    talks: Talks | None


def describe(columns: Columns, window_s: float = 0.0) -> list[Description]:
    """One for each service, and one for all if there are two. `window_s` 0: as `window_for` says."""
    window_s = window_s or window_for(float(columns.at_s[-1]))
    both = [("api", ~columns.conversation), ("conversation", columns.conversation)]
    parts = [_describe(name, columns.where(mask), window_s) for name, mask in both if mask.any()]
    return [*parts, _describe("all", columns, window_s)] if len(parts) > 1 else parts


def _describe(service: str, columns: Columns, window_s: float) -> Description:
    answered = columns.where(~columns.failed)
    return Description(
        service,
        len(columns),
        float(columns.at_s[-1] - columns.at_s[0]),
        float(columns.failed.mean()),
        _arrivals(columns.at_s, window_s),
        _sizes(answered.prompt),
        _sizes(answered.output),
        spearman(answered.prompt, answered.output),
        _talks(columns),
    )


def _arrivals(at_s: Column, window_s: float) -> Arrivals | None:
    spread_s = jittered(at_s)
    gaps = np.diff(spread_s)
    if not (gaps > 0).any():
        return None
    alpha, theta_s = gamma_by_likelihood(gaps)
    rate = len(at_s) / float(spread_s[-1] - spread_s[0])
    return Arrivals(rate, cv_of(gaps), alpha, theta_s, window_s, cv_percentiles(spread_s, window_s), tick_s(at_s))


def _sizes(lengths: Column) -> Sizes | None:
    if not len(lengths):
        return None
    middle, most, nearly_all = map(float, np.percentile(lengths, [50, 95, 99]))
    return Sizes(float(lengths.mean()), middle, most, nearly_all, int(lengths.max()))


def _talks(columns: Columns) -> Talks | None:
    try:
        found = sessions_of(columns)
    except InvalidData:
        return None
    if found.turns.max() < 2:
        return None
    middle, most = map(float, np.percentile(found.think_s, [50, 90])) if len(found.think_s) else (math.nan, math.nan)
    return Talks(len(found.turns), float(found.turns.mean()), int(found.turns.max()), middle, most, float(found.grows))
