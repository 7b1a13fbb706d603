"""Policy: requests the source never answers, more of them in bursts: p = base + burst * max(0, rate / mean rate - 1).

After the failures in BurstGPT (Wang et al., 2025, arXiv 2401.17644). They play a failing upstream; what a server of
ours refuses is measured, never made up.
"""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby

import msgspec

from atoll.errors import InvalidConfig
from atoll.rng import stream
from atoll.workload.api import Demand
from atoll.workload.generate.processes import check_positive


class Failures(msgspec.Struct, frozen=True):
    """The share that fails: `base` at the mean rate or below, `burst` more for each time the mean rate on top. Rates
    are those of windows: shorter ones vary more by chance alone."""

    base: float = 0.0
    burst: float = 0.0
    mean_rate_per_s: float = 1.0
    window_s: float = 60.0

    def __post_init__(self) -> None:
        check_positive(mean_rate_per_s=self.mean_rate_per_s, window_s=self.window_s)
        if not (0 <= self.base <= 1 and 0 <= self.burst <= 1):
            raise InvalidConfig(f"{self}: the shares that fail must be in 0..1")

    def share(self, rate_per_s: float) -> float:
        """At that rate."""
        return min(1.0, self.base + self.burst * max(0.0, rate_per_s / self.mean_rate_per_s - 1))


def failing(demands: Iterable[Demand], failures: Failures, seed: int, name: str = "") -> Iterator[Demand]:
    """The same demands, some of them failed, by the rate of their window. Holds back a window at a time."""
    rng = stream(seed, "failures", name)
    for _, held in groupby(demands, key=lambda demand: demand.arrival.at_s // failures.window_s):
        window = list(held)
        share = failures.share(len(window) / failures.window_s)
        for demand, draw in zip(window, rng.random(len(window)), strict=True):
            yield replace(demand, output_tokens=0, failed=True) if draw < share else demand
