"""Driver: `atoll workload`: look at traces of requests, fit models to them, make and convert traces."""

import difflib
import json
import math
import os
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict
from functools import partial
from itertools import islice, takewhile
from pathlib import Path
from typing import Any, Final

from atoll.cli import workload_tables as tables
from atoll.cli.output import say, wide_console
from atoll.cli.workload_run import drive
from atoll.cli.workload_settings import ConvertSettings, FitSettings, RunSettings, ShowSettings
from atoll.config import atomic_write, parse
from atoll.errors import InvalidConfig, InvalidData
from atoll.workload.api import Demand
from atoll.workload.fit.arrivals import window_for
from atoll.workload.fit.columns import Columns, columns
from atoll.workload.fit.describe import describe
from atoll.workload.fit.held_out import arrivals_held_out, lengths_held_out
from atoll.workload.fit.model import Model, decode, encode, fit_model
from atoll.workload.generate.loops import renumbered
from atoll.workload.trace import edits, lines
from atoll.workload.trace.files import TraceFile, save

USAGE: Final = """usage: atoll workload show|fit|convert FILE [options]      (each explains itself with --help)
       atoll workload run URL|--virtual [options]

  show     what a trace is like: rates, bursts, lengths, failures, conversations; with plots
  fit      a small model of a trace, and how well it stands up to windows it has not seen
  convert  a trace into atoll's own format, cut, sped up or shrunk on the way; or a model into a trace
  run      drive a server, or virtual engines, with a trace, a model or generated requests: latencies, promises kept

FILE is a trace of BurstGPT, Azure or Mooncake, or atoll's own, plain or gzip; for `show` and `convert` also a model.

  atoll workload show AzureLLMInferenceTrace_code.csv
  atoll workload fit AzureLLMInferenceTrace_code.csv --save code.json
  atoll workload convert code.json burst.jsonl --seconds 600 --scale 4 --seed 7
  atoll workload run http://127.0.0.1:8000 --trace burst.jsonl --shrink 16 --slo ttft=1s,tpot=100ms
  atoll workload run --virtual --cost opt-13b-a100 --engines 4 --trace burst.jsonl --slo ttft=1s,tpot=100ms
"""


def main(argv: list[str]) -> int:
    """Run the sub-command named first."""
    if not argv or argv[0] in ("-h", "--help"):
        say(USAGE.rstrip())
        raise SystemExit(0)
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, 1, 0.0)
        raise InvalidConfig(f"there is no `atoll workload {argv[0]}`; did you mean {near[0]!r}?")
    command, kind = COMMANDS[argv[0]]
    return command(
        parse(kind, argv[1:], prog=f"atoll workload {argv[0]}", description=str(kind.__doc__), env=os.environ).value
    )


def show(settings: ShowSettings) -> int:
    """Print what a trace is like."""
    model = _model(settings.file)
    trace = TraceFile(settings.file, settings.source)
    demands = model.trace(settings.seed) if model else trace
    if model:
        demands = takewhile(lambda demand: demand.arrival.at_s < settings.seconds, demands)
    found = columns(demands)
    parts = describe(found, settings.window)
    title = settings.file.name if not model else f"{settings.file.name}, {settings.seconds:g} s made of it"
    pictures = _pictures(settings.plots, settings.file.name.split(".")[0], {title: found})
    if settings.json:
        for part in parts:
            say(_json({"type": "description", **asdict(part)}))
        if not model:
            say(_json({"type": "rows", "file": str(settings.file), **asdict(trace.tally)}))
    else:
        console = wide_console()
        console.print(tables.of_descriptions(title, parts))
        if not model:
            console.print(tables.rows_text(trace.tally), style="dim", highlight=False)
    _told(pictures, settings.json)
    return 0


def fit(settings: FitSettings) -> int:
    """Compare, fit, save."""
    if _model(settings.file):
        raise InvalidData(f"{settings.file} is a model already; fit takes a trace")
    trace = TraceFile(settings.file, settings.source)
    found = columns(trace)
    window_s = settings.window or window_for(float(found.at_s[-1]))
    model = fit_model(
        found,
        begins_s=trace.tally.begins_s,
        window_s=window_s,
        method=settings.method,
        arrivals=settings.arrivals,
        lengths=settings.lengths,
    )
    try:
        compared = (
            arrivals_held_out(found.at_s, window_s, settings.seed),
            lengths_held_out(found, window_s, settings.seed),
        )
    except InvalidData as error:
        compared = None
        note = str(error)
    path = settings.save or Path(f"{settings.file.name}.model.json")
    atomic_write(path, encode(model))
    span_s = float(found.at_s[-1])
    made = columns(_until(model.trace(settings.seed), span_s, len(found) * 3))
    pictures = _pictures(
        settings.plots,
        f"{settings.file.name.split('.')[0]}-fit",
        {settings.file.name: found, "made by the model": made},
    )
    if settings.json:
        arrivals, lengths = compared or ([], [])
        for row in arrivals:
            say(_json({"type": "arrivals", **asdict(row)}))
        for line in lengths:
            say(_json({"type": "lengths", **asdict(line)}))
        if not compared:
            say(_json({"type": "note", "note": note}))
    else:
        console = wide_console()
        console.print(
            tables.of_held_out(settings.file.name, window_s, *compared) if compared else f"{note}: not compared"
        )
        console.print(tables.of_model(model))
    _told({"model": path, **pictures}, settings.json)
    return 0


