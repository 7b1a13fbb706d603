"""Driver: `atoll workload run`: drive a server, or virtual engines, with a workload, and tell how it fared."""

import asyncio
import json
import math
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from rich.table import Table

from atoll.cli.keys import read_key
from atoll.cli.output import say, wide_console
from atoll.cli.workload_settings import RunSettings, targets
from atoll.endpoint.driving import Drive, Prompts
from atoll.endpoint.upstream import Upstream
from atoll.errors import InvalidData, Unavailable
from atoll.runtime.real import RealRuntime
from atoll.workload.api import Arrival, Outcome, Workload
from atoll.workload.fit.model import decode
from atoll.workload.generate.lengths import LogNormal
from atoll.workload.generate.loops import Replay, open_loop
from atoll.workload.generate.processes import Gamma, Poisson
from atoll.workload.slo import Account, Report
from atoll.workload.trace import edits
from atoll.workload.trace.files import TraceFile

TELL_S: Final = 2.0
_SPREAD: Final = 1.0
"""Of the logarithm of generated lengths."""


@dataclass
class Heard:
    """What is told of a run, by whatever drives it."""

    settings: RunSettings
    outcomes: list[Outcome] = field(default_factory=list)
    sent: int = 0

    def __post_init__(self) -> None:
        self.account = Account(targets(self.settings.slo))

    def offered(self, arrival: Arrival) -> None:
        """It is sent."""
        self.sent += 1
        self.account.offer(arrival)

    def told(self, arrival: Arrival, outcome: Outcome) -> None:
        """It ended."""
        self.account.handle(outcome)
        self.outcomes.append(outcome)
        if self.settings.json:
            say(json.dumps({"type": "request", **_finite(asdict(outcome))}))


@dataclass(frozen=True)
class Ended:
    """A run. `who` was asked, in words; `simulated`: in virtual time."""

    who: str
    span_s: float
    cut: int
    simulated: bool = False
    warnings: tuple[str, ...] = ()


def drive(settings: RunSettings) -> int:
    """Send, listen, report."""
    heard = Heard(settings)
    if settings.virtual:
        from atoll.cli.workload_virtual import simulate

        ended = simulate(settings, workload(settings), heard)
    else:
        ended = asyncio.run(_drive(settings, heard))
    report = heard.account.report(ended.span_s)
    pictures = _pictures(settings, ended.who, heard.outcomes)
    if ended.cut:
        sys.stderr.write(f"{ended.cut} requests were longer than the model's context, and were cut\n")
    for warning in ended.warnings:
        sys.stderr.write(f"warning: {warning}\n")
    if settings.json:
        about = {"who": ended.who, "simulated": ended.simulated, "plots": [str(path) for path in pictures]}
        say(json.dumps({"type": "report", **asdict(report), **about}))
    else:
        wide_console().print(_table(report, settings, ended.who))
        for path in pictures:
            say(f"{path}")
    return 0


async def _drive(settings: RunSettings, heard: Heard) -> Ended:
    assert settings.url is not None
    key = None if settings.api_key_file is None else read_key(settings.api_key_file)
    upstream = Upstream(settings.url, key=key)
    try:
        await upstream.start()
        served = {each.name: each for each in upstream.describe()}
        if not served or (settings.model is not None and settings.model not in served):
            raise Unavailable(
                f"{settings.url} serves {', '.join(served) or 'nothing'}, not {settings.model or 'a model'}"
            )
        model = settings.model or next(iter(served))
        run = Drive(
            RealRuntime(),
            upstream,
            model,
            workload(settings),
            Prompts(settings.seed),
            heard.told,
            heard.offered,
            until_s=settings.seconds,
            patience_s=settings.patience,
            most_tokens=served[model].context or 1 << 30,
        )
        watching = asyncio.create_task(_progress(heard, settings.seconds))
        began = time.monotonic()
        try:
            await run.run()
        finally:
            watching.cancel()
        return Ended(settings.url, time.monotonic() - began, run.cut)
    finally:
        await upstream.close()


