"""Driver: `--strategy diloco-server` from the command line: its server, and one worker."""

import asyncio
import signal
import sys
import time
from collections.abc import Callable, Coroutine
from contextlib import suppress
from importlib import import_module
from typing import Any, Final

from atoll.cli import signals
from atoll.cli.guarded import Guarded
from atoll.cli.history import History
from atoll.cli.live import View
from atoll.config import RunDir
from atoll.errors import AtollError
from atoll.net.guard import Guard
from atoll.net.streams import Streams
from atoll.runtime.real import RealRuntime
from atoll.train.settings import TrainSettings

LEAVE_S: Final = 8
"""So long it may take to save, or to end a step, once it is told to leave."""
REFRESH_S: Final = 0.25


def serve(
    address: str, plain: TrainSettings, run: RunDir, resume: bool, guarded: Guarded, history: History, view: View,
    summary: bool,
) -> int:  # fmt: skip
    """Serve workers to the end of the run, or until told to leave, which saves."""
    guard = Guard(guarded.token(), guarded.tls())
    with signals.ending():
        import_module("atoll.train.asynchronous.server")  # torch takes a second to load
    from atoll.train.asynchronous.server import Server
    from atoll.train.loop import Folders
    from atoll.train.tasks import task_for
    from atoll.train.text import Corpus

    def report(kind: str, **about: Any) -> None:
        event = {"event": kind, "peer": "server", "at": time.time(), **about}
        if sentence := history.add(event):
            view.note(sentence)
        if kind == "listening":
            view.note(f"listening on {about['address']}; workers come with:  {_joining(about['address'], guarded)}")
        view.event(event)

    async def refresh() -> None:
        while True:
            view.update()
            await asyncio.sleep(REFRESH_S)

    async def main() -> bool:
        shown = asyncio.create_task(refresh())
        try:
            return await server.run(address)
        finally:
            shown.cancel()

    with view:
        try:
            task = task_for(plain, Corpus.read(plain.text or None))
            runtime = RealRuntime(plain.seed, network=Streams(guard))
            server = Server(runtime, plain, task, report, Folders(run.checkpoint, run.model))
            if resume:
                server.resume(run.checkpoint)
            to_the_end = _until_told(main, server.leave)
        except AtollError as error:
            report("failed", error=type(error).__name__, message=str(error))
            raise
    if summary:
        view.summary({"run": str(run.path), **({"model": str(run.model)} if to_the_end else {})})
    return 0 if to_the_end else signals.INTERRUPTED


def work(
    address: str, plain: TrainSettings, guard: Guard, report: Callable[..., None], *, name: str, min_world: int,
    reconnect_s: float,
) -> bool:  # fmt: skip
    """Work for the server there. True: to the end; False: until told to leave."""
    from atoll.train.asynchronous.worker import Worker
    from atoll.train.tasks import task_for
    from atoll.train.text import Corpus

    runtime = RealRuntime(plain.seed, network=Streams(guard))
    task = task_for(plain, Corpus.read(plain.text or None))
    worker = Worker(runtime, plain, task, report, name=name, min_world=min_world, reconnect_s=reconnect_s)
    return _until_told(lambda: worker.run(address), worker.leave)


def _until_told(main: Callable[[], Coroutine[Any, Any, bool]], leave: Callable[[], None]) -> bool:
    """Run it; SIGINT and SIGTERM call `leave`, a second Ctrl-C ends it at once."""

    async def both() -> bool:
        loop, asked = asyncio.get_running_loop(), list[int]()

        def told(number: int, frame: Any) -> None:
            asked.append(number)
            if asked.count(signal.SIGINT) > 1:
                raise KeyboardInterrupt
            with suppress(RuntimeError):  # it ended meanwhile
                loop.call_soon_threadsafe(leave)
            if sys.platform != "win32":
                signal.signal(signal.SIGALRM, signals.interrupt)
                signal.alarm(LEAVE_S)

        with signals.handled(told):
            return await main()

    return asyncio.run(both())


def _joining(address: str, guarded: Guarded) -> str:
    host = address.replace("0.0.0.0", "HOST").replace("[::]", "HOST")
    return " ".join(["atoll join", host, "--strategy diloco-server", *guarded.flags()])
