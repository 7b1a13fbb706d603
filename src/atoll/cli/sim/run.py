"""Driver: `atoll sim run`: a scenario, or each point of a sweep over it, in virtual time."""

import json
import os
import shlex
import sys
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional, UseAppendAction

from atoll.cli.output import say, wide_console
from atoll.cli.sim.pictures import draw
from atoll.cli.sim.pool import Point, run_all
from atoll.cli.sim.table import result_table, title
from atoll.config import RunDir, atomic_write, parse
from atoll.errors import AtollError, InvalidConfig
from atoll.reproduce.scenario.api import Result
from atoll.reproduce.scenario.reading import axis, change, read


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """What would happen: a scenario in virtual time, with the very programs and schedules that run for real.

    All that comes out is simulated, and says so; how far it may be off stands beside it where a calibration is given.
    Exits with 1 if a run breaks a law that every run must keep.
    """

    scenario: Positional[Path]
    """A TOML file; `atoll sim keys` lists what may stand in it, examples/scenarios has some."""
    set: UseAppendAction[tuple[str, ...]] = ()
    """KEY=VALUE: change one key, by its dotted name (fabric.oversub=4). May be given again."""
    sweep: UseAppendAction[tuple[str, ...]] = ()
    """KEY=VALUE,VALUE...: a run for each value; of several keys, for each combination."""
    seed: int | None = None
    """Instead of the scenario's own."""
    jobs: int | None = None
    """How many runs at once, each in a process of its own; by default as many as there are cores."""
    trace: Path | None = None
    """Write a timeline for ui.perfetto.dev; of a sweep one for each run, numbered."""
    name: str | None = None
    """Of the run's folder. Default: the date and time."""
    json: bool = False
    """Print one JSON object per run, one that names the plots last."""

    def __post_init__(self) -> None:
        if self.jobs is not None and self.jobs < 1:
            raise InvalidConfig(f"--jobs must be at least 1, not {self.jobs}")


def main(argv: list[str]) -> int:
    """Read all of it, then run all of it."""
    settings = parse(
        RunSettings, argv, prog="atoll sim run", description=str(RunSettings.__doc__), env=os.environ
    ).value
    points = _points(settings)
    folder = RunDir.create(Path("runs"), settings.name)
    atomic_write(folder.config, _kept(settings, argv).encode())
    results = run_all(points, settings.jobs or len(os.sched_getaffinity(0)))
    for result in results:
        if settings.json:
            say(json.dumps({"scenario": settings.scenario.stem} | result.to_json()))
    atomic_write(folder.record, "".join(f"{json.dumps(result.to_json())}\n" for result in results).encode())
    plots, trouble = _draw(folder, settings.scenario.stem, results)
    if settings.json:
        said = {"plots": [str(path) for path in plots], "traces": [str(p.trace) for p in points if p.trace]}
        say(json.dumps({"scenario": settings.scenario.stem, "simulated": True, "run": str(folder.path), **said}))
    else:
        _print(settings.scenario.stem, points, results, plots, folder)
    if trouble:
        sys.stderr.write(f"atoll: {trouble}\n")
    return 0 if all(result.sound for result in results) else 1


def _points(settings: RunSettings) -> list[Point]:
    """Each checked before the first runs."""
    document = read(settings.scenario)
    changes = dict(map(change, settings.set))
    if settings.seed is not None:
        changes["seed"] = settings.seed
    points = document.points(changes, dict(map(axis, settings.sweep)))
    scenarios = [document.scenario({**changes, **point}) for point in points]
    return [
        Point(scenario, point, _trace(settings.trace, number, len(points)))
        for number, (scenario, point) in enumerate(zip(scenarios, points, strict=True), start=1)
    ]


def _trace(path: Path | None, number: int, of: int) -> Path | None:
    return path if path is None or of == 1 else path.with_stem(f"{path.stem}-{number}")


def _kept(settings: RunSettings, argv: list[str]) -> str:
    """What was asked for, and the file it was asked of."""
    return f"# atoll sim run {shlex.join(argv)}\n\n{settings.scenario.read_text('utf-8')}"


def _draw(folder: RunDir, name: str, results: list[Result]) -> tuple[list[Path], str]:
    """The pictures, and why there are none."""
    try:
        return draw(folder.plots, name, results), ""
    except AtollError as error:
        return [], str(error)


def _print(name: str, points: list[Point], results: list[Result], plots: list[Path], folder: RunDir) -> None:
    console = wide_console()
    console.print(title(name, results), style="bold")
    console.print(result_table(results))
    for result in results:
        for check in result.checks:
            if not check.kept:
                console.print(f"[bold red]broken[/]: {check.law}: {check.said} {result.changes or ''}")
    laws = sum(len(result.checks) for result in results)
    kept = sum(check.kept for result in results for check in result.checks)
    console.print(f"{kept} of {laws} self-checks kept: {', '.join(c.law for c in results[0].checks)}", style="dim")
    for warning in dict.fromkeys(w for result in results for w in result.warnings):
        console.print(f"[yellow]warning[/]: {warning}")
    for path in [*plots, *(p.trace for p in points if p.trace)]:
        console.print(str(path), soft_wrap=True)
    console.print(str(folder.path), soft_wrap=True)
