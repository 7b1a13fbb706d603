"""Driver: `atoll join`: one peer of a training run."""

import math
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from importlib import import_module
from itertools import chain, repeat
from pathlib import Path
from typing import Any

from rich.console import Console
from tyro.conf import Positional

from atoll import log
from atoll.cli import signals
from atoll.cli.asynchronous import work
from atoll.cli.guarded import Guarded
from atoll.cli.history import History
from atoll.cli.live import JsonView, view_for
from atoll.config import RunDir, parse
from atoll.errors import AtollError, InvalidConfig
from atoll.group.facade import Group
from atoll.group.joining import join
from atoll.group.wiring.links import CONNECTIONS, MOST_CONNECTIONS
from atoll.group.wiring.wire import RECONNECT_S, parse_addresses
from atoll.net.address import parse_address
from atoll.net.guard import Guard
from atoll.net.tls import Tls
from atoll.train.settings import TrainSettings, check_typed

LEAVE_S = 8
"""So long a peer may take to end its step and to save once it is told to leave. Containers get 10 s, units 20."""


@dataclass(frozen=True, kw_only=True)
class JoinSettings(Guarded, TrainSettings):
    """Join the group of a master and train with it: until the end, or until Ctrl-C or SIGTERM, at which this peer ends
    its step, saves and leaves; a second Ctrl-C ends it at once. Who comes late gets the state.

    All peers need the same training flags and text; a peer that differs is told what differs. Each keeps a run folder;
    the peer of rank 0 saves checkpoints and the model in its own.
    """

    address: Positional[str]
    """HOST:PORT of the master; with a comma after it, of another that stands by. With --strategy diloco-server: of the
    server."""
    reconnect: float = RECONNECT_S
    """Seconds for which a master that is gone is looked for."""
    connections: int = CONNECTIONS
    """TCP connections of a link longer than 5 ms."""
    upload_mbit: float = 0.0
    """Send other machines no more than so many Mbit/s of data. 0: as much as the link takes."""
    name: str = ""
    """How this peer is called in tables and messages. Default: the host's name and the process id."""
    min_world: int = 1
    """Begin when so many peers are there."""
    listen: str = ""
    """HOST:PORT where other peers reach this one. Default: the address that faces the master, any free port."""
    advertise: str = ""
    """HOST:PORT that others are told to dial, where it differs: a forwarded port, say. Port 0: the one of --listen."""
    run_dir: Path | None = None
    """Where to save. Default: a new folder in runs/."""
    resume: bool = False
    """Go on from the newest checkpoint in --run-dir."""
    json: bool = False
    """Print one JSON object per event."""


def main(argv: list[str]) -> int:
    """Train as one peer."""
    found = parse(JoinSettings, argv, prog="atoll join", description=str(JoinSettings.__doc__), env=os.environ)
    settings = found.value
    check_typed(settings.strategy, found.typed)
    parse_addresses(settings.address)
    for address in filter(None, (settings.listen, settings.advertise)):
        parse_address(address)
    if not 0 <= settings.reconnect < math.inf:
        raise InvalidConfig(f"--reconnect is {settings.reconnect:g}: give seconds, or 0 to end with the master")
    if not 1 <= settings.connections <= MOST_CONNECTIONS:
        raise InvalidConfig(f"--connections is {settings.connections}: a link has 1 to {MOST_CONNECTIONS}")
    if not 0 <= settings.upload_mbit < math.inf:
        raise InvalidConfig(f"--upload-mbit is {settings.upload_mbit:g}: give Mbit/s above 0, or 0 for no limit")
    if settings.min_world < 1:
        raise InvalidConfig(f"--min-world is {settings.min_world}: give at least 1")
    token, tls = settings.token(), settings.tls()
    with signals.ending():
        import_module("atoll.train.loop")  # torch takes a second to load: not for --help
    name = settings.name or f"{socket.gethostname()}-{os.getpid()}"
    run = RunDir.at(settings.run_dir) if settings.run_dir else RunDir.create(Path("runs"))
    log.setup(run.path, debug=False)
    history, console = History(settings.steps), Console()
    title = f"atoll join {settings.address}"
    view = JsonView(history, console) if settings.json else view_for(history, title, console)
    with view:

        def report(kind: str, **about: Any) -> None:
            event = {"event": kind, "peer": name, "at": time.time(), **about}
            if sentence := history.add(event):
                view.note(sentence)
            view.event(event)
            view.update()

        view.note(f"looking for the master at {settings.address}; waiting to be let in")
        try:
            to_the_end = _train(settings, token, tls, name, run, report)
        except AtollError as error:
            report("failed", error=type(error).__name__, message=str(error))
            raise
    if not settings.json:
        view.summary({"folder": str(run.path)})
    return 0 if to_the_end else signals.INTERRUPTED


def _train(
    settings: JoinSettings,
    token: bytes | None,
    tls: Tls | None,
    name: str,
    run: RunDir,
    report: Callable[..., None],
) -> bool:
    from atoll.train.loop import Folders, Trainer
    from atoll.train.text import Corpus

    plain = TrainSettings(**{f.name: getattr(settings, f.name) for f in fields(TrainSettings)})
    if plain.strategy == "diloco-server":
        reconnect_s, min_world = settings.reconnect, settings.min_world
        guard = Guard(token, tls)
        return work(settings.address, plain, guard, report, name=name, min_world=min_world, reconnect_s=reconnect_s)
    corpus = Corpus.read(settings.text or None)
    trainer = Trainer(plain, corpus, report, Folders(run.checkpoint, run.model))
    if settings.resume:
        trainer.resume(run.checkpoint)

    worlds = chain([settings.min_world], repeat(1))  # who comes back must not wait for those who have gone

    def enter() -> Group:
        return join(
            settings.address,
            name=name,
            min_world=next(worlds),
            timeout_s=None,
            listen=settings.listen,
            advertise=settings.advertise,
            connections=settings.connections,
            upload_bytes_per_s=settings.upload_mbit * 1e6 / 8 or None,
            reconnect_s=settings.reconnect,
            token=token,
            tls=tls,
        )

    asked: list[int] = []

    def leave(number: int, frame: Any) -> None:
        asked.append(number)
        if not trainer.leave() or asked.count(signal.SIGINT) > 1:  # SIGTERM may come twice: to a job, by its script
            raise KeyboardInterrupt
        if sys.platform != "win32":
            signal.signal(signal.SIGALRM, signals.interrupt)
            signal.alarm(LEAVE_S)

    with signals.handled(leave):
        return trainer.run(enter)
