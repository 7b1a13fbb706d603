"""`atoll workload`: a trace is looked at, fitted, converted; a model made into traces."""

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from atoll.cli.main import run
from atoll.reproduce.calibration.api import Calibration
from atoll.workload.fit.model import decode
from atoll.workload.trace.files import TraceFile
from tests.reproduce.calibration.test_engines import measured
from tests.workload.fit.test_model import HAND_WRITTEN, SLICE

pytestmark = pytest.mark.usefixtures("in_folder")


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")


@pytest.fixture
def model() -> Path:
    path = Path("model.json")
    path.write_bytes(HAND_WRITTEN)
    return path


def asked(capsys: Any, *argv: str) -> list[dict[str, Any]]:
    assert run(["workload", *argv, "--json"]) == 0
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_show_says_what_a_trace_is_like_and_draws_it(capsys: Any) -> None:
    description, rows, *plots = asked(capsys, "show", str(SLICE))
    assert (description["requests"], description["service"], description["talks"]) == (200, "api", None)
    assert rows["format"] == "azure"
    assert (rows["read"], rows["emitted"], rows["dropped"]) == (200, 200, {})
    assert len(plots) == 3
    assert all(Path(plot["path"]).read_bytes().startswith(b"\x89PNG") for plot in plots)
    assert run(["workload", "show", str(SLICE), "--plots", "none"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("azure: 200 rows read, 200 taken", "cv in windows", "prompts"))
    assert "png" not in out


def test_show_takes_a_model_too(model: Path, capsys: Any) -> None:
    api, talk, both = asked(capsys, "show", str(model), "--seconds", "400", "--plots", "none")
    assert (api["service"], talk["service"], both["service"]) == ("api", "conversation", "all")
    assert talk["talks"]["grows"] == 1.0
    assert run(["workload", "show", str(model), "--seconds", "400", "--plots", "none"]) == 0
    assert "time to think" in capsys.readouterr().out


def test_fit_compares_and_saves_a_model_that_makes_traces(capsys: Any) -> None:
    assert run(["workload", "convert", str(_written_model()), "trace.jsonl", "--seconds", "400"]) == 0
    capsys.readouterr()
    said = asked(capsys, "fit", "trace.jsonl", "--window", "30", "--save", "found.json")
    laws = [line["law"] for line in said if line["type"] == "arrivals"]
    assert laws[:3] == ["source, held out", "source, seen", "poisson"]
    assert {"joint", "zipf"} < {line["law"] for line in said if line["type"] == "lengths"}
    assert len(decode(Path("found.json").read_bytes()).streams) == 2
    assert next(line["what"] for line in said if line["type"] == "file") == "model"
    assert run(["workload", "fit", "trace.jsonl", "--plots", "none"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("gamma per window, moments", "trace.jsonl.model.json", "failures"))


def test_a_trace_too_small_to_keep_any_back_is_fitted_all_the_same(capsys: Any) -> None:
    said = asked(capsys, "fit", str(SLICE), "--plots", "none")
    assert "too few to keep any back" in said[0]["note"]
    assert Path(f"{SLICE.name}.model.json").exists()


def test_convert_cuts_speeds_up_and_shrinks(capsys: Any) -> None:
    (said,) = asked(
        capsys, "convert", str(SLICE), "out.jsonl.gz", "--start", "10", "--seconds", "50", "--scale", "10",
        "--shrink", "16", "--cap-prompt", "100",
    )  # fmt: skip
    demands = list(TraceFile(Path("out.jsonl.gz")))
    assert said["requests"] == len(demands) > 5
    assert said["edits"]["capped"] > 0
    assert demands[-1].arrival.at_s < 5.0
    assert max(d.arrival.prompt_tokens for d in demands) == 100
    assert [d.arrival.number for d in demands] == list(range(len(demands)))


def test_convert_makes_the_same_bytes_of_the_same_seed(model: Path, capsys: Any) -> None:
    for name, seed in (("a.jsonl", "3"), ("b.jsonl", "3"), ("c.jsonl", "4")):
        assert run(["workload", "convert", str(model), name, "--requests", "50", "--seed", seed]) == 0
    a, b, c = (Path(name).read_bytes() for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    assert a == b != c
    assert len(a.splitlines()) == 51
    assert run(["workload", "convert", "a.jsonl", "d.jsonl"]) == 0
    assert Path("d.jsonl").read_bytes() == a
    assert "d.jsonl: 50 requests" in capsys.readouterr().out


def test_convert_leaves_out_services_and_failures(model: Path, capsys: Any) -> None:
    (said,) = asked(capsys, "convert", str(model), "a.jsonl", "--seconds", "300", "--service", "api", "--drop-failed")
    demands = list(TraceFile(Path("a.jsonl")))
    assert {(d.arrival.service, d.failed) for d in demands} == {("api", False)}
    assert said["edits"]["failed at the source, left out"] > 10


@pytest.mark.parametrize(
    ("argv", "code", "words"),
    [
        (["shw", "x"], 2, ["shw", "show"]),
        (["show", "none.csv"], 1, ["none.csv", "can't be read"]),
        (["show", "bad.csv"], 1, ["bad.csv", "line 3", "'Request tokens'", "'x'"]),
        (["show", "bad.csv", "--window=-1", "--source", "mooncake"], 1, ["bad.csv", "line 1"]),
        (["show", "empty.csv"], 1, ["empty.csv", "empty"]),
        (["show", "wrong.json"], 1, ["wrong.json", "no model", "version"]),
        (["fit", "model.json"], 1, ["model.json", "takes a trace"]),
        (["convert", "model.json", "out.jsonl"], 2, ["--seconds"]),
        (["convert", "bad.csv", "out.jsonl"], 1, ["bad.csv", "line 3"]),
        (["convert", "model.json", "none/out.jsonl", "--requests", "5"], 1, ["none/out.jsonl"]),
        (["convert", "model.json", "out.jsonl", "--requests", "5", "--scale", "0"], 2, ["--scale is 0"]),
    ],
)
def test_what_is_wrong_is_said_in_one_line(
    argv: list[str], code: int, words: list[str], model: Path, capsys: Any
) -> None:
    Path("bad.csv").write_text(
        "Timestamp,Model,Request tokens,Response tokens,Log Type\n1,m,5,6,API log\n2,m,x,6,API log\n"
    )
    Path("empty.csv").write_bytes(gzip.compress(b"\n"))
    Path("wrong.json").write_text('{"format": "atoll-workload", "version": 7}')
    assert run(["workload", *argv]) == code
    err = capsys.readouterr().err
    assert err.startswith("atoll: ")
    assert len(err.strip().splitlines()) == 1
    assert all(word in err for word in words)
    assert not Path("out.jsonl").exists()


def test_each_sub_command_explains_itself(capsys: Any) -> None:
    for command in ("show", "fit", "convert"):
        with pytest.raises(SystemExit):
            run(["workload", command, "--help"])
        assert "seed" in capsys.readouterr().out


VIRTUAL = ("run", "--virtual", "--cost", "opt-13b-a100", "--seconds", "20", "--rate", "4")


def test_virtual_engines_are_driven_as_servers_are_and_say_so(capsys: Any) -> None:
    *requests, report = asked(capsys, *VIRTUAL, "--engines", "2", "--slo", "ttft=1s")
    assert report["simulated"] is True
    assert "simulated" in report["who"]
    assert report["offered"] == report["answered"] == len(requests) > 50
    assert {request["end"] for request in requests} == {"answered"}
    assert Path("plots/latency.png").read_bytes().startswith(b"\x89PNG")
    assert asked(capsys, *VIRTUAL, "--engines", "2", "--slo", "ttft=1s") == [*requests, report]
    *_, slower = asked(capsys, *VIRTUAL, "--slo", "ttft=1s", "--plots", "none")
    assert slower["tpot_s"]["mean"] > report["tpot_s"]["mean"]
    assert run(["workload", *VIRTUAL, "--plots", "none"]) == 0
    assert "1 virtual engine of OPT-13B" in capsys.readouterr().out


@pytest.mark.parametrize("what", ["model.json", "trace.jsonl"])
def test_a_model_is_shrunk_as_its_trace_is(what: str, model: Path, capsys: Any) -> None:
    assert run(["workload", "convert", str(model), "trace.jsonl", "--seconds", "5"]) == 0
    capsys.readouterr()
    *whole, _ = asked(capsys, *VIRTUAL, "--trace", what, "--seconds", "5", "--plots", "none")
    *shrunk, _ = asked(capsys, *VIRTUAL, "--trace", what, "--seconds", "5", "--plots", "none", "--shrink", "10")
    tokens = [sum(request["output_tokens"] for request in requests) for requests in (whole, shrunk)]
    assert tokens[1] == pytest.approx(tokens[0] / 10, rel=0.1)


def test_virtual_engines_take_what_was_measured_and_warn_beyond_it(capsys: Any) -> None:
    engines = {"tiny": replace(measured(), pages=9999, context=8192)}
    Path("calib.json").write_text(Calibration(fingerprint="", machine={}, fitted_on="", engines=engines).to_json())
    argv = ["workload", "run", "--virtual", "--seconds", "3", "--rate", "400", "--max-batch", "256", "--chunk", "4096"]
    assert run([*argv, "--plots", "none", "--output", "200"]) == 0
    out, err = capsys.readouterr()
    assert "tiny, a kernel" in out
    assert "batch up to" in err
    assert "extrapolated" in err


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        ([], ["URL", "--virtual"]),
        (["http://127.0.0.1:1", "--virtual"], ["URL", "--virtual"]),
        (["--virtual"], ["calib.json", "atoll sim calibrate --engine", "opt-13b-a100"]),
        (["--virtual", "--cost", "bad.json"], ["bad.json", "not a calibration"]),
        (["--virtual", "--cost", "none.json", "--model", "m"], ["no engine", "atoll sim calibrate --engine m"]),
        (["--virtual", "--engines", "0"], ["--engines", "from 1", "0"]),
    ],
)
def test_what_virtual_engines_lack_is_said_in_one_line(argv: list[str], words: list[str], capsys: Any) -> None:
    Path("bad.json").write_text("{}")
    Path("none.json").write_text(Calibration(fingerprint="", machine={}, fitted_on="").to_json())
    assert run(["workload", "run", *argv]) in (1, 2)
    (line,) = capsys.readouterr().err.splitlines()
    assert all(word in line for word in words)


def _written_model() -> Path:
    path = Path("model.json")
    path.write_bytes(HAND_WRITTEN)
    return path
