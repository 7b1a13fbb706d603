"""What was told reaches every sink, and the file survives its writer."""

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.errors import InvalidData, SaveFailed
from atoll.record import JsonlSink, Record, TraceSink, read_jsonl


class Kept:
    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.closed = 0

    def write(self, entry: dict[str, Any]) -> None:
        self.entries.append(entry)

    def close(self) -> None:
        self.closed += 1


def test_every_sink_gets_every_entry_with_its_time() -> None:
    one, other = Kept(), Kept()
    clock = iter([1.0, 2.0, 3.0, 4.0])
    record = Record(one, other, now=lambda: next(clock))
    record.count("bytes", 5)
    record.observe("loss", 0.5)
    record.span("rank0", "forward", 0.25, 0.75)
    record.event("lost", peer=3)
    assert one.entries == [
        {"t": 1.0, "type": "count", "name": "bytes", "n": 5},
        {"t": 2.0, "type": "observe", "name": "loss", "value": 0.5},
        {"t": 3.0, "type": "span", "lane": "rank0", "name": "forward", "start": 0.25, "end": 0.75},
        {"t": 4.0, "type": "event", "kind": "lost", "peer": 3},
    ]
    assert other.entries == one.entries


def test_totals_sum_the_counts_alone() -> None:
    record = Record()
    record.count("steps")
    record.count("steps")
    record.count("bytes", 2.5)
    record.observe("loss", 9)
    totals = record.totals()
    assert totals == {"steps": 2, "bytes": 2.5}
    totals["steps"] = 0
    assert record.totals()["steps"] == 2


def test_an_event_can_not_hide_when_and_what_it_is() -> None:
    for taken in ("t", "type"):
        with pytest.raises(TypeError, match=taken):
            Record(Kept()).event("x", **{taken: 1})


def test_threads_lose_no_count_and_never_meet_in_a_sink() -> None:
    class Narrow(Kept):
        inside = met = 0

        def write(self, entry: dict[str, Any]) -> None:
            self.inside += 1
            self.met += self.inside > 1
            super().write(entry)
            self.inside -= 1

    sink = Narrow()
    record = Record(sink)
    start = threading.Barrier(4)

    def tell() -> None:
        start.wait(10)
        for _ in range(2000):
            record.count("n")

    threads = [threading.Thread(target=tell) for _ in range(4)]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)  # so that threads without a lock would meet
    try:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
    finally:
        sys.setswitchinterval(interval)
    assert sink.met == 0
    assert record.totals() == {"n": 8000}
    assert len(sink.entries) == 8000


def test_closing_closes_every_sink_once_even_where_one_fails() -> None:
    class Broken(Kept):
        def close(self) -> None:
            raise SaveFailed("full")

    first, last = Kept(), Kept()
    record = Record(first, Broken(), last)
    with pytest.raises(SaveFailed):
        record.close()
    record.close()
    record.count("late")
    assert (first.closed, last.closed) == (1, 1)
    assert first.entries == []


