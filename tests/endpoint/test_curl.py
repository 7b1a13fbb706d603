"""What docs/serving.md says to type, typed: its curl commands as they stand there, and answers of the form shown."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.endpoint.scripted import Scripted, served

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
SAID = "The capital of France is Paris."
pytestmark = pytest.mark.skipif(not shutil.which("curl"), reason="needs curl: apt-get install curl")


def commands() -> Iterator[tuple[str, str]]:
    """Each with what it printed."""
    for block in re.findall(r"```console\n(.*?)```", PAGE.read_text("utf-8"), re.DOTALL):
        for typed in re.split(r"^\$ ", block, flags=re.MULTILINE):
            if typed.startswith("curl"):
                lines = typed.splitlines()
                end = next(i for i in range(1, len(lines) + 1) if "\n".join(lines[:i]).count("'") % 2 == 0)
                yield "\n".join(lines[:end]), "\n".join(lines[end:]).strip()


COMMANDS = list(commands())


def form(value: Any) -> Any:
    """What kinds of things it is made of."""
    if isinstance(value, dict):
        return {name: form(each) for name, each in value.items()}
    if isinstance(value, list):
        return [form(value[0])] if value else []
    return "number" if isinstance(value, int) and not isinstance(value, bool) else type(value).__name__


def forms(printed: str) -> list[Any]:
    """Of each line."""
    lines = [line.removeprefix("data: ") for line in printed.splitlines() if line]
    return [line if line == "[DONE]" else metric_or_form(line) for line in lines]


def metric_or_form(line: str) -> Any:
    """A metric by its name and labels' names."""
    metric = re.fullmatch(r"(\w+)\{(.*)\} [\d.]+", line)
    return (metric[1], re.findall(r"(\w+)=", metric[2])) if metric else form(json.loads(line))


def test_there_are_some():
    typed = " ".join(command for command, _ in COMMANDS)
    assert all(
        part in typed
        for part in ("chat/completions", "/v1/responses", '"stream": true', "/tokenize", "/metrics", "/v1/models")
    )


@pytest.mark.parametrize(("command", "shown"), COMMANDS, ids=range(len(COMMANDS)))
def test_a_command_prints_what_is_shown(command, shown):
    with served(Scripted(lambda request: SAID)) as (url, face):
        typed = command.replace("http://127.0.0.1:8000", url).replace("smollm2", "parrot")
        done = subprocess.run(["bash", "-c", typed], capture_output=True, text=True, timeout=20)
        assert face.answering == 0
    assert (done.returncode, done.stderr) == (0, "")
    assert forms(done.stdout) == forms(shown)
    for text in (SAID, '"error"', "[DONE]"):
        assert (text in done.stdout) == (text in shown)
