"""What docs/simulate.md shows is run: its files as they grow, and every command between them."""

import re
import shlex
from pathlib import Path

import pytest

from atoll.cli.main import run
from tests.reproduce.scenario.small import ROOT

PAGE = (ROOT / "docs" / "simulate.md").read_text("utf-8")
BLOCK = re.compile(r'^```(toml title="(?P<file>[\w.]+)(?P<more>, more)?"|console)\n(?P<text>.*?)^```$', re.M | re.S)
SMALL = {
    "islands.toml": ["job.steps=20", "job.text_bytes=40000", "job.batch=1", "job.model.width=8", "job.model.heads=1"],
    "ring.toml": ["fabric.hosts=16"],
}
"""What makes them quick."""


@pytest.mark.slow
def test_every_file_and_command_of_the_page_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    ran = 0
    for block in BLOCK.finditer(PAGE):
        if block["file"]:
            with Path(block["file"]).open("a" if block["more"] else "w") as file:
                file.write(block["text"])
            continue
        for line in block["text"].splitlines():
            word, *argv = shlex.split(line)
            assert word == "atoll"
            small = [word for change in SMALL[argv[2]] for word in ("--set", change)]
            assert run([*argv, *small, "--jobs", "1"]) == 0, f"{line}\n{capsys.readouterr().err}"
            ran += 1
    assert ran >= 5


def test_the_fields_of_the_table_shown_are_those_of_a_run() -> None:
    for figure in ("steps", "time", "loss", "goodput", "waiting", "redone", "away", "worst gap", "crashes", "sent"):
        assert f"│ {figure} " in PAGE
