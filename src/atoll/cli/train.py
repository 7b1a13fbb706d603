"""Driver: `atoll train`: a whole group on this machine, to see it work and to train for real on one."""

import os
import shutil
from dataclasses import dataclass, fields
from functools import reduce
from importlib import import_module
from pathlib import Path

from rich.console import Console

from atoll import log
from atoll.cli.asynchronous import serve
from atoll.cli.guarded import Guarded
from atoll.cli.history import History
from atoll.cli.launch import Launch, run_local
from atoll.cli.live import JsonView, view_for
from atoll.config import Resolved, RunDir, parse, resolve
from atoll.errors import InvalidConfig, InvalidData
from atoll.net.address import parse_address
from atoll.net.guard import is_local
from atoll.train.limits import flag
from atoll.train.one_byte.rounds import NAME as LOG
from atoll.train.settings import TrainSettings, check_typed


@dataclass(frozen=True, kw_only=True)
class LocalSettings(Guarded, TrainSettings):
    """Train one model with several peers on this machine, and see what the group goes through.

    Everything lands in runs/NAME: settings, logs, checkpoints, the loss curve, and the model, which Hugging Face
    tools load.
    """

    peers: int = 4
    """How many processes train. 0 with --strategy diloco-server: only serve those that come from elsewhere, by
    `atoll join HOST:PORT --strategy diloco-server` and the same training flags."""
    listen: str = "127.0.0.1:0"
    """HOST:PORT of the server (diloco-server). 0.0.0.0:48148 lets others join, and needs a --token-file."""
    chaos: bool = False
    """Kill one peer with SIGKILL a third of the way, and let another one join."""
    name: str | None = None
    """Of the run. Default: the date and time."""
    resume: str | None = None
    """Go on with that run (a name, a path, or "last") from its newest checkpoint, with its settings; from the start
    if it has none yet. Or with the log of a one-byte run, a file, and the flags given here."""
    json: bool = False
    """Print one JSON object per event, a summary last."""

    def __post_init__(self) -> None:
        super().__post_init__()
        serves = self.strategy == "diloco-server"
        if not 0 <= self.peers <= 64 or (self.peers == 0 and not serves):
            raise InvalidConfig(f"--peers must be from 1 to 64, or 0 with --strategy diloco-server, not {self.peers}")
        host, _ = parse_address(self.listen)
        if not is_local(host) and not (serves and self.token_file):
            raise InvalidConfig(
                f"--listen {self.listen} is for --strategy diloco-server, and with a --token-file: whoever reaches it "
                "could otherwise read the model and change it"
            )


def main(argv: list[str]) -> int:
    """Make or open the run, then launch it."""
    found = parse(LocalSettings, argv, prog="atoll train", description=str(LocalSettings.__doc__), env=os.environ)
    settings = found.value
    if settings.resume is None:
        check_typed(settings.strategy, found.typed)
    settings.token()  # before peers are started that would all say what is wrong with it
    settings.tls()
    plain = TrainSettings(**{f.name: getattr(settings, f.name) for f in fields(TrainSettings)})
    _look_up(plain)
    log_given = settings.resume is not None and Path(settings.resume).is_file()
    if log_given:  # of one-byte, which says all but the flags
        if plain.strategy != "one-byte":
            raise InvalidConfig(
                f"--resume {settings.resume} is a file: the log of a one-byte run goes with --strategy one-byte and "
                "the flags of that run; of all others name the run"
            )
        run = RunDir.create(Path("runs"), settings.name)
        run.write_config(plain)
        shutil.copyfile(str(settings.resume), run.checkpoint / LOG)
    elif settings.resume is not None:
        run = RunDir.open(Path("runs"), settings.resume)
        plain = resolve(TrainSettings, file=run.config, env={}, prog="atoll train").value
        _same(found, plain, run)
    else:
        run = RunDir.create(Path("runs"), settings.name)
        run.write_config(plain)
    saved = any(run.checkpoint.glob("step-*.safetensors")) or (run.checkpoint / LOG).exists()
    resume = settings.resume is not None and saved
    title = f"atoll train: {run.path.name}, {plain.strategy}"
    if settings.resume is not None and not resume:
        title += ", from the start, for it has saved no checkpoint yet"
    log.setup(run.path, debug=False)
    history, console = History(plain.steps), Console()
    view = JsonView(history, console) if settings.json else view_for(history, title, console)
    if settings.peers == 0:
        return serve(settings.listen, plain, run, resume, settings, history, view, not settings.json)
    launch = Launch(
        peers=settings.peers,
        chaos=settings.chaos,
        run=run,
        resume=resume,
        steps=plain.steps,
        seed=plain.seed,
        serve_at=settings.listen if plain.strategy == "diloco-server" else "",
        guard=tuple(settings.flags()),
    )
    return run_local(launch, history, view)


def _same(given: Resolved[LocalSettings], saved: TrainSettings, run: RunDir) -> None:
    """A run goes on as it began. InvalidConfig: a flag says otherwise."""
    for name in given.typed:
        path = name.split(".")
        if hasattr(saved, path[0]):
            now, then = reduce(getattr, path, given.value), reduce(getattr, path, saved)
            if now != then:
                raise InvalidConfig(
                    f"--resume: {run.path.name} goes on with its own {flag(name)} {then}, not with {now}; leave it out"
                )


def _look_up(settings: TrainSettings) -> None:
    """What is named must be there, before peers are started that would all say so."""
    for path in settings.text:
        if not path.exists():
            raise InvalidData(f"{path}: there is no such file or folder")
        if not (path.is_file() or path.is_dir()):
            raise InvalidData(f"{path}: is neither a file nor a folder")
    if settings.model.name:
        import_module("atoll.model.store").find(settings.model.name)  # loads torch
    if settings.task:
        tasks = import_module("atoll.train.tasks")
        if settings.task != tasks.DOCSTRINGS:
            tasks.labelled(settings.task)
