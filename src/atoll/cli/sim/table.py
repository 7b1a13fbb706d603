"""Driver: simulated runs as a table, marked as such."""

from rich.table import Table

from atoll.reproduce.scenario.api import Result
from atoll.reproduce.scenario.pricing import UNCALIBRATED

SIDE_BY_SIDE = 5
"""So many runs are columns of a table; more are rows."""


def result_table(results: list[Result]) -> Table:
    """Each run: what distinguishes it, what came of it, its hash."""
    figures = list(dict.fromkeys(figure for result in results for figure in result.figures))
    table = Table()
    if len(results) <= SIDE_BY_SIDE:
        table.add_column("")
        for label in labels(results):
            table.add_column(label, justify="right")
        for figure in figures:
            table.add_row(figure, *(_text(result, figure) for result in results))
        table.add_row("seed", *(str(result.seed) for result in results), style="dim")
        table.add_row("event log", *(result.hash[:12] for result in results), style="dim")
        return table
    keys = list(dict.fromkeys(key for result in results for key in result.changes))
    for key in keys:
        table.add_column(_last(key))
    for figure in figures:
        table.add_column(figure, justify="right")
    table.add_column("event log", style="dim")
    for result in results:
        changes = (_short(result.changes.get(key, "")) for key in keys)
        table.add_row(*changes, *(_text(result, figure) for figure in figures), result.hash[:12])
    return table


def title(name: str, results: list[Result]) -> str:
    """Of tables and pictures alike."""
    calibrations = list(dict.fromkeys(result.calibration for result in results))
    return f"{name} (simulated, {' | '.join(calibrations) or UNCALIBRATED})"


def labels(results: list[Result]) -> list[str]:
    """What distinguishes each run, in few words."""
    return [
        ", ".join(f"{_last(key)}={_short(value)}" for key, value in r.changes.items()) or "the run" for r in results
    ]


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _short(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _text(result: Result, figure: str) -> str:
    return result.figures[figure].text if figure in result.figures else ""
