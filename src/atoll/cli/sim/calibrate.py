"""Driver: `atoll sim calibrate`."""

import json
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from atoll.cli.output import say, wide_console
from atoll.config import atomic_write, check_writable, parse
from atoll.errors import InvalidConfig
from atoll.reproduce.calibration import asking, fit
from atoll.reproduce.calibration.api import Calibration
from atoll.reproduce.calibration.calibrate import calibrate, calibrate_engine, with_faults_and_distance
from atoll.reproduce.calibration.measure import FULL, QUICK, fingerprint, machine


@dataclass(frozen=True)
class CalibrateSettings:
    """Measure this machine, fit what the simulator needs to know of it, and tell how far off that is.

    Errors are those on sizes that no fit has seen. Bounds: median 10 %, worst 25 %. Let nothing else run meanwhile.
    """

    out: Path = Path("calib.json")
    """The calibration."""
    engine: str | None = None
    """Measure instead what serving this model takes (`atoll model list`): a server runs, and is asked in rounds. Joins
    what is in the file already."""
    quick: bool = False
    """Few sizes, few repetitions: to see that it works, not what it finds."""
    shaped: bool = True
    """With WAN transfers and a kill, too, where this machine can; not with --quick."""
    json: bool = False
    """One JSON object per row, and one per operation that was predicted."""


def main(argv: list[str]) -> int:
    """Measure, write, print."""
    settings = parse(
        CalibrateSettings, argv, prog="atoll sim calibrate", description=str(CalibrateSettings.__doc__), env=os.environ
    ).value
    progress = Console(stderr=True)

    def tell(text: str) -> None:
        progress.print(text, style="dim")

    known = _known(settings.out)
    check_writable(settings.out)
    if settings.engine is not None:
        found = calibrate_engine(settings.engine, asking.QUICK if settings.quick else asking.FULL, tell)
        joined = found if known is None else replace(known, engines=known.engines | found.engines)
        atomic_write(settings.out, joined.to_json().encode())
        return _told(settings, found)
    found = calibrate(QUICK if settings.quick else FULL, tell)
    if known is not None:
        found = replace(found, engines=known.engines)
    atomic_write(settings.out, found.to_json().encode())
    if settings.shaped and not settings.quick:
        found = with_faults_and_distance(found, tell)
        atomic_write(settings.out, found.to_json().encode())
    return _told(settings, found)


def _known(path: Path) -> Calibration | None:
    """What is there already. InvalidConfig: it is of another machine."""
    if not path.exists():
        return None
    known = Calibration.from_json(path.read_bytes())
    if known.fingerprint != fingerprint(machine()):
        raise InvalidConfig(f"{path} is of another machine, or of other versions; write to another file by --out")
    return known


def _told(settings: CalibrateSettings, found: Calibration) -> int:
    rows = fit.table(found)
    if settings.json:
        for point in found.points:
            say(json.dumps({"type": "point", **asdict(point), "error": point.error}))
        for row in rows:
            say(json.dumps({"type": "row", **asdict(row), "within": row.within}))
        return 0
    wide_console().print(_table(rows, found))
    for line in summary(rows, found):
        say(line)
    say(f"written: {settings.out}")
    return 0


def _table(rows: list[fit.Row], found: Calibration) -> Table:
    title = f"errors on what was held out; {found.machine['cpu']}, {found.machine['cores']} cores, {found.fitted_on}"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("")
    for column in ("points", "median", "p90", "worst"):
        table.add_column(column, justify="right")
    table.add_column("")
    for row in rows:
        table.add_row(
            row.what,
            str(row.points),
            _percent(row.median, row.median_bound),
            f"{row.p90:.1%}",
            _percent(row.worst, row.worst_bound),
            "" if row.kind == "real" else row.kind,
        )
    return table


def _percent(error: float, bound: float) -> Text:
    beyond = error > bound
    return Text(f"{error:.1%}{' !' if beyond else ''}", "bold red" if beyond else "")


def summary(rows: list[fit.Row], found: Calibration) -> list[str]:
    """What the table comes to, in words."""
    beyond = [row for row in rows if not row.within]
    lines = ["! beyond the bound" if beyond else "all within their bounds"]
    for row in beyond:
        bounds = f"wanted {row.median_bound:.0%} and {row.worst_bound:.0%}"
        lines.append(f"{row.what}: median {row.median:.1%}, worst {row.worst:.1%} of {row.points}; {bounds}")
        judged = [point for point in found.points if point.what == row.what and not point.fitted]
        if judged:
            far = max(judged, key=lambda point: point.error)
            lines.append(
                f"  furthest off at {far.nbytes} bytes: {far.measured_s * 1e3:.3g} ms measured, "
                f"{far.predicted_s * 1e3:.3g} predicted"
            )
    if found.quick:
        lines.append("measured quickly: these errors say little")
    return lines
