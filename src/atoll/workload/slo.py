"""Policy: how well requests were served, by what each was promised. Whoever asked counts: a request that was refused,
timed out, aborted or never answered has missed its targets.

Percentiles are of the answered ones, since others have no latency; read them beside `answered` and the attainment.
Goodput and attainment after DistServe (Zhong et al., 2024, arXiv 2401.09670).
"""

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from atoll.errors import InvalidData
from atoll.workload.api import Arrival, Outcome, Targets
from atoll.workload.fit.stats import cv_of

MINUTE_S: Final = 60.0
PERCENTILES: Final = (50, 90, 99)
NO_TARGETS: Final = Targets()
Numbers = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Spread:
    """A measure over the answered requests; all NaN where there are none."""

    mean: float
    p50: float
    p90: float
    p99: float


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all requests offered in `span_s` seconds. Shares are of the offered ones."""

    offered: int
    span_s: float
    answered: int
    failed: dict[str, int]
    """By the way they ended."""
    unanswered: int
    """Offered, and never heard of again."""
    attainment: float
    """Answered within all targets."""
    attainments: dict[str, float]
    """Answered within that one target."""
    goodput_per_s: float
    """Requests answered within all targets, per second."""
    tokens_per_s: float
    """Of answered requests."""
    failure_rate: float
    """Not answered, for whatever reason."""
    ttft_s: Spread
    tpot_s: Spread
    """Of answers with two tokens or more."""
    latency_s: Spread
    lateness_s: Spread
    """Of the driver: sent after they were due."""
    throughput_cv: float
    """Of the tokens answered in each minute: instability."""
    ttft_cv: float
    """Of the mean time to the first token in each minute."""


class Account:
    """Told what is offered and how it ends, in any order of time; `report` may be asked for at any moment."""

    def __init__(self, targets: Targets = NO_TARGETS) -> None:
        self.targets = targets
        self._open: set[int] = set()
        self._offered = 0
        self._met: Counter[str] = Counter()
        self._failed: Counter[str] = Counter()
        self._columns = {name: array("d") for name in ("ttft", "tpot", "latency", "lateness", "tokens", "due", "last")}

    def offer(self, arrival: Arrival) -> None:
        """It was meant to be sent. Raises `InvalidData` for a number that is open."""
        if arrival.number in self._open:
            raise InvalidData(f"request {arrival.number} was offered twice before it ended")
        self._open.add(arrival.number)
        self._offered += 1

    def handle(self, outcome: Outcome) -> None:
        """It ended. Raises `InvalidData` for one that is not open, or answered without times."""
        if outcome.number not in self._open:
            raise InvalidData(f"request {outcome.number} ended, but was not offered, or has ended before")
        answered = outcome.end == "answered"
        if answered and not 0 <= outcome.due_s <= outcome.first_s <= outcome.last_s < math.inf:
            raise InvalidData(
                f"request {outcome.number} was answered, so it needs 0 <= due_s <= first_s <= last_s: {outcome}"
            )
        self._open.remove(outcome.number)
        self._columns["lateness"].append(outcome.sent_s - outcome.due_s)
        if not answered:
            self._failed[outcome.end] += 1
            return
        met = kept(outcome, self.targets)
        self._met.update(name for name, is_kept in met.items() if is_kept)
        self._met["all"] += all(met.values())
        if outcome.output_tokens > 1:
            self._columns["tpot"].append(outcome.tpot_s)
        for name, value in (
            ("ttft", outcome.ttft_s),
            ("latency", outcome.latency_s),
            ("tokens", outcome.output_tokens),
            ("due", outcome.due_s),
            ("last", outcome.last_s),
        ):
            self._columns[name].append(value)

    def report(self, span_s: float) -> Report:
        """All so far, as `span_s` seconds of service. Raises `InvalidData` where that is no time."""
        if not 0 < span_s < math.inf:
            raise InvalidData(f"a report over {span_s} s says nothing")
        columns = {name: np.array(values) for name, values in self._columns.items()}
        answered, offered = len(columns["ttft"]), self._offered
        out_of = offered or math.nan
        targets = [name for name in ("ttft", "tpot", "latency") if getattr(self.targets, f"{name}_s") is not None]
        return Report(
            offered=offered,
            span_s=span_s,
            answered=answered,
            failed=dict(sorted(self._failed.items())),
            unanswered=len(self._open),
            attainment=self._met["all"] / out_of,
            attainments={name: self._met[name] / out_of for name in targets},
            goodput_per_s=self._met["all"] / span_s,
            tokens_per_s=float(columns["tokens"].sum()) / span_s,
            failure_rate=(offered - answered) / out_of,
            ttft_s=_spread(columns["ttft"]),
            tpot_s=_spread(columns["tpot"]),
            latency_s=_spread(columns["latency"]),
            lateness_s=_spread(columns["lateness"]),
            throughput_cv=cv_of(_per_minute(columns["last"], columns["tokens"], span_s)),
            ttft_cv=cv_of(_minute_means(columns["due"], columns["ttft"])),
        )


def kept(outcome: Outcome, targets: Targets) -> dict[str, bool]:
    """For each target there is, whether this answer kept it."""
    pairs = (
        ("ttft", outcome.ttft_s, targets.ttft_s),
        ("tpot", outcome.tpot_s, targets.tpot_s),
        ("latency", outcome.latency_s, targets.latency_s),
    )
    return {name: value <= most for name, value, most in pairs if most is not None}


def account(arrivals: Iterable[Arrival], outcomes: Iterable[Outcome], targets: Targets, span_s: float) -> Report:
    """The report of a run that is over."""
    account = Account(targets)
    for arrival in arrivals:
        account.offer(arrival)
    for outcome in outcomes:
        account.handle(outcome)
    return account.report(span_s)


def _spread(values: Numbers) -> Spread:
    if not len(values):
        return Spread(math.nan, math.nan, math.nan, math.nan)
    return Spread(float(values.mean()), *map(float, np.percentile(values, PERCENTILES)))


def _per_minute(at_s: Numbers, amounts: Numbers, span_s: float) -> Numbers:
    """Sums in each whole minute of the span."""
    minutes = int(span_s // MINUTE_S)
    within = at_s < minutes * MINUTE_S
    return np.bincount((at_s[within] // MINUTE_S).astype(int), weights=amounts[within], minlength=minutes)


def _minute_means(at_s: Numbers, values: Numbers) -> Numbers:
    minute = (at_s // MINUTE_S).astype(int)
    counts = np.bincount(minute)
    return np.bincount(minute, weights=values)[counts > 0] / counts[counts > 0]
