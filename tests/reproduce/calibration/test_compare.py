import json
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.sim.compare import main
from atoll.errors import InvalidData
from atoll.record import JsonlSink, Record
from atoll.reproduce.calibration.compare import compare, read_values


def written(path: Path, scale: float, names: tuple[str, ...] = ("latency",)) -> Path:
    record = Record(JsonlSink(path))
    for name in names:
        for value in range(101):  # so that each percentile is the value of that number
            record.observe(name, scale * value)
    record.count("tokens", 10)
    record.count("tokens", 30 * scale)
    record.span("lane", "step", 0.0, 1.0)
    record.event("epoch", number=1)
    record.close()
    return path


def test_percentiles_and_their_errors_are_those_of_the_closed_form(tmp_path: Path) -> None:
    real, sim = written(tmp_path / "real.jsonl", 1.0), written(tmp_path / "sim.jsonl", 1.5)
    (latency, tokens), only_real, only_sim = compare(read_values(real), read_values(sim))
    assert (latency.metric, latency.real_count, latency.sim_count) == ("latency", 101, 101)
    assert list(latency.figures) == ["mean", "P50", "P90", "P99"]
    for name, expected in (("mean", 50), ("P50", 50), ("P90", 90), ("P99", 99)):
        pair = latency.figures[name]
        assert (pair.real, pair.sim, pair.error) == pytest.approx((expected, 1.5 * expected, 0.5))
    assert tokens.figures["total"].real == 40
    assert tokens.figures["total"].error == pytest.approx(15 / 40)
    assert (only_real, only_sim) == ([], [])


def test_errors_that_cancel_in_the_mean_show_in_the_percentiles(tmp_path: Path) -> None:
    real, sim = tmp_path / "real.jsonl", tmp_path / "sim.jsonl"
    for path, values in ((real, [1.0] * 100), (sim, [0.5] * 50 + [1.5] * 50)):
        record = Record(JsonlSink(path))
        for value in values:
            record.observe("wait", value)
        record.close()
    ((wait,), _, _) = compare(read_values(real), read_values(sim))
    assert wait.figures["mean"].error == pytest.approx(0.0)
    assert wait.figures["P90"].error == pytest.approx(0.5)


def test_a_metric_that_one_of_them_lacks_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real = written(tmp_path / "real.jsonl", 1.0, ("latency", "queue"))
    sim = written(tmp_path / "sim.jsonl", 1.0, ("latency", "ttft"))
    assert main([str(real), str(sim)]) == 1
    said = capsys.readouterr().out.replace("\n", "")
    assert f"missing in {sim}: queue" in said
    assert f"missing in {real}: ttft" in said
    assert main([str(real), str(sim), "--json"]) == 1
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert {"metric": "queue", "missing_in": "sim"} in rows
    assert {"metric": "ttft", "missing_in": "real"} in rows


def test_json_has_one_object_per_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    real, sim = written(tmp_path / "real.jsonl", 1.0), written(tmp_path / "sim.jsonl", 1.1)
    assert main([str(real), str(sim), "--json"]) == 0
    rows: list[dict[str, Any]] = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["metric"] for row in rows] == ["latency", "tokens"]
    assert rows[0]["figures"]["P99"]["error"] == pytest.approx(0.1)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("no JSON", "line 2"),
        ('{"type": "observe", "name": "x", "value": "much"}', "line 2"),
        ('{"type": "count", "n": 1}', "line 2"),
    ],
)
def test_an_unreadable_line_is_named_in_one_line(tmp_path: Path, line: str, says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(f'{{"type": "observe", "name": "x", "value": 1}}\n{line}\n')
    with pytest.raises(InvalidData) as error:
        read_values(path)
    assert str(path) in str(error.value)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


def test_not_a_number_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    path.write_text('{"type": "observe", "name": "x", "value": null}\n{"type": "observe", "name": "x", "value": 2}\n')
    assert read_values(path).observed == {"x": [2.0]}


def test_zero_has_no_relative_error(tmp_path: Path) -> None:
    real, sim = tmp_path / "real.jsonl", tmp_path / "sim.jsonl"
    real.write_text('{"type": "observe", "name": "x", "value": 0}\n')
    sim.write_text('{"type": "observe", "name": "x", "value": 1}\n')
    ((x,), _, _) = compare(read_values(real), read_values(sim))
    assert x.figures["P50"].error is None
    assert main([str(real), str(sim)]) == 0
    assert main([str(real), str(real)]) == 0


def test_a_file_that_is_not_there_is_an_error_of_one_line(tmp_path: Path) -> None:
    with pytest.raises(InvalidData, match="can't read"):
        read_values(tmp_path / "none.jsonl")
