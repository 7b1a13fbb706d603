"""Driver: `atoll serve` as a child, asked over HTTP as users ask it, for demonstrations and benchmarks."""

import asyncio
import math
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import psutil

from atoll.endpoint.driving import Drive, Prompts
from atoll.endpoint.upstream import Upstream
from atoll.model.saved import save_model
from atoll.model.tokenizer import ByteTokenizer
from atoll.model.transformer import Transformer, TransformerConfig
from atoll.reproduce.commands import atoll
from atoll.reproduce.crew import crew
from atoll.runtime.real import RealRuntime
from atoll.workload.api import Arrival, Outcome, Workload
from atoll.workload.slo import Account, Report

START_S: Final = 180.0
"""By then a server answers, its kernel compiled."""


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs. `model`: what it calls the one it has."""

    url: str
    pid: int
    model: str

    @property
    def engine_pid(self) -> int:
        """Of the process that computes."""
        return psutil.Process(self.pid).children()[0].pid

    def counts(self) -> dict[str, float]:
        """What /metrics says, by name, over all labels."""
        import httpx
        from prometheus_client.parser import text_string_to_metric_families

        found: dict[str, float] = {}
        for family in text_string_to_metric_families(httpx.get(f"{self.url}/metrics", timeout=10).text):
            for sample in family.samples:
                found[sample.name] = found.get(sample.name, 0.0) + sample.value
        return found


@contextmanager
def serving(model: str | Path, *flags: str) -> Iterator[Server]:
    """The command with these flags, until it is no longer wanted. AtollError: it doesn't serve, and why."""
    with crew() as found:
        found.start("serve", "-m", "atoll", "serve", str(model), "--port", "0", "--json", *flags, env={})
        found.until(lambda: found.of("ready"), f"an `atoll serve {model}` that is ready", START_S)
        yield Server(found.of("ready")[0]["url"], found.pids["serve"], str(model))


def workload_run(*words: str) -> dict[str, Any]:
    """What `atoll workload run` with those words reports. AtollError: it failed."""
    return atoll("workload", "run", *words, "--plots", "none")[-1]


def random_model(folder: Path, seed: int, config: TransformerConfig) -> Path:
    """A model of bytes that has learnt nothing, for those to whom only its speed matters."""
    model = Transformer(config)
    model.initialise(seed)
    save_model(folder, model, ByteTokenizer())
    return folder


def driven(
    url: str,
    workload: Workload,
    prompts: Prompts,
    until_s: float = math.inf,
    patience_s: float = 60.0,
    told: Callable[[Outcome], object] = lambda outcome: None,
) -> Report:
    """What became of a workload; driven as by `atoll workload run`. `told`: how each request ended, at that time."""
    return asyncio.run(_driven(url, workload, prompts, until_s, patience_s, told))


async def _driven(
    url: str,
    workload: Workload,
    prompts: Prompts,
    until_s: float,
    patience_s: float,
    told: Callable[[Outcome], object],
) -> Report:
    account = Account()

    def heard(arrival: Arrival, outcome: Outcome) -> None:
        account.handle(outcome)
        told(outcome)

    upstream = Upstream(url)
    try:
        await upstream.start()
        (served,) = upstream.describe()
        run = Drive(
            RealRuntime(), upstream, served.name, workload, prompts, heard, account.offer,
            until_s=until_s, patience_s=patience_s, most_tokens=served.context,
        )  # fmt: skip
        began = time.monotonic()
        await run.run()
        return account.report(time.monotonic() - began)
    finally:
        await upstream.close()


def cores() -> str:
    """Where others keep the cores busy, this measures them."""
    return f"{os.getloadavg()[0]:.1f} processes wanted {os.cpu_count()} cores" if hasattr(os, "getloadavg") else ""
