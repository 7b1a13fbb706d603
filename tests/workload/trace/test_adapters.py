"""Published traces are read by the names of their columns; what is odd is counted, what is damaged is named."""

import gzip
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from atoll.errors import InvalidConfig, InvalidData
from atoll.workload.api import Arrival, Demand, Tally
from atoll.workload.trace import adapters
from atoll.workload.trace.files import LONGEST_LINE, TraceFile

V1 = "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type"
V3 = "Timestamp,Session ID,Elapsed time,Model,Request tokens,Response tokens,Total tokens,Log Type"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens"
SLICE = Path(__file__).parents[2] / "data" / "azure-llm-2023-code-head.csv"


def read(*lines: str) -> tuple[list[Demand], Tally]:
    tally = Tally()
    demands = list(adapters.read([f"{line}\n" for line in lines], tally))
    assert tally.read == tally.emitted + sum(tally.dropped.values())
    assert tally.emitted == len(demands)
    return demands, tally


def test_the_first_release_of_burstgpt() -> None:
    demands, tally = read(V1, "5,ChatGPT,472,18,490,Conversation log", "45,GPT-4,1087,230,1317,API log")
    assert demands == [
        Demand(Arrival(0, 0.0, 472, "#0", service="conversation", model="ChatGPT"), 18),
        Demand(Arrival(1, 40.0, 1087, "#1", model="GPT-4"), 230),
    ]
    assert (tally.format, tally.begins_s) == ("burstgpt", 5.0)
    assert tally.odd == {"a conversation without a session": 1}


def test_the_third_release_has_new_columns_in_the_middle() -> None:
    demands, tally = read(
        V3,
        "19440110.0,s-1,43,GPT-4,906,446,1352,Conversation log",
        "19440161.5,s-2,2,ChatGPT,36,29,65,Conversation log",
        "19440170.0,,1.5,ChatGPT,50,0,50,API log",
        "19440192.0,s-1,7,GPT-4,1400,12,1412,Conversation log",
        "19440193.0,,1,ChatGPT,0,0,0,API log",
    )
    assert demands == [
        Demand(Arrival(0, 0.0, 906, "s-1", (), 0, "conversation", "GPT-4"), 446, False, 43.0),
        Demand(Arrival(1, 51.5, 36, "s-2", (), 0, "conversation", "ChatGPT"), 29, False, 2.0),
        Demand(Arrival(2, 60.0, 50, "#2", model="ChatGPT"), 0, True, 1.5),
        Demand(Arrival(3, 82.0, 1400, "s-1", (), 1, "conversation", "GPT-4"), 12, False, 7.0),
        Demand(Arrival(4, 83.0, 0, "#4", model="ChatGPT"), 0, True, 1.0),
    ]
    assert tally.odd == {"failed": 1, "failed, without input": 1}
    assert tally.begins_s == 19440110 % (7 * 86400)


def test_columns_in_any_order_and_others_between_them() -> None:
    mixed = "Log Type,Response tokens,Cost,Request tokens,Model,Timestamp"
    demands, _ = read(mixed, "API log,7,0.3,5,GPT-4,1")
    assert demands == [Demand(Arrival(0, 0.0, 5, "#0", model="GPT-4"), 7)]


def test_azure_of_both_years() -> None:
    demands, tally = read(AZURE, "2023-11-16 18:17:03.9799600,4808,10", "2023-11-16 18:17:04.0319601,3180,8")
    assert [d.arrival.at_s for d in demands] == [0.0, pytest.approx(0.0520001, abs=1e-9)]
    assert tally.begins_s == pytest.approx(3 * 86400 + 18 * 3600 + 17 * 60 + 3.97996)  # a Thursday
    demands, _ = read(
        AZURE, "2024-05-12 23:59:59.5+00:00,2,3", "2024-05-13 02:00:00+0200,2,3", "2024-05-13T00:00:01Z,2,3"
    )
    assert [d.arrival.at_s for d in demands] == [0.0, 0.5, 1.5]


def test_mooncake() -> None:
    demands, tally = read(
        '{"timestamp": 3000, "input_length": 1053, "output_length": 26, "hash_ids": [0, 773, 774]}',
        "",
        '{"output_length": 2, "input_length": 5, "timestamp": 5999, "unknown": {}}',
    )
    assert demands == [Demand(Arrival(0, 0.0, 1053, "#0", (0, 773, 774)), 26), Demand(Arrival(1, 2.999, 5, "#1"), 2)]
    assert tally.format == "mooncake"


def test_what_is_odd_is_counted_by_reason() -> None:
    _, tally = read(
        f"\ufeff{V1}",
        "1,m,5,6,11,API log",
        "2,m,-5,6,1,API log",
        "3,m,5,-6,1,API log",
        "4,m,0,6,6,API log",
        "3.5,m,5,6,11,API log",
        "",
        "5,m,0,0,0,API log",
    )
    assert (tally.read, tally.emitted) == (6, 3)
    assert tally.dropped == {"negative length": 2, "an answer to an empty prompt": 1}
    assert tally.odd == {"failed, without input": 1}


