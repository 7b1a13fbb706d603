"""Driver: `atoll` commands as a user gives them, to their end, and what they say."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from atoll.errors import AtollError

RUN_S: Final = 900.0
"""By then a command has ended."""


def atoll(
    *words: str, env: Mapping[str, str] | None = None, folder: Path | None = None, timeout_s: float = RUN_S
) -> list[dict[str, Any]]:
    """Of `atoll WORDS --json`, run in a folder: all it says, an object a line. AtollError: it failed, or took longer,
    and why."""
    argv = [sys.executable, "-m", "atoll", *words, "--json"]
    try:
        done = subprocess.run(
            argv,
            env=os.environ | (env or {}),
            cwd=folder,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise AtollError(f"`atoll {' '.join(words[:2])}` took more than {timeout_s:g} s") from None
    if done.returncode:
        why = done.stderr.strip().splitlines()[-1:] or ["it doesn't say why"]
        raise AtollError(f"`atoll {' '.join(words[:2])}` failed: {why[0]}")
    return [json.loads(line) for line in done.stdout.splitlines()]
