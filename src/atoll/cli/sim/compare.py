"""Driver: `atoll sim compare`."""

import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from atoll.cli.output import say, wide_console
from atoll.config import parse
from atoll.reproduce.calibration.compare import Comparison, compare, read_values


@dataclass(frozen=True, kw_only=True)
class CompareSettings:
    """How far a simulated run is from a real one: per metric the mean and three percentiles, each with its error.

    Both files are records (`record.jsonl` of a run). Exits with 1 if a metric is in one of them only.
    """

    real: Positional[Path]
    """What was measured."""
    sim: Positional[Path]
    """What was simulated."""
    json: bool = False
    """One JSON object per metric."""


def main(argv: list[str]) -> int:
    """Read, compare, print."""
    settings = parse(
        CompareSettings, argv, prog="atoll sim compare", description=str(CompareSettings.__doc__), env=os.environ
    ).value
    rows, only_real, only_sim = compare(read_values(settings.real), read_values(settings.sim))
    if settings.json:
        for row in rows:
            say(json.dumps(asdict(row)))
        for name in only_real:
            say(json.dumps({"metric": name, "missing_in": "sim"}))
        for name in only_sim:
            say(json.dumps({"metric": name, "missing_in": "real"}))
    else:
        if rows:
            wide_console().print(_table(rows, settings.real, settings.sim))
        for names, path in ((only_real, settings.sim), (only_sim, settings.real)):
            if names:
                say(f"missing in {path}: {', '.join(names)}")
    return 1 if only_real or only_sim or not rows else 0


def _table(rows: list[Comparison], real: Path, sim: Path) -> Table:
    title = f"{sim.name} (simulated) against {real.name} (real)"
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    table.add_column("metric")
    for column in ("", "real", "simulated", "error"):
        table.add_column(column, justify="right")
    for row in rows:
        first = True
        for name, pair in row.figures.items():
            label = f"{row.metric} ({row.real_count} | {row.sim_count})" if first else ""
            error = "" if pair.error is None else f"{pair.error:+.1%}"
            table.add_row(label, name, f"{pair.real:.4g}", f"{pair.sim:.4g}", Text(error))
            first = False
    return table
