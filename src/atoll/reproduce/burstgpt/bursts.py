"""Driver: what bursts do to a real server, and to who is best at scheduling. (BurstGPT, "Done when" 5.)

The same requests in the same order at the same mean rate: only the gaps between them differ.
"""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, islice
from math import exp, log
from pathlib import Path
from typing import Final

from atoll.endpoint.driving import Prompts
from atoll.model.transformer import TransformerConfig
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.server import Server, cores, driven, random_model, serving
from atoll.workload.api import Demand
from atoll.workload.generate.lengths import LogNormal
from atoll.workload.generate.loops import ClosedLoop, Replay, open_loop
from atoll.workload.generate.processes import AnyProcess, Gamma, Poisson
from atoll.workload.slo import Report
from atoll.workload.trace import edits

SHAPE: Final = TransformerConfig(width=384, layers=8, heads=8, context=1024)
PROMPT, OUTPUT = LogNormal(128, 0.8, high=512), LogNormal(32, 0.6, high=128)
TIGHT: Final = ("--threads", "1", "--kv-memory", "24MiB", "--max-waiting", "16")
"""Pages for some five answers, and a queue that can be full."""
CHUNKED, WHOLE = "prompts in chunks of 64", "prompts whole"
POLICIES: Final = {CHUNKED: ("--chunk", "64"), WHOLE: ("--chunk", "0"), "4 at once": ("--max-batch", "4")}
MORE_POLICIES: Final = {
    "chunks of 256": ("--chunk", "256"),
    "swap": ("--preemption", "swap"),
}
LOAD: Final = 0.6
"""Of the requests per second that so many users who never pause get answered."""
USERS: Final = 8
CV: Final = 4.0


@dataclass(frozen=True, slots=True)
class Fared:
    """One policy under one kind of arrivals."""

    report: Report
    preemptions: int

    @property
    def refused(self) -> int:
        return self.report.failed.get("refused", 0)

    @property
    def ttft_s(self) -> float:
        """The 99th percentile."""
        return self.report.ttft_s.p99

    def __str__(self) -> str:
        tpot_ms = 1e3 * self.report.tpot_s.p99
        return f"{self.ttft_s:.2f} s, {tpot_ms:.0f} ms, {self.preemptions} + {self.refused}"


def bursts(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """Poisson and bursty arrivals, under each policy on one server."""
    requests = 400 if full else 40
    policies = POLICIES | (MORE_POLICIES if full else {})
    found: dict[str, tuple[Fared, Fared]] = {}
    rate_per_s = 0.0
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder, "model"), seed, SHAPE)
        for name, flags in policies.items():
            say(f"Poisson and bursty arrivals, {name}")
            with serving(model, *TIGHT, *flags) as server:
                rate_per_s = rate_per_s or LOAD * _capacity_per_s(server, seed)
                demands = (paced(process, requests, rate_per_s, seed) for process in (Poisson(1.0), Gamma(1.0, CV)))
                poisson, bursty = (_fared(server, each, seed) for each in demands)
                found[name] = poisson, bursty
    poisson, bursty = found[CHUNKED]
    yield Line(
        "5a",
        f"{requests} requests, {rate_per_s:.1f}/s, gaps of cv {CV:g} against Poisson on one server: P99 to first token",
        ">= 2x",
        f"{bursty.ttft_s / poisson.ttft_s:.1f}x: {bursty.ttft_s:.2f} s against {poisson.ttft_s:.2f} s; {cores()}",
        judged(bursty.ttft_s >= 2 * poisson.ttft_s),
    )
    yield Line(
        "5b",
        "the same: answers that stepped back for lack of pages, or requests that were refused",
        "more",
        f"{bursty.preemptions} and {bursty.refused} against {poisson.preemptions} and {poisson.refused}",
        judged(bursty.preemptions > poisson.preemptions or bursty.refused > poisson.refused),
    )
    pairs = [_Pair(one, other, found) for one, other in combinations(found, 2)]
    most = max(pairs, key=lambda pair: pair.nearer)
    rows = "; ".join(f"{name}: {poisson} | {bursty}" for name, (poisson, bursty) in found.items())
    yield Line(
        "5c",
        f"P99 of the first token under {len(found)} policies: what Poisson shows of two of them, bursts don't",
        "of one pair at least: another rank, or nearer",
        f"{sum(pair.nearer > 0 for pair in pairs)} of {len(pairs)} pairs; most: {most}. P99 of first token and of time "
        f"per token, preempted + refused, Poisson | bursty. {rows}",
        judged(most.nearer > 0),
    )


class _Pair:
    """How far two policies are apart, under Poisson and under bursts, in logarithms."""

    def __init__(self, one: str, other: str, found: dict[str, tuple[Fared, Fared]]) -> None:
        self.names = one, other
        self.apart = [log(found[one][i].ttft_s / found[other][i].ttft_s) for i in range(2)]

    @property
    def nearer(self) -> float:
        """By how much under bursts; more than the distance where they change ranks."""
        poisson, bursty = self.apart
        return abs(poisson) - (abs(bursty) if poisson * bursty > 0 else -abs(bursty))

    def __str__(self) -> str:
        return (
            f"{' against '.join(self.names)}: {exp(self.apart[0]):.2f}x by Poisson, {exp(self.apart[1]):.2f}x by bursts"
        )


def paced(process: AnyProcess, requests: int, rate_per_s: float, seed: int) -> list[Demand]:
    """The first requests of the process, faster or slower so that all of them have that mean rate."""
    demands = list(islice(open_loop(process, PROMPT, OUTPUT, seed), requests))
    return list(edits.faster(demands, demands[-1].arrival.at_s * rate_per_s / requests))


def _capacity_per_s(server: Server, seed: int) -> float:
    """Answers per second for users who never pause."""
    users = ClosedLoop(USERS, 1e-3, PROMPT, OUTPUT, seed)
    report = driven(server.url, users, Prompts(seed), until_s=2.0)
    return report.answered / report.span_s


def _fared(server: Server, demands: list[Demand], seed: int) -> Fared:
    before = server.counts()
    report = driven(server.url, Replay(demands), Prompts(seed))
    preemptions = server.counts()["atoll_preemptions_total"] - before["atoll_preemptions_total"]
    return Fared(report, int(preemptions))
