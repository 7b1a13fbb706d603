"""Driver: the `atoll` command: finds the command named, turns every error into one line and an exit code."""

import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Final

from atoll.cli import signals
from atoll.errors import AtollError, InvalidConfig

COMMANDS: Final = {
    "train": ("atoll.cli.train", "train a model with several peers on this machine"),
    "join": ("atoll.cli.join", "join a group of peers on many machines and train with them"),
    "master": ("atoll.cli.master", "run the master that peers join"),
    "strategies": ("atoll.cli.strategies", "tell which way of training fits a link, and what it would cost"),
    "model": ("atoll.cli.model", "fetch a published model, or list those on this machine"),
    "status": ("atoll.cli.status", "show who is in a group, and how it fares"),
    "serve": ("atoll.cli.serve", "serve a model behind OpenAI's API"),
    "chat": ("atoll.cli.chat", "talk with a model that is served"),
    "workload": (
        "atoll.cli.workload",
        "drive a server with real or made-up requests; look at traces, fit and make them",
    ),
    "doctor": ("atoll.cli.doctor", "tell what this machine can do"),
    "sim": ("atoll.cli.sim.main", "tell what would happen on computers you don't have"),
    "systems": ("atoll.cli.systems", "list the published systems and what works of them"),
    "reproduce": ("atoll.cli.reproduce", "run the claims of a published system on this machine"),
}
USAGE: Final = """usage: atoll COMMAND [options]      (atoll COMMAND --help explains each)

{commands}

on one machine:     atoll train --peers 4 --chaos
on many machines:   atoll master --listen 0.0.0.0:48148 --token-file team.token
       and on each:  atoll join HOST:48148 --token-file team.token
to use it:          atoll serve runs/last, and atoll chat
"""


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command; exits with 0, or 1 for what went wrong, 2 for what was asked wrongly, 130 for Ctrl-C
    and SIGTERM."""
    sys.exit(run(list(sys.argv[1:] if argv is None else argv)))


def run(argv: list[str]) -> int:
    """As `main`, but returns the exit code."""
    debug = "--debug" in argv
    argv = [word for word in argv if word != "--debug"]
    try:
        return _dispatch(argv)
    except InvalidConfig as error:
        return _failed(error, 2, debug)
    except AtollError as error:
        return _failed(error, 1, debug)
    except BrokenPipeError:  # who reads our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # a full disk, say, met where nobody expects one, as by what is printed
        where = f"{error.filename}: " if error.filename else ""
        return _failed(error, 1, debug, f"{where}{error.strerror or error} (--debug shows what met with that)")
    except KeyboardInterrupt:
        return signals.INTERRUPTED


def _dispatch(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help", "help"):
        width = max(map(len, COMMANDS))
        sys.stdout.write(USAGE.format(commands="\n".join(f"  {n:<{width}}  {h}" for n, (_, h) in COMMANDS.items())))
        return 0
    if argv[0] in ("-V", "--version"):
        from atoll.version import VERSION

        sys.stdout.write(f"atoll {VERSION}\n")
        return 0
    if argv[0] not in COMMANDS:
        import difflib

        near = difflib.get_close_matches(argv[0], COMMANDS, 1, 0.0)
        raise InvalidConfig(f"there is no command {argv[0]!r}; did you mean {near[0]!r}? `atoll --help` lists all")
    with signals.interrupting():
        with signals.ending():
            command: Callable[[list[str]], int] = import_module(COMMANDS[argv[0]][0]).main
        return command(argv[1:])


def _failed(error: Exception, code: int, debug: bool, line: str = "") -> int:
    if debug:
        raise error
    logging.getLogger("atoll").info("the command failed", exc_info=error)  # the run's log, if there is one
    sys.stderr.write(f"atoll: {line or error}\n")
    return code
