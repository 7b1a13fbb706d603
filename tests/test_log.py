"""People see warnings; the run's folder has all."""

import json
import logging
import sys
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest

from atoll.errors import SaveFailed
from atoll.log import setup

LOGGER = logging.getLogger("atoll.somewhere")


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    top = logging.getLogger("atoll")
    handlers, level = list(top.handlers), top.level
    yield
    for handler in set(top.handlers) - set(handlers):
        handler.close()
    top.handlers[:] = handlers
    top.setLevel(level)


def tell() -> None:
    LOGGER.debug("detail %d", 1)
    LOGGER.info("news")
    try:
        raise ValueError("inside")
    except ValueError:
        LOGGER.warning("odd", exc_info=True)


def test_people_see_warnings_in_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    setup(None)
    tell()
    assert capsys.readouterr() == ("", "warning: odd\n")


def test_debug_shows_all_with_tracebacks(capsys: pytest.CaptureFixture[str]) -> None:
    setup(None, debug=True)
    tell()
    shown = capsys.readouterr().err
    assert shown.startswith("debug: detail 1\ninfo: news\nwarning: odd\nTraceback")
    assert "ValueError: inside" in shown


def test_the_run_folder_has_all_with_tracebacks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    setup(tmp_path)
    tell()
    assert capsys.readouterr().err == "warning: odd\n"
    entries = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text("utf-8").splitlines()]
    assert [(e["level"], e["message"]) for e in entries] == [
        ("debug", "detail 1"),
        ("info", "news"),
        ("warning", "odd"),
    ]
    assert {e["logger"] for e in entries} == {"atoll.somewhere"}
    assert all(isinstance(e["t"], float) for e in entries)
    assert "ValueError: inside" in entries[2]["traceback"]
    assert "traceback" not in entries[0]


def test_a_folder_that_is_not_there_is_reported(tmp_path: Path) -> None:
    with pytest.raises(SaveFailed, match="none"):
        setup(tmp_path / "none")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full")
def test_a_full_disk_is_said_once_and_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "log.jsonl").symlink_to("/dev/full")
    setup(tmp_path)
    LOGGER.info("lost")
    LOGGER.info("lost too")
    (line,) = capsys.readouterr().err.splitlines()
    assert "log.jsonl: No space left on device" in line


def test_a_message_that_is_no_valid_text_is_kept(tmp_path: Path) -> None:
    setup(tmp_path)
    LOGGER.info("file \udcff\nnext")
    assert json.loads((tmp_path / "log.jsonl").read_text("utf-8"))["message"] == "file \udcff\nnext"


def test_the_last_setup_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for run in ("a", "b"):
        (tmp_path / run).mkdir()
    setup(tmp_path / "a")
    (first,) = (h for h in logging.getLogger("atoll").handlers if isinstance(h, logging.FileHandler))
    setup(tmp_path / "b")
    assert first.stream is None  # closed
    LOGGER.warning("once")
    assert capsys.readouterr().err == "warning: once\n"
    assert (tmp_path / "a" / "log.jsonl").read_text("utf-8") == ""
    assert (tmp_path / "b" / "log.jsonl").read_text("utf-8").count("\n") == 1


def test_warnings_go_to_what_stands_in_for_stderr(monkeypatch: pytest.MonkeyPatch) -> None:
    setup(None)
    live = StringIO()
    monkeypatch.setattr(sys, "stderr", live)
    LOGGER.warning("odd")
    assert live.getvalue() == "warning: odd\n"
