"""atoll's own traces come back as they were written, byte by byte the same, and refuse what is none."""

import gzip
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from atoll.errors import InvalidData, SaveFailed
from atoll.workload.api import Arrival, Demand, Tally
from atoll.workload.trace import adapters
from atoll.workload.trace.files import TraceFile, save
from atoll.workload.trace.lines import write

HEADER = '{"format":"atoll-trace","version":1,"begins_s":0.0}'
TWO = [
    Demand(Arrival(0, 0.0, 7, 'a "b", c', (1, 2), 3, "conversation", "GPT-4"), 3, elapsed_s=2.5),
    Demand(Arrival(1, 0.1 + 0.2, 8, "d"), 0, failed=True),
]


def read(*lines: str) -> list[Demand]:
    return list(adapters.read(lines, Tally()))


def test_the_bytes_of_the_format() -> None:
    assert b"".join(write(TWO, lambda: 9.0)).decode().splitlines() == [
        '{"format":"atoll-trace","version":1,"begins_s":9.0}',
        r'{"at_s":0.0,"prompt_tokens":7,"output_tokens":3,"session":"a \"b\", c","turn":3,"service":"conversation",'
        '"model":"GPT-4","elapsed_s":2.5,"hash_ids":[1,2]}',
        '{"at_s":0.30000000000000004,"prompt_tokens":8,"output_tokens":0,"session":"d","failed":true}',
    ]


tokens = st.integers(1, 1 << 30)
texts = st.text('a"\\,é\u2028\n\0', max_size=5)
optional_s = st.none() | st.floats(0, 1e6)


@st.composite
def traces(draw: st.DrawFn) -> list[Demand]:
    times = sorted(draw(st.lists(st.floats(0, 1e9), max_size=20)))
    found = []
    for number, at_s in enumerate(times):
        arrival = Arrival(
            number,
            at_s,
            draw(tokens),
            draw(texts),
            tuple(draw(st.lists(st.integers(0, (1 << 53) - 1), max_size=3))),
            draw(st.integers(0, 99)),
            draw(st.sampled_from(["api", "conversation"])),
            draw(texts),
            draw(tokens),
        )
        failed = draw(st.booleans())
        found.append(Demand(arrival, 0 if failed else draw(tokens), failed, draw(optional_s)))
    return found


@settings(deadline=None)
@given(demands=traces(), begins_s=st.floats(0, 6e5))
def test_what_is_written_comes_back(demands: list[Demand], begins_s: float) -> None:
    written, tally = b"".join(write(demands, lambda: begins_s)), Tally()
    assert list(adapters.read(written.decode().split("\n"), tally)) == demands
    assert (tally.begins_s, tally.read, tally.emitted, tally.format) == (begins_s, len(demands), len(demands), "atoll")
    assert b"".join(write(read(*written.decode().split("\n")), lambda: begins_s)) == written


def test_when_a_trace_begins_is_asked_once_it_is_known() -> None:
    tally = Tally()
    lines = ["Timestamp,Model,Request tokens,Response tokens,Log Type", "77,m,5,6,API log"]
    header, _ = write(adapters.read(lines, tally), lambda: tally.begins_s)
    assert b'"begins_s":77.0' in header


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([HEADER.replace('"version":1', '"version":2')], "this is atoll-trace 2; atoll reads atoll-trace 1"),
        ([HEADER.replace("0.0", "-1.0")], "begins_s=-1.0"),
        (['{"atoll-trace": 1}'], "line 1"),
        ([HEADER, '{"at_s":1,"prompt_tokens":2}'], "line 2: .*output_tokens"),
        ([HEADER, '{"at_s":1,"prompt_tokens":2,"output_tokens":0,"session":""}'], "line 2: column 'output_tokens': 0"),
        ([HEADER, '{"at_s":1,"prompt_tokens":0,"output_tokens":2,"session":""}'], "line 2: column 'prompt_tokens': 0"),
        ([HEADER, '{"at_s":-1,"prompt_tokens":1,"output_tokens":2,"session":""}'], "line 2: column 'at_s': -1.0"),
        ([HEADER, '{"at_s":1,"prompt_tokens":1,"output_tokens":2,"session":"","turn":-1}'], "line 2: columns 'turn'"),
        ([HEADER, '{"at_s":1,"prompt_tokens":1,"output_tokens":2,"session":"","service":"x"}'], "line 2: .*service"),
        (
            [HEADER, *[f'{{"at_s":{t},"prompt_tokens":1,"output_tokens":1,"session":""}}' for t in (2, 1)]],
            "line 3: .*sort",
        ),
        ([HEADER, "[" * 9000], "line 2"),
    ],
)
def test_a_trace_that_is_none_is_refused_by_its_line(lines: list[str], complaint: str) -> None:
    with pytest.raises(InvalidData, match=complaint):
        read(*lines)


def test_files_are_whole_or_as_they_were_and_the_same_for_the_same_trace(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.jsonl", tmp_path / "a.jsonl.gz"
    for path in (plain, packed):
        save(path, write(TWO))
        assert list(TraceFile(path)) == TWO
    assert gzip.decompress(packed.read_bytes()) == plain.read_bytes()
    first = packed.read_bytes()
    save(packed, write(TWO))
    assert packed.read_bytes() == first

    def broken() -> list[Demand]:
        yield TWO[0]  # type: ignore[misc]
        raise InvalidData("half")

    with pytest.raises(InvalidData, match="half"):
        save(plain, write(broken()))
    assert list(TraceFile(plain)) == TWO
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.jsonl", "a.jsonl.gz"]
    with pytest.raises(SaveFailed, match="can't write"):
        save(tmp_path / "none" / "a", write(TWO))


def test_what_json_can_not_hold_is_not_written_as_a_time() -> None:
    lines = b"".join(write([Demand(Arrival(0, math.inf, 1, ""), 1)])).decode().splitlines()
    with pytest.raises(InvalidData):
        read(*lines)
