"""The Containerfile: read here line by line, and its build rehearsed: the same steps in a folder instead of an image.
Its HEALTHCHECK is parsed by test_commands.py; atoll as process 1 is tested in test_peer.py."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.deploy.commands import DEPLOY, ROOT
from tests.deploy.places import free_port, running, tiny, until

FILE = DEPLOY / "container" / "Containerfile"
INSTRUCTIONS = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "EXPOSE", "STOPSIGNAL", "HEALTHCHECK"}
INSTRUCTIONS |= {"ENTRYPOINT", "CMD"}


def instructions() -> Iterator[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", FILE.read_text(), flags=re.MULTILINE)
    for line in filter(None, re.sub(r"\\\n\s*", "", text).splitlines()):
        word, _, rest = line.partition(" ")
        yield word, rest


def test_each_line_is_an_instruction_and_what_it_copies_is_there() -> None:
    for word, rest in instructions():
        assert word in INSTRUCTIONS
        if word == "COPY" and not rest.startswith("--from"):
            assert all((ROOT / source).exists() for source in rest.split()[:-1])


def test_it_ends_as_an_ordinary_user_that_says_how_it_fares() -> None:
    words = [word for word, _ in instructions()]
    last = words[len(words) - words[::-1].index("FROM") :]
    assert dict(instructions())["USER"] == "10001:10001"
    assert "RUN" not in last[last.index("USER") :]
    assert "HEALTHCHECK" in last
    assert dict(instructions())["STOPSIGNAL"] == "SIGTERM"


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_same_steps_in_a_folder_give_a_master_and_two_peers_that_train(tmp_path: Path) -> None:
    """But for the index of torch: from wherever pip gets packages here, in the version of constraints.txt."""
    env = {name: value for name, value in os.environ.items() if not name.startswith(("ATOLL_", "PYTHONPATH"))}
    env |= {"PIP_CONSTRAINT": str(ROOT / "constraints.txt"), "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    env["PATH"] = f"{tmp_path}/opt/atoll/bin:{Path(sys.executable).parent}:{env['PATH']}"
    for folder in ("src", "opt"):
        (tmp_path / folder).mkdir()
    for word, rest in instructions():
        words = shlex.split(rest)
        if word == "RUN" and "useradd" not in rest:
            command = rest.replace('--index-url "${TORCH_INDEX}"', "")
            command = re.sub(r"/(opt/atoll|src)\b", rf"{tmp_path}/\1", command).replace("pip install", "pip install -q")
            done = subprocess.run(command, shell=True, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        elif word == "COPY" and not rest.startswith("--from"):
            *sources, target = words
            for source in map(ROOT.joinpath, sources):
                to = tmp_path / target.lstrip("/")
                if source.is_dir():
                    shutil.copytree(source, to, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy(source, to)

    log, address = tmp_path / "log", f"127.0.0.1:{free_port()}"
    (tmp_path / "token").write_text("a token of some length, as in a test\n")
    (tmp_path / "token").chmod(0o600)
    token = ["--token-file", tmp_path / "token"]
    flags = ["--config", tiny(tmp_path), "--min-world", "2", *token]
    options = {"env": env, "cwd": tmp_path}
    with running(["atoll", "master", "--listen", address, "--state", tmp_path / "state", *token], log, **options):
        until(lambda: "listening" in log.read_text(), "the master listens", log)
        with (
            running(["peer.sh", "one", address, *flags], log, **options) as one,
            running(["peer.sh", "two", address, *flags], log, **options) as two,
        ):
            assert [one.wait(90), two.wait(90)] == [0, 0], log.read_text()[-4000:]
        health = dict(instructions())["HEALTHCHECK"].partition("CMD ")[2].replace("/run/secrets/atoll-token", "token")
        done = subprocess.run(health, shell=True, cwd=tmp_path, env={**env, "MASTER": address}, check=False)
        assert done.returncode == 0
    assert any((tmp_path / peer / "model" / "model.safetensors").exists() for peer in ("one", "two"))