def test_rows_out_of_order_are_put_in_order_as_far_as_they_are_held() -> None:
    rows = [f"{t},m,{t + 1},1,1,API log" for t in range(3000)]
    near = rows[:]
    random.Random(0).shuffle(near[1000:1500])
    for i in range(0, 3000, 40):
        near[i : i + 40] = near[i : i + 40][::-1]
    demands, tally = read(V1, *near)
    assert [d.arrival.prompt_tokens for d in demands] == list(range(1, 3001))
    assert tally.odd["out of order"] == 75 * 39
    demands, tally = read(V1, *rows, rows[0])
    assert tally.dropped == {"too far out of order": 1}
    demands, tally = read(V1, f"{10**9},m,7,1,1,API log", *rows)  # one far in the future drops nobody else
    assert (len(demands), demands[-1].arrival.prompt_tokens) == (3001, 7)


@pytest.mark.parametrize(
    ("lines", "complaint"),
    [
        ([], "the trace is empty"),
        (["", "\ufeff"], "the trace is empty"),
        (
            [V1.replace("Request tokens", "Input")],
            r"line 1: column 'Request tokens' missing \(found: Timestamp, Model, In",
        ),
        (["time,in,out"], "line 1: column 'Timestamp' missing"),
        (["TIMESTAMP,ContextTokens"], "line 1: column 'GeneratedTokens' missing"),
        ([V1, "1,m,5,6,1,API log", "2,m,5"], r"line 3: column 'Response tokens' missing \(found: 2,m,5\)"),
        ([V1, "1,m,5.5,6,1,API log"], "line 2: column 'Request tokens': '5.5' is no number of tokens"),
        ([V1, "1,m,,6,1,API log"], "line 2: column 'Request tokens': '' is no"),
        ([V1, f"1,m,{10**10},6,1,API log"], "line 2: column 'Request tokens'"),
        ([V1, f"1,m,{'9' * 5000},6,1,API log"], "line 2: column 'Request tokens'"),
        ([V1, "", "nan,m,5,6,1,API log"], "line 3: column 'Timestamp': 'nan' is no time"),
        ([V1, "1e300,m,5,6,1,API log"], "line 2: column 'Timestamp'"),
        ([V3, "1,s,soon,m,5,6,1,API log"], "line 2: column 'Elapsed time': 'soon'"),
        ([AZURE, "16.11.2023 18:17,5,6"], "line 2: column 'TIMESTAMP': '16.11.2023 18:17' is no time such as"),
        ([AZURE, "2023-02-30 18:17:03,5,6"], "line 2: .*day"),
        ([AZURE, "2023-11-16 18:17:03,5,6", '"2023'], "line 3"),
        (['{"timestamp": 1}'], "line 1: .*input_length"),
        (['{"timestamp": 1, "input_length": 5, "output_length": 6}', "{"], "line 2: .*truncated"),
        (['{"timestamp": 1, "input_length": "x", "output_length": 6}'], "line 1: .*input_length"),
        (["[" * 5000], "line 1: column 'Timestamp' missing"),
    ],
)
def test_what_is_damaged_is_named_by_line_and_column(lines: list[str], complaint: str) -> None:
    with pytest.raises(InvalidData, match=complaint) as caught:
        read(*lines)
    assert "\n" not in str(caught.value)


def test_an_unknown_format_is_refused() -> None:
    with pytest.raises(InvalidConfig, match="burstgpt"):
        adapters.read([], Tally(), "burst")


def test_turns_are_counted_for_the_sessions_seen_last(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapters, "KEPT_SESSIONS", 2)
    names = ["a", "b", "a", "c", "b", "a"]
    demands, _ = read(V3, *[f"{t},{name},1,m,5,6,11,Conversation log" for t, name in enumerate(names)])
    assert [d.arrival.turn for d in demands] == [0, 0, 1, 0, 0, 0]


def rows_forever() -> Iterator[str]:
    yield V1
    t = 0
    while True:
        yield f"{t},m,5,6,11,API log"
        t += 1


def test_a_trace_is_read_as_it_is_asked_for() -> None:
    tally = Tally()
    demands = adapters.read(rows_forever(), tally)
    assert [next(demands).arrival.number for _ in range(5)] == [0, 1, 2, 3, 4]
    assert (tally.read, tally.emitted) == (5, 5)


def test_a_real_file_plain_and_packed(tmp_path: Path) -> None:
    plain = TraceFile(SLICE)
    demands = list(plain)
    assert (demands[0].arrival.prompt_tokens, demands[0].output_tokens) == (4808, 10)
    assert (plain.tally.read, plain.tally.emitted, plain.tally.format) == (200, 200, "azure")
    packed = tmp_path / "any-name"
    packed.write_bytes(gzip.compress(SLICE.read_bytes()))
    assert list(TraceFile(packed)) == demands
    assert list(plain) == demands  # again, from the beginning


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (V1.encode() + b"\n1,\xff", "line 2 is no UTF-8"),
        (V1.encode("utf-16"), "line 1 is no UTF-8"),
        (gzip.compress(V1.encode() * 1000)[:-9], "broken gzip"),
        (b"\x1f\x8bnothing", "broken gzip"),
        (b"x" * (LONGEST_LINE + 5), "line 1 is longer than"),
        (b"", "the trace is empty"),
    ],
)
def test_a_file_that_is_no_trace_is_named(data: bytes, complaint: str, tmp_path: Path) -> None:
    path = tmp_path / "trace.csv"
    path.write_bytes(data)
    with pytest.raises(InvalidData, match=f"trace.csv: .*{complaint}"):
        list(TraceFile(path))


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.csv", tmp_path):
        with pytest.raises(InvalidData, match="can't be read"):
            list(TraceFile(path))
