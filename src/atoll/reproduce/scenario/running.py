"""Driver: a scenario in, what it came to out: for `atoll sim run`, and for whoever demonstrates something with it."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from atoll.record import Record, TraceSink
from atoll.reproduce.scenario.api import Result, Say
from atoll.reproduce.scenario.collective import Collective
from atoll.reproduce.scenario.settings import CollectiveJob, Scenario
from atoll.reproduce.scenario.training import Training


def run_scenario(
    scenario: Scenario, seed: int | None = None, *, say: Say = lambda text: None, trace: Path | None = None
) -> Result:
    """Run it, in this process. `seed` goes before the scenario's own; `trace`: a file for Perfetto.

    InvalidConfig, InvalidData: the scenario can't be; Deadlock: it came to a standstill.
    """
    began = time.monotonic()
    scenario = scenario if seed is None else replace(scenario, seed=seed)
    with _one_thread():
        job = scenario.job
        run: Collective | Training
        if isinstance(job, CollectiveJob):
            run = Collective(scenario, job, lambda now: Record(*_sinks(trace), now=now))
        else:
            run = Training(scenario, job, lambda now: Record(*_sinks(trace), now=now))
        run.run(say)
        run.record.close()
    assert run.ended_ns is not None
    return Result(
        seed=scenario.seed,
        calibration=run.prices.calibration(),
        seconds=run.ended_ns / 1e9,
        figures=run.figures(),
        hash=run.chronicle.hash(),
        events=run.events,
        checks=run.checks(),
        curves=run.curves(),
        warnings=tuple(run.prices.warnings),
        real_seconds=time.monotonic() - began,
    )


def _sinks(trace: Path | None) -> list[TraceSink]:
    return [] if trace is None else [TraceSink(trace)]


@contextmanager
def _one_thread() -> Iterator[None]:
    """Programs run one at a time, and sums must not depend on how many cores there are."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
