"""Driver: the text a model learns, read from files into byte tokens, for `atoll train` and demonstrations.

Files stand in the order of a hash of their names: the same on every machine, and any part of it is a fair sample.
"""

import codecs
import os
import sysconfig
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import xxhash
from numpy.typing import NDArray

from atoll.errors import InvalidData

SEPARATOR = b"\0"  # follows each file; text never holds it

_NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib"}


@dataclass(frozen=True)
class Corpus:
    """Text as two read-only arrays of uint8 tokens, views of one: what is learnt, and a tail to measure the loss on.

    The tail is 5 % (2.5 % to 7.5 %, to hold out whole files; exactly 5 % of the text where no file ends in there).
    """

    train: NDArray[np.uint8]
    held_out: NDArray[np.uint8]
    fingerprint: str
    """128-bit xxh3 of all the text, in hex: peers with the same one have the same text."""

    @classmethod
    def read(cls, paths: Sequence[Path] | None = None, limit_bytes: int = 1 << 24) -> "Corpus":
        """The text of `paths`: files, and folders with all in them that isn't hidden; None: Python's standard library.

        What isn't UTF-8 or holds NUL is skipped. At most `limit_bytes` are taken, the last file in part. InvalidData
        for a path that is missing, unreadable or without text.
        """
        try:
            if paths is None:
                library = Path(sysconfig.get_path("stdlib"))
                roots = {library: _library_files(library)}
            else:
                roots = {path: _files(path) for path in paths}
            text = _join(roots, limit_bytes)
        except OSError as error:
            raise InvalidData(f"{error.filename}: can't be read: {error.strerror}") from error
        tokens = np.frombuffer(text, np.uint8)
        cut = _cut(tokens)
        return cls(tokens[:cut], tokens[cut:], xxhash.xxh3_128_hexdigest(text))


def _files(path: Path, skip: Collection[str] = ()) -> dict[Path, str]:
    """All files at or under `path`, with names that don't depend on where it lies."""
    root = path.resolve()
    if root.is_file():
        return {root: root.name}
    files = {}
    for folder, folders, names in os.walk(root, onerror=_raise):
        folders[:] = [name for name in folders if not name.startswith(".") and name not in skip]
        for file in (Path(folder, name) for name in names if not name.startswith(".")):
            if file.is_file():  # no pipe, no broken link
                files[file] = file.relative_to(root).as_posix()
    return files


def _library_files(library: Path) -> dict[Path, str]:
    """The sources that are the same on every machine with this Python."""
    files = _files(library, skip=_NOT_THE_LIBRARY)
    return {
        file: name for file, name in files.items() if name.endswith(".py") and not name.startswith("_sysconfigdata")
    }


def _join(roots: dict[Path, dict[Path, str]], limit_bytes: int) -> bytes:
    names = {file: name for files in roots.values() for file, name in files.items()}
    order = sorted(names, key=lambda file: (xxhash.xxh3_64_intdigest(names[file].encode()), names[file]))
    texts: dict[Path, bytes] = {}
    left = limit_bytes
    for file in order:
        if text := _text(file, left):
            texts[file] = (text + SEPARATOR)[:left]
            left -= len(texts[file])
        if not left:
            return b"".join(texts.values())
    for root, files in roots.items():
        if texts.keys().isdisjoint(files):
            raise InvalidData(f"{root}: holds no text; give files or folders of UTF-8 text")
    return b"".join(texts.values())


def _text(file: Path, limit_bytes: int) -> bytes:
    """The first `limit_bytes` of `file`; nothing where they are not text."""
    with file.open("rb") as opened:
        data = opened.read(limit_bytes)
    try:
        # Not final where the limit may have cut a character in two.
        codecs.getincrementaldecoder("utf-8")().decode(data, final=len(data) < limit_bytes)
    except UnicodeDecodeError:
        return b""
    return b"" if SEPARATOR in data else data


def _cut(tokens: NDArray[np.uint8]) -> int:
    """Where the held-out tail starts: the file nearest to 5 % from the end, or there if none starts within 2.5 %."""
    ideal, slack = round(0.95 * len(tokens)), round(0.025 * len(tokens))
    starts = np.flatnonzero(tokens[ideal - slack : ideal + slack] == SEPARATOR[0]) + ideal - slack + 1
    return int(starts[np.abs(starts - ideal).argmin()]) if len(starts) else ideal


def _raise(error: OSError) -> None:
    raise error
