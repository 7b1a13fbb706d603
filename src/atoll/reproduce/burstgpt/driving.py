"""Driver: the open-loop driver on the clock of this machine. (BurstGPT, "Done when" 6.)"""

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.reproduce.api import Line, Say, judged
from atoll.workload.generate.lengths import Empirical
from atoll.workload.generate.loops import Replay, open_loop
from atoll.workload.generate.processes import Poisson
from atoll.workload.pacer import Pacer

RATE_PER_S = 50.0


def driving(span_s: float, seed: int, say: Say) -> Iterator[Line]:
    """How late requests are sent, to who answers after a minute; an HTTP server comes with serve."""
    say(f"{RATE_PER_S:g} requests/s for {span_s:g} s to somebody who does not answer")
    silent = _sent(span_s, seed, answer_s=60.0)
    say("and to somebody who answers at once")
    quick = _sent(span_s, seed, answer_s=0.0)
    late_s = float(np.percentile(silent, 99))
    yield Line(
        "6a",
        f"{len(silent)} requests at {RATE_PER_S:g}/s: P99 of sent - scheduled, to a stub that never answers in time",
        "<= 10 ms",
        f"{late_s * 1e3:.2f} ms (median {np.median(silent) * 1e3:.2f} ms{_load()})",
        judged(late_s <= 0.010),
    )
    yield Line(
        "6b",
        "as many are sent to who never answers as to who answers at once",
        "the same",
        f"{len(silent)} and {len(quick)}",
        judged(len(silent) == len(quick)),
    )
    yield Line("6c", "the same over HTTP", "<= 10 ms", "not yet: needs serve", "not yet", "-")


def _sent(span_s: float, seed: int, answer_s: float) -> NDArray[Any]:
    """Seconds each was late."""
    one = Empirical([1])
    pacer = Pacer(Replay(open_loop(Poisson(RATE_PER_S), one, one, seed, "driving")), until_s=span_s)
    asyncio.run(_drive(pacer, answer_s))
    return pacer.lateness_s


def _load() -> str:
    """Where others keep the cores busy, this measures them."""
    if not hasattr(os, "getloadavg"):
        return ""
    return f"; {os.getloadavg()[0]:.1f} processes wanted {os.cpu_count()} cores"


async def _drive(pacer: Pacer, answer_s: float) -> None:
    began = time.monotonic()
    waiting: set[asyncio.Task[None]] = set()
    while (wake_s := pacer.wake_s) < float("inf"):
        if (delay_s := began + wake_s - time.monotonic()) > 0:
            await asyncio.sleep(delay_s)
        for _ in pacer.decide(time.monotonic() - began):
            waiting.add(asyncio.create_task(asyncio.sleep(answer_s)))
    for task in waiting:
        task.cancel()
    await asyncio.gather(*waiting, return_exceptions=True)
