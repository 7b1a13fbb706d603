"""Driver: `atoll sim keys`: what may stand in a scenario."""

import json
import os
from dataclasses import dataclass

from rich.table import Table
from rich.text import Text
from tyro.conf import Positional

from atoll.cli.output import say, wide_console
from atoll.config import parse
from atoll.errors import InvalidConfig
from atoll.reproduce.scenario.keys import keys


@dataclass(frozen=True, kw_only=True)
class KeysSettings:
    """List the keys a scenario may have: type, default, meaning."""

    word: Positional[str] = ""
    """Only keys and tables with this in them."""
    json: bool = False
    """One JSON object per key."""


def main(argv: list[str]) -> int:
    """Print them."""
    settings = parse(KeysSettings, argv, prog="atoll sim keys", description=str(KeysSettings.__doc__), env=os.environ)
    word = settings.value.word
    found = [key for key in keys() if word in key.name]
    if not found:
        raise InvalidConfig(f"no key has {word!r} in it; `atoll sim keys` lists all")
    if settings.value.json:
        for key in found:
            say(json.dumps(key._asdict()))
        return 0
    table = Table("key", "type", "default", "")
    for key in found:
        head = "bold" if not key.kind else ""
        table.add_row(*(Text(text) for text in key), style=head)
    wide_console().print(table)
    return 0
