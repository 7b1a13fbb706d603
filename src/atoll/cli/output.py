"""Driver: lines and tables on standard output, lines at once even into a pipe."""

import os
import sys
from typing import Final

from rich.console import Console

ENDLESS: Final = 10_000
"""Columns."""


def say(line: str) -> None:
    """Print one line and flush."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def wide_console() -> Console:
    """Where tables are printed: as wide as the terminal, or as COLUMNS says; elsewhere nothing is folded, so that
    programs find each row on one line."""
    fits = sys.stdout is None or sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(highlight=False, width=None if fits else ENDLESS)
