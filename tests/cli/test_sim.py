"""`atoll sim`: a table, plots and a trace, each marked as simulated; one line for what is wrong."""

import json
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.main import run
from atoll.cli.sim.main import COMMANDS
from atoll.cli.sim.pool import Point, run_all
from atoll.errors import InvalidConfig
from atoll.reproduce.calibration.api import Calibration
from atoll.reproduce.scenario.reading import load
from atoll.reproduce.scenario.settings import CostSettings
from tests.reproduce.scenario.small import COLLECTIVE, TRAIN, written


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in COMMANDS)


def test_a_command_there_is_not_is_named_with_the_nearest(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "rum"]) == 2
    assert (
        capsys.readouterr().err == "atoll: atoll sim has no 'rum'; did you mean 'run'? `atoll sim --help` lists all\n"
    )


def test_a_run_is_a_marked_table_and_plots_in_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, TRAIN)
    assert run(["sim", "run", str(path), "--name", "one", "--set", "job.steps=4", "--trace", "t.json"]) == 0
    out = capsys.readouterr().out
    assert "case (simulated, uncalibrated)" in out
    assert "5 of 5 self-checks kept" in out
    for made in ("runs/one/plots/loss.png", "runs/one/plots/steps.png", "t.json", "runs/one"):
        assert made in out.splitlines()
        assert (tmp_path / made).exists()
    assert (tmp_path / "runs/one/config.toml").read_text().startswith("# atoll sim run ")
    (record,) = lines((tmp_path / "runs/one/record.jsonl").read_text())
    assert record["simulated"] is True


def test_json_is_an_object_per_run_and_one_that_names_the_plots(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = written(tmp_path, COLLECTIVE)
    argv = ["sim", "run", str(path), "--json", "--jobs", "1", "--sweep", "fabric.oversub=1,8", "--sweep", "seed=1,2"]
    assert run(argv) == 0
    *runs, last = lines(capsys.readouterr().out)
    assert [r["changes"] for r in runs] == [
        {"fabric.oversub": o, "seed": s} for o in (1, 8) for s in (1, 2)
    ]  # fmt: skip
    assert all(r["simulated"] is True and r["calibration"] == "uncalibrated" for r in runs)
    assert runs[2]["seconds"] > 1.5 * runs[0]["seconds"]
    assert last["simulated"] is True
    assert {Path(plot).name for plot in last["plots"]} == {"links.png"}


def test_a_sweep_over_one_number_is_drawn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, COLLECTIVE)
    assert run(["sim", "run", str(path), "--name", "s", "--jobs", "1", "--sweep", "fabric.oversub=1,2,4,8,16,32"]) == 0
    out = capsys.readouterr().out
    assert "runs/s/plots/sweep.png" in out
    assert out.count("MB/s") == 6  # many runs are rows


def test_the_seed_of_the_command_line_goes_before_the_files(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, COLLECTIVE)
    assert run(["sim", "run", str(path), "--json", "--seed", "7"]) == 0
    assert lines(capsys.readouterr().out)[0]["seed"] == 7


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (["--set", "fabric.oversb=2"], "with fabric.oversb=2: fabric.oversb is no key there; did you mean 'oversub'?"),
        (["--sweep", "fabric.oversub=1,x"], "fabric.oversub = 'x' has the wrong type; give a number"),
        (["--jobs", "0"], "--jobs must be at least 1, not 0"),
        (["--trace", "no/where.json"], "choose another folder"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(argv: list[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = written(tmp_path, COLLECTIVE)
    assert run(["sim", "run", str(path), *argv]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert says in line


def test_a_trace_loads_and_its_bars_do_not_overlap(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    crash = '\n[[faults]]\nwhen = "once"\nkind = "crash"\nat_s = 1.7\nfor_s = 0.5\nwhere = ["host1"]\n'
    assert run(["sim", "run", str(written(tmp_path, TRAIN + crash)), "--trace", "t.json", "--json"]) == 0
    assert lines(capsys.readouterr().out)[-1]["traces"] == ["t.json"]
    events = json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    assert [e["ts"] for e in events] == sorted(e["ts"] for e in events)
    lanes: dict[int, list[tuple[float, float]]] = {}
    for e in events:
        if e["ph"] == "X":
            lanes.setdefault(e["tid"], []).append((e["ts"], e["ts"] + e["dur"]))
    assert len(lanes) == 3
    for spans in lanes.values():
        assert all(start < end for start, end in spans)
        assert all(one[1] <= other[0] for one, other in pairwise(spans))
    names = {e["args"]["name"] for e in events if e["ph"] == "M" and e["name"] == "process_name"}
    assert {"host0", "host1", "host2", "link host0->switch"} <= names
    assert "crash" in {e["name"] for e in events if e["ph"] == "i"}


@pytest.mark.slow
def test_a_sweep_of_processes_gives_what_one_process_gives(tmp_path: Path) -> None:
    points = [Point(load(written(tmp_path, COLLECTIVE), {"seed": seed}), {"seed": seed}, None) for seed in (1, 2)]
    pooled, alone = (run_all(points, processes) for processes in (2, 1))
    assert [result.changes for result in pooled] == [{"seed": 1}, {"seed": 2}]
    assert [result.hash for result in pooled] == [result.hash for result in alone]


@pytest.mark.slow
def test_a_failure_in_a_process_of_the_pool_is_ours(tmp_path: Path) -> None:
    broken = replace(load(written(tmp_path, TRAIN)), cost=CostSettings())
    with pytest.raises(InvalidConfig, match="cost: says nothing of 'train_step'"):
        run_all(2 * [Point(broken, {}, None)], 2)


def test_keys_lists_what_a_scenario_may_have(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["sim", "keys", "oversub"]) == 0
    assert "fabric.oversub" in capsys.readouterr().out
    assert run(["sim", "keys", "--json"]) == 0
    assert {"name": "seed", "kind": "a whole number", "default": "1"}.items() <= next(
        key for key in lines(capsys.readouterr().out) if key["name"] == "seed"
    ).items()
    assert run(["sim", "keys", "zebra"]) == 2


@pytest.mark.parametrize("flags", [[], ["--engine", "smollm2"]])
def test_where_nothing_can_be_written_nothing_is_measured(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("calibrate", "calibrate_engine"):
        monkeypatch.setattr(f"atoll.cli.sim.calibrate.{name}", lambda *_: pytest.fail("minutes for nothing"))
    assert run(["sim", "calibrate", "--out", "absent/c.json", *flags]) == 1
    assert "can't write absent/c.json" in capsys.readouterr().err
    (tmp_path / "other.json").write_text(Calibration(fingerprint="", machine={}, fitted_on="").to_json())
    assert run(["sim", "calibrate", "--out", "other.json", *flags]) == 2
    assert "of another machine" in capsys.readouterr().err
