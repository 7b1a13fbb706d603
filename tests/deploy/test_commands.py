"""Every `atoll` command line in deploy/ and docs/deploy.md is one that the command line's parser takes."""

from itertools import pairwise
from pathlib import Path

import pytest

from atoll.cli.main import run
from atoll.group.wiring.wire import parse_address
from tests.deploy.commands import DEPLOY, Command, find, in_text

COMMANDS = sorted(set(find()))
ADDRESSED = {"--listen", "--advertise"}


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: f"{command.where}: {' '.join(command.argv)}")
def test_it_is_understood(command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    argv = [str(DEPLOY / "run.toml") if Path(word).name == "run.toml" else word for word in split(command.argv)]
    with pytest.raises(SystemExit) as ended:
        run([*argv, "--print-config"])
    assert ended.value.code == 0, capsys.readouterr().err
    addresses = [b for a, b in pairwise(argv) if a in ADDRESSED]
    if argv[0] in ("join", "status"):
        addresses += argv[1].split(",")
    for address in addresses:
        parse_address(address)


def split(argv: tuple[str, ...]) -> list[str]:
    """`--flag=value` in two words."""
    return [part for word in argv for part in (word.split("=", 1) if word.startswith("--") else [word])]


def test_each_file_that_starts_something_has_one() -> None:
    places = {command.where.removeprefix("deploy/").partition("/")[0] for command in COMMANDS}
    assert places >= {"systemd", "container", "slurm", "torchrun", "kubernetes", "peer.sh", "docs"}


def test_how_they_are_found() -> None:
    text = 'run -t atoll . && ( atoll master --listen "0.0.0.0:$port" \\\n --json & )\n'
    text += "--wrap '/x/peer.sh $run ${MASTER} --name %H'\n"
    assert [command.argv for command in in_text("", text)] == [
        ("master", "--listen", "0.0.0.0:48148", "--json"),
        ("join", "master:48148", "--name", "host", "--run-dir", "run"),
    ]
