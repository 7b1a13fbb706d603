"""Driver: `atoll reproduce`."""

import json
import os
import sys
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from atoll.cli.output import say, wide_console
from atoll.config import parse
from atoll.reproduce.api import Line
from atoll.reproduce.demonstrations import demonstrated
from atoll.reproduce.systems import by_slug


@dataclass(frozen=True, kw_only=True)
class ReproduceSettings:
    """Run the claims of a published system on this machine: claim, what was expected, what was measured, verdict.

    Exits with 1 if a line fails, or a part of them can't be run to its end. A line that says "not yet" names what is
    missing.
    """

    slug: Positional[str]
    """Which system; `atoll systems` lists them."""
    full: bool = False
    """Everything, however long it takes."""
    only: tuple[str, ...] = ()
    """Some parts alone, by the numbers of their lines: 3 8j."""
    seed: int = 1
    json: bool = False
    """One JSON object per line of the table."""


def main(argv: list[str]) -> int:
    """Run and print."""
    settings = parse(
        ReproduceSettings, argv, prog="atoll reproduce", description=str(ReproduceSettings.__doc__), env=os.environ
    ).value
    console = Console(stderr=True)
    lines: list[Line] = []
    try:
        with console.status("") if console.is_terminal and not settings.json else _Quiet() as status:
            for line in demonstrated(settings.slug, settings.full, settings.seed, status.update, settings.only):
                lines.append(line)
                if settings.json:
                    say(json.dumps({"system": settings.slug, **asdict(line)}))
    finally:  # Ctrl-C after an hour, too
        if lines and not settings.json:
            wide_console().print(_table(settings.slug, lines))
    return 1 if any(line.verdict == "fail" for line in lines) else 0


class _Quiet:
    """Stands for a spinner where nobody looks: says what goes on in plain lines on standard error."""

    def __enter__(self) -> "_Quiet":
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to clear."""

    def update(self, text: str) -> None:
        sys.stderr.write(text + "\n")
        sys.stderr.flush()


def _table(slug: str, lines: list[Line]) -> Table:
    system = by_slug(slug)
    table = Table(title=f"{system.title}: {system.status}", title_justify="left")
    for column in ("", "claim", "expected", "measured here", "verdict", ""):
        table.add_column(column)
    colours = {"pass": "green", "fail": "bold red", "not yet": "yellow"}
    for line in lines:
        verdict = Text(line.verdict, style=colours[line.verdict])
        table.add_row(line.number, line.claim, line.expected, line.measured, verdict, line.kind)
    return table
