"""Driver: `atoll systems`."""

import json
import os
from dataclasses import asdict, dataclass

from rich.table import Table
from rich.text import Text

from atoll.cli.output import say, wide_console
from atoll.config import parse
from atoll.reproduce.systems import PARTS, SYSTEMS


@dataclass(frozen=True)
class SystemsSettings:
    """The published systems atoll is made of, and below them what several share: where each lives, what it gives, how
    far it is."""

    json: bool = False
    """One JSON object per system."""


def main(argv: list[str]) -> int:
    """Print the registry."""
    settings = parse(
        SystemsSettings, argv, prog="atoll systems", description=str(SystemsSettings.__doc__), env=os.environ
    ).value
    if settings.json:
        for system in SYSTEMS:
            say(json.dumps(asdict(system)))
        return 0
    table = Table(box=None, pad_edge=False)
    for column in ("system", "status", "room", "what it gives"):
        table.add_column(column, overflow="fold" if column == "what it gives" else "ellipsis")
    colours = {"works": "green", "partly": "yellow", "planned": "dim"}
    for system in SYSTEMS:
        table.add_row(system.slug, Text(system.status, style=colours[system.status]), system.room, system.what)
    table.add_section()
    for part in PARTS:
        table.add_row(part.slug, Text(part.status, style=colours[part.status]), part.room, part.what)
    console = wide_console()
    console.print(table)
    counts = {status: sum(s.status == status for s in SYSTEMS) for status in colours}
    console.print(", ".join(f"{n} {status}" for status, n in counts.items()), style="dim")
    return 0
