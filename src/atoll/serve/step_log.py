"""Driver: an engine's steps in a file: one JSON object for each thing that happened. See `steps`."""

import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from atoll.cost import Op
from atoll.endpoint.api import Delta, Request, Tokens
from atoll.errors import InvalidData
from atoll.record import JsonlSink, Record, read_jsonl
from atoll.serve.engine import Engine
from atoll.serve.scheduler import Step
from atoll.serve.steps import Begun, Came, Ended, Entry, Steps, Taken


class StepLog:
    """Watches `engine` and writes to `path`. SaveFailed where that can't be written."""

    def __init__(self, path: Path, engine: Engine, kernel: str) -> None:
        self._record = Record(JsonlSink(path))
        self._now_ns = 0
        self._step: tuple[tuple[tuple[str, int], ...], Op] | None = None
        self._said: dict[str, int] = {}
        engine.watch = self._watch
        self._write(Begun(engine.model.pages, engine.model.config.context, engine.limits, kernel))

    def mark(self) -> None:
        """Now one step is over and the next may begin; who comes, comes now."""
        began_ns, self._now_ns = self._now_ns, time.monotonic_ns()
        if self._step is not None:
            self._write(Taken(began_ns, self._now_ns, *self._step))
            self._step = None

    def came(self, request: Request) -> None:
        """It was taken."""
        self._said[request.id] = 0
        prompt = request.prompt.tokens if isinstance(request.prompt, Tokens) else ()
        self._write(Came(self._now_ns, request.id, len(prompt)))

    def dropped(self, id: str) -> None:
        """Nobody wants it."""
        if id in self._said:
            self._write(Ended(self._now_ns, id, self._said.pop(id), True))

    def said(self, deltas: Iterable[tuple[str, Delta]]) -> None:
        """What came of a step."""
        for id, delta in deltas:
            self._said[id] += len(delta.tokens)
            if delta.finish is not None:
                self._write(Ended(self._now_ns, id, self._said.pop(id), False))

    def _watch(self, step: Step) -> None:
        self._step = tuple((run.sequence.id, len(run.tokens)) for run in step.runs), step.operation()

    def _write(self, entry: Entry) -> None:
        self._record.event(**msgspec.to_builtins(entry))


def read_steps(path: Path) -> Steps:
    """InvalidData: it is no such file, or of more than one engine."""
    by_kind: dict[type, list[Any]] = {Begun: [], Came: [], Taken: [], Ended: []}
    try:
        for entry in read_jsonl(path):
            found = msgspec.convert(entry, Entry)
            by_kind[type(found)].append(found)
    except msgspec.ValidationError as error:
        raise InvalidData(
            f"{path} is no record of an engine's steps ({error}); `atoll serve --record` makes one"
        ) from error
    if len(by_kind[Begun]) != 1:
        raise InvalidData(f"{path} tells of {len(by_kind[Begun])} engines; record one at a time, each to a new file")
    ended = {each.id: each for each in by_kind[Ended]}
    return Steps(by_kind[Begun][0], tuple(by_kind[Came]), tuple(by_kind[Taken]), ended)