def workload(settings: RunSettings) -> Workload:
    """What to send."""
    if settings.trace is None:
        process = Poisson(settings.rate) if settings.generate == "poisson" else Gamma(settings.rate, settings.cv)
        lengths = [LogNormal(each / settings.shrink, _SPREAD) for each in (settings.prompt, settings.output)]
        return Replay(open_loop(process, lengths[0], lengths[1], settings.seed))
    try:
        with settings.trace.open("rb") as file:
            head = file.read(4096)
    except OSError as error:
        raise InvalidData(f"{settings.trace}: can't be read ({error.strerror})") from error
    if b'"atoll-workload"' in head:
        found = decode(settings.trace.read_bytes()).workload(settings.seed, settings.rate_scale)
    else:
        demands = edits.work(TraceFile(settings.trace), Counter())
        found = Replay(edits.faster(demands, settings.rate_scale))
    return edits.Shrunk(found, settings.shrink) if settings.shrink != 1 else found


async def _progress(heard: Heard, seconds: float) -> None:
    """A line now and then, for who looks."""
    began = time.monotonic()
    while sys.stderr.isatty():
        await asyncio.sleep(TELL_S)
        tell_progress(heard, time.monotonic() - began, seconds)


def tell_progress(heard: Heard, now_s: float, seconds: float) -> None:
    """How far it is."""
    sent, ended = heard.sent, len(heard.outcomes)
    sys.stderr.write(f"\r{now_s:5.0f} of {seconds:.0f} s: {sent} sent, {sent - ended} open ")
    sys.stderr.flush()


def _table(report: Report, settings: RunSettings, who: str) -> Table:
    table = Table(title=f"{who}: {report.offered} requests in {report.span_s:.1f} s", title_justify="left", box=None)
    for name in ("", "mean", "p50", "p90", "p99"):
        table.add_column(name, justify="left" if not name else "right")
    for label, spread in (
        ("time to first token", report.ttft_s),
        ("time per token after", report.tpot_s),
        ("whole answer", report.latency_s),
        ("sent after its time", report.lateness_s),
    ):
        table.add_row(label, *(_seconds(value) for value in (spread.mean, spread.p50, spread.p90, spread.p99)))
    table.add_section()
    failed = ", ".join(f"{n} {why}" for why, n in report.failed.items())
    table.add_row("answered", f"{report.answered}", f"{failed or 'none failed'}")
    table.add_row("tokens", f"{report.tokens_per_s:.1f}/s")
    if settings.slo:
        each = ", ".join(f"{name} {share:.0%}" for name, share in report.attainments.items())
        table.add_row("kept all promises", f"{report.attainment:.1%}", f"{report.goodput_per_s:.2f}/s", each)
    return table


def _seconds(value: float) -> str:
    return "" if math.isnan(value) else f"{1e3 * value:.0f} ms" if value < 10 else f"{value:.1f} s"


def _finite(values: dict[str, Any]) -> dict[str, Any]:
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}


def _pictures(settings: RunSettings, who: str, outcomes: list[Outcome]) -> list[Path]:
    """Latencies over time, where somebody can draw them."""
    answered = sorted((o for o in outcomes if o.end == "answered"), key=lambda o: o.due_s)
    if settings.plots is None or settings.plots.name.lower() == "none" or not answered:
        return []
    try:
        from atoll import plot

        settings.plots.mkdir(parents=True, exist_ok=True)
        path = settings.plots / "latency.png"
        at = [o.due_s for o in answered]
        series = {
            "time to first token": (at, [o.ttft_s for o in answered]),
            "whole answer": (at, [o.latency_s for o in answered]),
        }
        plot.lines(path, series, title=f"{who}, {len(answered)} answers", xlabel="due, s", ylabel="seconds")
    except ImportError:
        return []
    return [path]