def test_a_file_gives_back_what_was_told(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    record = Record(JsonlSink(path), now=lambda: 1.5)
    record.observe("loss", np.float32(0.5))
    record.observe("loss", float("nan"))
    record.event("saved", path=Path("x"), text="é\n")
    record.close()
    assert list(read_jsonl(path)) == [
        {"t": 1.5, "type": "observe", "name": "loss", "value": 0.5},
        {"t": 1.5, "type": "observe", "name": "loss", "value": None},
        {"t": 1.5, "type": "event", "kind": "saved", "path": "x", "text": "é\n"},
    ]
    assert path.read_bytes().count(b"\n") == 3


def test_a_killed_process_leaves_what_it_told(tmp_path: Path) -> None:
    path = tmp_path / "r.jsonl"
    program = (
        "import os, sys; from pathlib import Path; from atoll.record import *\n"
        "r = Record(JsonlSink(Path(sys.argv[1])))\n"
        "for i in range(100): r.count('n')\n"
        "os._exit(9)"  # neither close nor interpreter clean-up, as after kill -9
    )
    assert subprocess.run([sys.executable, "-c", program, str(path)], check=False).returncode == 9
    assert len(list(read_jsonl(path))) == 100


@pytest.mark.parametrize("torn", ['{"t":3,"ty', "{", '{"t":"é'])
def test_a_torn_last_line_is_left_out_and_written_over(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"t":1}\n{"t":2}\n' + torn.encode()[:-1])
    assert list(read_jsonl(path)) == [{"t": 1}, {"t": 2}]
    sink = JsonlSink(path)
    sink.write({"t": 4})
    sink.close()
    assert list(read_jsonl(path)) == [{"t": 1}, {"t": 2}, {"t": 4}]


@pytest.mark.parametrize("line", [b"{", b"[1]", b"\xff", b""])
def test_any_other_bad_line_is_named(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "r.jsonl"
    path.write_bytes(b'{"t":1}\n' + line + b'\n{"t":2}\n')
    with pytest.raises(InvalidData, match=r"r\.jsonl, line 2"):
        list(read_jsonl(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match=r"absent\.jsonl"):
        list(read_jsonl(tmp_path / "absent.jsonl"))
    with pytest.raises(SaveFailed, match=r"r\.jsonl"):
        JsonlSink(tmp_path / "absent" / "r.jsonl")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_reported() -> None:
    sink = JsonlSink(Path("/dev/full"))
    with pytest.raises(SaveFailed, match="/dev/full"):
        sink.write({"t": 1})
    with pytest.raises(SaveFailed):
        sink.close()


def traced(path: Path, tell: Callable[[Record], None], now: Callable[[], float] = lambda: 2.0) -> list[dict[str, Any]]:
    record = Record(TraceSink(path), now=now)
    tell(record)
    record.close()
    events: list[dict[str, Any]] = json.loads(path.read_text())["traceEvents"]
    return events


def test_a_trace_has_bars_marks_and_curves_in_order_of_time(tmp_path: Path) -> None:
    def tell(record: Record) -> None:
        record.observe("link a->b/bytes per s", 7.0)
        record.span("host0/program", "computing", 1.0, 1.5)
        record.event("crash", lane="host0/events", why="spot")
        record.count("steps/done", 2)
        record.count("steps/done", 3)

    events = traced(tmp_path / "trace.json", tell)
    shown = [(e["ph"], e["name"], e["ts"]) for e in events if e["ph"] != "M"]
    assert shown == [
        ("X", "computing", 1e6), ("C", "bytes per s", 2e6), ("i", "crash", 2e6), ("C", "done", 2e6), ("C", "done", 2e6)
    ]  # fmt: skip
    assert next(e for e in events if e["ph"] == "X")["dur"] == 0.5e6
    assert [e["args"] for e in events if e["ph"] == "C"] == [{"bytes per s": 7.0}, {"done": 2}, {"done": 5}]
    assert next(e for e in events if e["ph"] == "i")["args"] == {"why": "spot"}


def test_lanes_of_a_trace_are_threads_of_named_processes(tmp_path: Path) -> None:
    def tell(record: Record) -> None:
        for lane in ("host0/program", "host1/program", "host0/disk", "alone"):
            record.span(lane, "x", 0.0, 1.0)

    events = traced(tmp_path / "trace.json", tell)
    named = {e["args"]["name"]: e["pid"] for e in events if e["name"] == "process_name"}
    assert list(named) == ["host0", "host1", "alone"]
    bars = [e for e in events if e["ph"] == "X"]
    assert [bar["pid"] for bar in bars] == [named["host0"], named["host1"], named["host0"], named["alone"]]
    assert len({(bar["pid"], bar["tid"]) for bar in bars}) == 4


def test_a_trace_that_cannot_be_written_fails_before_the_run(tmp_path: Path) -> None:
    with pytest.raises(SaveFailed, match="choose another folder"):
        TraceSink(tmp_path / "gone" / "trace.json")
