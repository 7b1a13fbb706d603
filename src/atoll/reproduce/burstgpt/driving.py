"""Driver: the open-loop driver on the clock of this machine. (BurstGPT, "Done when" 6.)"""

import asyncio
import tempfile
from collections.abc import AsyncGenerator, Iterator
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.endpoint.api import Delta, Load, Request, Served
from atoll.endpoint.driving import Drive, Prompts
from atoll.errors import AtollError
from atoll.reproduce.api import Line, Say, judged
from atoll.reproduce.burstgpt.bursts import SHAPE
from atoll.reproduce.server import cores, driven, random_model, serving
from atoll.runtime.real import RealRuntime
from atoll.workload.generate.lengths import Empirical
from atoll.workload.generate.loops import Replay, open_loop
from atoll.workload.generate.processes import Poisson

RATE_PER_S = 50.0
GIVEN_UP_S = 6.0


def driving(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """How late requests are sent, to who never answers, and to a server that can't keep up."""
    span_s = 60.0 if full else 15.0
    say(f"{RATE_PER_S:g} requests/s for {span_s:g} s to somebody who does not answer")
    silent = _sent(span_s, seed, answer_s=10 * GIVEN_UP_S)
    say("and to somebody who answers at once")
    quick = _sent(span_s, seed, answer_s=0.0)
    late_s = float(np.percentile(silent, 99))
    yield Line(
        "6a",
        f"{len(silent)} requests at {RATE_PER_S:g}/s: P99 of sent - scheduled, to a stub that never answers",
        "<= 10 ms",
        f"{late_s * 1e3:.2f} ms (median {np.median(silent) * 1e3:.2f} ms; {cores()})",
        judged(late_s <= 0.010),
    )
    yield Line(
        "6b",
        "as many are sent to who never answers as to who answers at once",
        "the same",
        f"{len(silent)} and {len(quick)}",
        judged(len(silent) == len(quick)),
    )
    yield _over_http(full, seed, say)


def _sent(span_s: float, seed: int, answer_s: float) -> NDArray[Any]:
    """Seconds each was late, by what drives `atoll workload run`."""
    one = Empirical([1])
    workload = Replay(open_loop(Poisson(RATE_PER_S), one, one, seed, "driving"))
    drive = Drive(
        RealRuntime(), _Stub(answer_s), "", workload, Prompts(seed), lambda arrival, outcome: None,
        until_s=span_s, patience_s=GIVEN_UP_S,
    )  # fmt: skip

    async def run() -> NDArray[Any]:
        async with asyncio.timeout(span_s + 2 * GIVEN_UP_S):
            return (await drive.run()).lateness_s

    try:
        return asyncio.run(run())
    except TimeoutError:
        raise AtollError(f"requests of {span_s:g} s were not sent in {span_s + 2 * GIVEN_UP_S:g} s") from None


class _Stub:
    """Answers each request by nothing, so long after it came."""

    def __init__(self, answer_s: float) -> None:
        self._answer_s = answer_s

    async def generate(self, request: Request) -> AsyncGenerator[Delta, None]:
        await asyncio.sleep(self._answer_s)
        yield Delta(finish="length")

    def load(self) -> Load:
        return Load()

    def describe(self) -> tuple[Served, ...]:
        return ()

    def tokenizer(self, model: str) -> None:
        return None


def _over_http(full: bool, seed: int, say: Say) -> Line:
    """A server that writes one answer at a time, and is asked for fifty a second."""
    span_s = 30.0 if full else 6.0
    one, many = Empirical([16]), Empirical([128])
    demands = list(
        takewhile(lambda d: d.arrival.at_s < span_s, open_loop(Poisson(RATE_PER_S), one, many, seed, "driving"))
    )
    say(f"{RATE_PER_S:g} requests/s for {span_s:g} s to a server that can't keep up")
    with tempfile.TemporaryDirectory() as folder:
        model = random_model(Path(folder, "model"), seed, SHAPE)
        with serving(model, "--threads", "1", "--max-batch", "1", "--max-waiting", f"{len(demands)}") as server:
            report = driven(server.url, Replay(demands), Prompts(seed), patience_s=GIVEN_UP_S)
    late_s = report.lateness_s
    return Line(
        "6c",
        f"{report.offered} requests at {RATE_PER_S:g}/s over HTTP, to `atoll serve` that writes one answer at a time",
        "all sent, P99 <= 10 ms",
        f"{report.offered} of {len(demands)} sent, {late_s.p99 * 1e3:.2f} ms (median {late_s.p50 * 1e3:.2f} ms), while "
        f"{report.answered} were answered and the rest given up after {GIVEN_UP_S:g} s; {cores()}",
        judged(report.offered == len(demands) and late_s.p99 <= 0.010 and report.answered < report.offered / 2),
    )
