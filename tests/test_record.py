"""What was told reaches every sink, and the file survives its writer."""

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atoll.errors import InvalidData, SaveFailed
from atoll.record import JsonlSink, Record, read_jsonl


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
