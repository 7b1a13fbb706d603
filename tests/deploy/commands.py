"""The `atoll` command lines in deploy/ and docs/deploy.md: found as text, ready for the command line's own parser."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import yaml

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
PAGE = ROOT / "docs" / "deploy.md"
VALUES = {
    "MASTER": "master:48148",
    "master": "master:48148",
    "port": "48148",
    "PEER_FLAGS": "",
    "@": "",
    "token": "token",
    "run": "run",
    "STATE_DIRECTORY": "/var/lib/atoll",
    "CREDENTIALS_DIRECTORY": "/run/credentials",
    "POD_IP": "10.1.2.3",
    "POD_NAME": "atoll-peer-0",
}
"""What variables stand for. One that is not here fails."""
VARIABLE = re.compile(r"\$(?:\{(\w+)\}|\((\w+)\)|(\w+|@))")
COMMAND = re.compile(
    r"(?<![\w/.-])(?:[\w./${}-]*/)?(atoll (?:master|join|status|train|doctor)\b|peer\.sh )([^&|;#)'\n]*)"
)


class Command(NamedTuple):
    """A command line and the file it is in."""

    where: str
    argv: tuple[str, ...]


def in_text(where: str, text: str) -> Iterator[Command]:
    """Those in a text in which lines end with a backslash to go on."""
    for line in re.sub(r"\s*\\\n\s*", " ", text).splitlines():
        if line.startswith(("cp ", "COPY ")):
            continue
        for found in COMMAND.finditer(line):
            yield from of_words(where, shlex.split(substituted(found[0])))


def of_words(where: str, words: list[str]) -> Iterator[Command]:
    """One, from its words. `peer.sh RUN ADDRESS ...` is `atoll join ADDRESS ... --run-dir RUN`."""
    program, words = Path(words[0]).name, [word for word in words if word]
    if program == "atoll":
        yield Command(where, tuple(words[1:]))
    elif program == "peer.sh":
        yield Command(where, ("join", *words[2:], "--run-dir", words[1]))


def substituted(text: str) -> str:
    return VARIABLE.sub(lambda m: VALUES[m[1] or m[2] or m[3]], text).replace("%H", "host")


def in_manifest(where: str, text: str) -> Iterator[Command]:
    """All lists called `command`, wherever they stand."""

    def walk(node: object) -> Iterator[list[str]]:
        if isinstance(node, dict):
            if "command" in node:
                yield [*node["command"], *node.get("args", [])]
            for value in node.values():
                yield from walk(value)
        elif isinstance(node, list):
            for value in node:
                yield from walk(value)

    for document in yaml.safe_load_all(text):
        for words in walk(document):
            yield from of_words(where, [substituted(word) for word in words])


def find() -> Iterator[Command]:
    """All of them."""
    for path in sorted(DEPLOY.rglob("*")):
        where = path.relative_to(ROOT).as_posix()
        if path.suffix == ".yaml":
            yield from in_manifest(where, path.read_text())
        elif path.suffix in {".service", ".sh", ".sbatch"} or path.name == "Containerfile":
            text = path.read_text()
            text = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
            if path.name == "peer.sh":
                text = text.replace('"$@"', "master:48148")
            yield from in_text(
                where, "\n".join(line for line in text.splitlines() if "until deploy/peer.sh" not in line)
            )
    page = PAGE.read_text()
    for block in re.findall(r"^```(?:console|sh|ini)\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        yield from in_text("docs/deploy.md", block)
    for words in re.findall(r"`(atoll (?:master|join|status) [^`]*)`", page):
        yield from in_text("docs/deploy.md", words)
