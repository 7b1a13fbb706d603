"""Driver: what happened during a run, as entries that go to any number of sinks.

A program, an actor and the wire thread may tell the same `Record`; each entry reaches every sink whole and in order.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Protocol

import msgspec

from atoll.errors import InvalidData, SaveFailed

Entry = dict[str, Any]


class Sink(Protocol):
    """Where entries go: a file, a metrics page, a trace, a live view. Never called by two threads at once."""

    def write(self, entry: Entry) -> None: ...
    def close(self) -> None: ...


class Record:
    """Tells `sinks` what happened. Every entry has `t` (seconds, by `now`) and `type` (the method's name)."""

    def __init__(self, *sinks: Sink, now: Callable[[], float] = time.time) -> None:
        self._sinks = sinks
        self._now = now
        self._totals: defaultdict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def count(self, name: str, n: float = 1) -> None:
        """`n` more of `name`: bytes sent, steps done, peers lost."""
        with self._lock:
            self._totals[name] += n
            self._write(type="count", name=name, n=n)

    def observe(self, name: str, value: float) -> None:
        """One measurement of `name`: a loss, a latency in seconds."""
        with self._lock:
            self._write(type="observe", name=name, value=value)

    def span(self, lane: str, name: str, start: float, end: float) -> None:
        """`name` kept `lane` busy from `start` to `end`, in seconds by the clock of `now`."""
        with self._lock:
            self._write(type="span", lane=lane, name=name, start=start, end=end)

    def event(self, kind: str, **fields: Any) -> None:
        """Something of its own kind; `fields` (not `t` or `type`) stand beside it in the entry."""
        with self._lock:
            self._write(type="event", kind=kind, **fields)

    @property
    def heard(self) -> bool:
        """Is there a sink? If not, nobody need look for what to tell."""
        return bool(self._sinks)

    def totals(self) -> dict[str, float]:
        """The sum of all counts so far, by name."""
        with self._lock:
            return dict(self._totals)

    def close(self) -> None:
        """Close the sinks; what is told afterwards is counted and goes nowhere. May be called again."""
        with self._lock, ExitStack() as closing:  # all of them, even where one fails
            for sink in self._sinks:
                closing.callback(sink.close)
            self._sinks = ()

    def _write(self, **entry: Any) -> None:
        if self._sinks:
            stamped = dict(t=self._now(), **entry)
            for sink in self._sinks:
                sink.write(stamped)


class JsonlSink:
    """One JSON object per line, appended to `path`; a killed process leaves whole lines but for the last.

    NaN and infinity become null. Raises `SaveFailed` where the file can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            _drop_torn_line(path)
            self._file = path.open("ab")
        except OSError as error:
            raise _cant_write(self._path, error) from error

    def write(self, entry: Entry) -> None:
        line = msgspec.json.encode(entry, enc_hook=_plain) + b"\n"
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise _cant_write(self._path, error) from error

    def close(self) -> None:
        try:
            self._file.close()
        except OSError as error:
            raise _cant_write(self._path, error) from error


class TraceSink:
    """A timeline for ui.perfetto.dev or chrome://tracing, written to `path` at the end, in order of time.

    A lane is "process/thread": a node and what runs on it. A span is a bar, an `event` a mark (`lane` says where), an
    observation or a count a curve, named "process/curve". Raises `SaveFailed` where the file can't be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._file = path.open("wb")
        except OSError as error:
            raise _cant_write(path, error) from error
        self._entries: list[Entry] = []
        self._tracks: dict[str, Entry] = {}
        self._totals: defaultdict[str, float] = defaultdict(float)

    def write(self, entry: Entry) -> None:
        match entry:
            case {"type": "span", "lane": lane, "name": name, "start": start, "end": end}:
                times = {"ts": _microseconds(start), "dur": _microseconds(end) - _microseconds(start)}
                self._entries.append({"ph": "X", "name": name, **times, **self._track(lane)})
            case {"type": "event", "kind": kind, "t": at, **rest}:
                track = self._track(rest.pop("lane", "all/events"))
                args = {key: value for key, value in rest.items() if key != "type"}
                self._entries.append(
                    {"ph": "i", "s": "t", "name": kind, "ts": _microseconds(at), **track, "args": args}
                )
            case {"type": "observe", "name": name, "value": value, "t": at}:
                self._curve(name, at, value)
            case {"type": "count", "name": name, "n": n, "t": at}:
                self._totals[name] += n
                self._curve(name, at, self._totals[name])

    def close(self) -> None:
        names = [*self._tracks.values(), *sorted(self._entries, key=lambda e: e["ts"])]
        trace = {"displayTimeUnit": "ms", "traceEvents": names}
        try:
            with self._file:
                self._file.write(msgspec.json.encode(trace, enc_hook=_plain))
        except OSError as error:
            raise _cant_write(self._path, error) from error

    def _curve(self, name: str, at: float, value: float) -> None:
        process, _, curve = name.rpartition("/")
        track = self._track(f"{process or name}/{curve}")
        self._entries.append({"ph": "C", "name": curve, "ts": _microseconds(at), **track, "args": {curve: value}})

    def _track(self, lane: str) -> dict[str, int]:
        """Numbers for both halves of a lane's name; the format wants a word on each."""
        process, _, thread = lane.partition("/")
        pid = self._number("process_name", process, process)
        return {"pid": pid, "tid": self._number("thread_name", f"{process}/{thread}", thread, pid)}

    def _number(self, kind: str, key: str, name: str, pid: int | None = None) -> int:
        number = len(self._tracks) + 1
        place = {"pid": number if pid is None else pid, "tid": 0 if pid is None else number}
        made = {"ph": "M", "name": kind, "ts": 0, **place, "args": {"name": name}}
        found: int = self._tracks.setdefault(f"{kind} {key}", made)["pid" if pid is None else "tid"]
        return found


def _microseconds(seconds: float) -> float:
    """To the nanosecond."""
    return round(seconds * 1e9) / 1e3


def read_jsonl(path: Path) -> Iterator[Entry]:
    """The entries of a file of `JsonlSink`, without a last line its writer did not finish.

    Raises `InvalidData` where there is no such file, or where any other line is no JSON object.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise InvalidData(f"can't read {path}: {error.strerror}") from error
    with file:
        for number, line in enumerate(file, start=1):
            try:
                yield msgspec.json.decode(line, type=Entry)
            except msgspec.DecodeError as error:
                if not line.endswith(b"\n"):
                    return
                raise InvalidData(f"{path}, line {number}, is no JSON object: {error}") from error


def _drop_torn_line(path: Path) -> None:
    """So that the next entry is not glued to what a killed writer left."""
    if not path.is_file():
        return
    with path.open("r+b") as file:
        file.truncate(sum(len(line) for line in file if line.endswith(b"\n")))


def _cant_write(path: Path, error: OSError) -> SaveFailed:
    return SaveFailed(f"can't write {path}: {error.strerror}; free some space or choose another folder")


def _plain(value: Any) -> Any:
    """For msgspec: numbers of NumPy and torch as Python's, all else by its text."""
    return value.item() if hasattr(value, "item") else str(value)