def convert(settings: ConvertSettings) -> int:
    """Read or make, edit, write."""
    for name, value in (("scale", settings.scale), ("shrink", settings.shrink)):
        if not 0 < value < math.inf:
            raise InvalidConfig(f"--{name} is {value}; it must be finite and above 0")
    model = _model(settings.file)
    trace = TraceFile(settings.file, settings.source)
    if model and settings.seconds == math.inf and not settings.requests:
        raise InvalidConfig("a model makes requests without end: give --seconds or --requests")
    counts: Counter[str] = Counter()
    demands: Iterator[Demand] = model.trace(settings.seed, settings.scale) if model else iter(trace)
    demands = edits.selected(
        demands,
        start_s=settings.start,
        end_s=settings.start + settings.seconds,
        model=settings.model,
        service=settings.service,
    )
    if settings.drop_failed:
        demands = edits.work(demands, counts)
    if settings.scale != 1 and not model:
        demands = edits.faster(demands, settings.scale)
    if settings.shrink != 1:
        demands = edits.smaller(demands, settings.shrink)
    if settings.cap_prompt or settings.cap_output:
        most = 1 << 30
        demands = edits.capped(demands, counts, settings.cap_prompt or most, settings.cap_output or most)
    if settings.requests:
        demands = islice(demands, settings.requests)
    written: Counter[str] = Counter()
    week_s = 7 * 86400
    save(
        settings.out,
        lines.write(_counted(demands, written), lambda: (trace.tally.begins_s + settings.start) % week_s),
    )
    if settings.json:
        rows = {} if model else asdict(trace.tally)
        say(_json({"out": str(settings.out), "requests": written["requests"], "edits": dict(counts), "rows": rows}))
    else:
        if not model:
            say(tables.rows_text(trace.tally))
        said = "".join(f", {n} {why}" for why, n in sorted(counts.items()))
        say(f"{settings.out}: {written['requests']} requests{said}")
    return 0


COMMANDS: Final[dict[str, tuple[Callable[[Any], int], type]]] = {
    "show": (show, ShowSettings),
    "fit": (fit, FitSettings),
    "convert": (convert, ConvertSettings),
    "run": (drive, RunSettings),
}


def _model(path: Path) -> Model | None:
    """The model in that file; None where it holds none."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
            if not head.lstrip().startswith(b"{") or b'"atoll-workload"' not in head:
                return None
            return decode(head + file.read(1 << 28))
    except OSError as error:
        raise InvalidData(f"{path}: can't be read: {error.strerror}") from error
    except InvalidData as error:
        raise InvalidData(f"{path}: {error}") from error


def _until(demands: Iterator[Demand], span_s: float, most: int) -> Iterator[Demand]:
    return takewhile(lambda demand: demand.arrival.at_s <= span_s, islice(demands, most))


def _counted(demands: Iterator[Demand], counts: Counter[str]) -> Iterator[Demand]:
    for number, demand in enumerate(demands):
        counts["requests"] += 1
        yield renumbered(demand, number)


def _pictures(folder: Path | None, stem: str, traces: dict[str, Columns]) -> dict[str, Path]:
    """The plots drawn, by what they show; none where none are wanted or nothing can draw them."""
    if folder is None or folder.name.lower() == "none":
        return {}
    try:
        import matplotlib  # noqa: F401
    except ImportError:
        return {}
    from atoll.workload import pictures

    folder.mkdir(parents=True, exist_ok=True)
    answered = {name: found.where(~found.failed) for name, found in traces.items() if not found.failed.all()}
    draw: dict[str, Callable[[Path], None]] = {
        "rates": lambda path: pictures.rates(path, {n: f.at_s for n, f in traces.items()}, "Requests per second"),
    }
    if answered:
        draw["prompts"] = partial(
            pictures.lengths, tokens={n: f.prompt for n, f in answered.items()}, title="Length of prompts"
        )
        draw["answers"] = partial(
            pictures.lengths, tokens={n: f.output for n, f in answered.items()}, title="Length of answers"
        )
    drawn = {}
    for what, how in draw.items():
        drawn[f"plot of {what}"] = folder / f"{stem}-{what}.png"
        how(folder / f"{stem}-{what}.png")
    return drawn


def _told(files: dict[str, Path], as_json: bool) -> None:
    for what, path in files.items():
        say(_json({"type": "file", "what": what, "path": str(path)}) if as_json else f"{what}: {path}")


def _json(record: dict[str, Any]) -> str:
    """NaN and infinity become null."""
    return json.dumps(_plain(record), allow_nan=False)


def _plain(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case dict():
            return {key: _plain(item) for key, item in value.items()}
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value
