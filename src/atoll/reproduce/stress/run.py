"""Driver: a run of stress from beginning to end, and what it came to."""

import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atoll.reproduce.api import Say
from atoll.reproduce.churn import MASTER, Churn, Report
from atoll.reproduce.stress.actions import Streets, Trouble
from atoll.reproduce.stress.gates import Street
from atoll.reproduce.stress.gauges import Gauges, Growth
from atoll.reproduce.stress.traces import MARK, left_behind, shared


@dataclass
class Result:
    """All of it."""

    report: Report
    growths: list[Growth] = field(default_factory=list)
    left: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Did all hold?"""
        return self.report.ok and not self.left and all(growth.ok for growth in self.growths)


def stress(
    seconds: float,
    seed: int,
    *,
    say: Say = lambda text: None,
    progress: Callable[[Churn], None] = lambda churn: None,
    heard: Callable[[str, dict[str, Any]], None] = lambda name, said: None,
    folder: Path | None = None,
) -> Result:
    """Run for so long. `folder`: where the logs stay; else they are gone afterwards."""
    gauges = Gauges()
    mark, before = secrets.token_hex(8), shared()

    def watch(churn: Churn) -> None:
        elders = {member.name: member.pid for member in churn.members.values() if member.elder}
        gauges.sample(churn.elapsed_s, {MASTER: churn.master_pid, **elders})
        progress(churn)

    os.environ[MARK] = mark
    try:
        with Street() as street:
            trouble = Trouble(Streets(street, os.getpid()))
            churn = Churn(seed, trouble.plan(), say=say, progress=watch, heard=heard, folder=folder)
            report = churn.run(seconds)
    finally:
        del os.environ[MARK]
    if folder is not None:
        gauges.write(folder / "gauges.csv")
    return Result(report, gauges.growths(seconds), left_behind(mark, before))
