"""Driver: `atoll sim`: what would happen on computers one does not have; finds the command named."""

import difflib
import sys
from collections.abc import Callable
from importlib import import_module
from typing import Final

from atoll.errors import InvalidConfig

COMMANDS: Final = {
    "run": ("atoll.cli.sim.run", "run a scenario in virtual time: table, plots, trace"),
    "keys": ("atoll.cli.sim.keys", "list the keys a scenario may have"),
    "calibrate": ("atoll.cli.sim.calibrate", "measure this machine, and how well virtual time knows it"),
    "compare": ("atoll.cli.sim.compare", "hold a simulated run against a real one"),
}
USAGE: Final = """usage: atoll sim COMMAND [options]      (atoll sim COMMAND --help explains each)

{commands}

what it would cost:   atoll sim run examples/scenarios/diloco-wan.toml
on another network:   atoll sim run examples/scenarios/allreduce-1024.toml --sweep fabric.oversub=1,2,4,8
"""


def main(argv: list[str]) -> int:
    """Dispatch."""
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        sys.stdout.write(USAGE.format(commands="\n".join(f"  {n:<{width}}  {h}" for n, (_, h) in COMMANDS.items())))
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, 1, 0.0)
        raise InvalidConfig(f"atoll sim has no {argv[0]!r}; did you mean {near[0]!r}? `atoll sim --help` lists all")
    command: Callable[[list[str]], int] = import_module(COMMANDS[argv[0]][0]).main
    return command(argv[1:])
