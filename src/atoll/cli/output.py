"""Driver: lines on standard output, at once even into a pipe."""

import sys


def say(line: str) -> None:
    """Print one line and flush."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()
