"""Driver: `atoll workload run`: drive a server with a workload, and tell how it fared."""

import asyncio
import json
import math
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, Literal

from rich.console import Console
from rich.table import Table
from tyro.conf import Positional

from atoll.cli.keys import read_key
from atoll.cli.output import say
from atoll.endpoint.driving import Drive, Prompts
from atoll.endpoint.upstream import Upstream
from atoll.errors import InvalidConfig, InvalidData, Unavailable
from atoll.runtime.real import RealRuntime
from atoll.workload.api import Arrival, Demand, Outcome, Targets, Workload
from atoll.workload.fit.model import decode
from atoll.workload.generate.lengths import LogNormal
from atoll.workload.generate.loops import Replay, open_loop
from atoll.workload.generate.processes import Gamma, Poisson
from atoll.workload.slo import Account, Report
from atoll.workload.trace import edits
from atoll.workload.trace.files import TraceFile

TELL_S: Final = 2.0
_TARGETS: Final = {"ttft": "ttft_s", "tpot": "tpot_s", "latency": "latency_s"}
_SPREAD: Final = 1.0
"""Of the logarithm of generated lengths."""


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Send requests to a server of OpenAI's API as a workload says, and tell how it fared.

    Open loop: nobody waits for the answers of others, so a server that falls behind is seen to. Times count from when
    a request was due. What is asked for is a trace, a model of one (`atoll workload fit`), or made: poisson, or bursty
    with gaps of --cv. Prompts are random letters; answers have the lengths of the workload.
    """

    url: Positional[str]
    """Where the server is, for example http://127.0.0.1:8000."""
    trace: Path | None = None
    """A trace or a model of one."""
    generate: Literal["poisson", "bursty"] = "poisson"
    """What to send without a trace."""
    rate: float = 2.0
    """Generated requests per second."""
    cv: float = 4.0
    """How bursty: the gaps' deviation over their mean; 1 is poisson."""
    prompt: float = 100.0
    """Median tokens of a generated prompt."""
    output: float = 50.0
    """Median tokens of a generated answer."""
    seconds: float = 60.0
    """How long requests are sent."""
    rate_scale: float = 1.0
    """So many times the rate of a trace."""
    shrink: float = 1.0
    """Divide all lengths by this, for a tiny model."""
    slo: str = ""
    """What each request was promised, for example ttft=1s,tpot=100ms,latency=30s."""
    patience: float = 120.0
    """Seconds after which an answer is given up."""
    model: str | None = None
    """Which of the server's models. Default: the first."""
    api_key_file: Path | None = None
    """A file with the key that the server asks for."""
    seed: int = 1
    """Of all that is drawn."""
    plots: Path | None = Path("plots")
    """Where to put the pictures, or none."""
    json: bool = False
    """One JSON object per request, the report last."""

    def __post_init__(self) -> None:
        for name in ("rate", "cv", "prompt", "output", "seconds", "rate_scale", "shrink", "patience"):
            if not 0 < getattr(self, name) < math.inf:
                raise InvalidConfig(f"--{name.replace('_', '-')} must be above 0, not {getattr(self, name)}")
        targets(self.slo)


def targets(text: str) -> Targets:
    """ "ttft=1s,tpot=100ms". InvalidConfig names what isn't understood."""
    found: dict[str, float] = {}
    for part in filter(None, map(str.strip, text.split(","))):
        match = re.fullmatch(r"(\w+)=(\d+(?:\.\d+)?)(ms|s)", part)
        if not match or match[1] not in _TARGETS:
            raise InvalidConfig(f"--slo: {part!r} isn't understood; write ttft=1s, tpot=100ms or latency=30s")
        found[_TARGETS[match[1]]] = float(match[2]) / (1000 if match[3] == "ms" else 1)
    return Targets(**found)


def drive(settings: RunSettings) -> int:
    """Send, listen, report."""
    report, pictures = asyncio.run(_drive(settings))
    if settings.json:
        say(json.dumps({"type": "report", **asdict(report), "plots": [str(path) for path in pictures]}))
    else:
        Console().print(_table(report, settings))
        for path in pictures:
            say(f"{path}")
    return 0


async def _drive(settings: RunSettings) -> tuple[Report, list[Path]]:
    key = None if settings.api_key_file is None else read_key(settings.api_key_file)
    upstream = Upstream(settings.url, key=key)
    account = Account(targets(settings.slo))
    outcomes: list[Outcome] = []
    sent = 0

    def offered(arrival: Arrival) -> None:
        nonlocal sent
        sent += 1
        account.offer(arrival)

    def told(arrival: Arrival, outcome: Outcome) -> None:
        account.handle(outcome)
        outcomes.append(outcome)
        if settings.json:
            say(json.dumps({"type": "request", **_finite(asdict(outcome))}))

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
            _workload(settings),
            Prompts(settings.seed),
            told,
            offered,
            until_s=settings.seconds,
            patience_s=settings.patience,
            most_tokens=served[model].context or 1 << 30,
        )
        watching = asyncio.create_task(_progress(lambda: (sent, len(outcomes)), settings.seconds))
        began = time.monotonic()
        try:
            await run.run()
        finally:
            watching.cancel()
        span_s = time.monotonic() - began
    finally:
        await upstream.close()
    if run.cut:
        sys.stderr.write(f"{run.cut} requests were longer than the model's context, and were cut\n")
    return account.report(span_s), _pictures(settings, outcomes)


def _workload(settings: RunSettings) -> Workload:
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
        return decode(settings.trace.read_bytes()).workload(settings.seed, settings.rate_scale)
    return Replay(_edited(iter(TraceFile(settings.trace)), settings))


def _edited(demands: Iterator[Demand], settings: RunSettings) -> Iterator[Demand]:
    demands = edits.work(demands, Counter())
    if settings.rate_scale != 1:
        demands = edits.faster(demands, settings.rate_scale)
    if settings.shrink != 1:
        demands = edits.smaller(demands, settings.shrink)
    return demands


async def _progress(counts: Any, seconds: float) -> None:
    """A line now and then, for who looks."""
    began = time.monotonic()
    while sys.stderr.isatty():
        await asyncio.sleep(TELL_S)
        sent, ended = counts()
        sys.stderr.write(f"\r{time.monotonic() - began:5.0f} of {seconds:.0f} s: {sent} sent, {sent - ended} open ")
        sys.stderr.flush()


def _table(report: Report, settings: RunSettings) -> Table:
    table = Table(
        title=f"{settings.url}: {report.offered} requests in {report.span_s:.1f} s", title_justify="left", box=None
    )
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


def _pictures(settings: RunSettings, outcomes: list[Outcome]) -> list[Path]:
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
        plot.lines(path, series, title=f"{settings.url}, {len(answered)} answers", xlabel="due, s", ylabel="seconds")
    except ImportError:
        return []
    return [path]
