import os
import sysconfig
from pathlib import Path

import numpy as np
import pytest

from atoll.errors import InvalidData
from atoll.train.text import Corpus


def write(folder: Path, files: dict[str, bytes | str]) -> Path:
    for name, data in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return folder


def texts(corpus: Corpus) -> list[str]:
    """The files of a corpus, in its order."""
    together = corpus.train.tobytes() + corpus.held_out.tobytes()
    assert together.endswith(b"\0")
    return together.decode().split("\0")[:-1]


def test_reads_text_files_in_folders_at_any_depth(tmp_path):
    write(tmp_path, {"a.txt": "one", "deep/er/b.md": "zwei äöü", "deep/c": "three"})
    assert sorted(texts(Corpus.read([tmp_path]))) == ["one", "three", "zwei äöü"]


def test_skips_what_is_no_text_or_hidden(tmp_path):
    write(
        tmp_path,
        {
            "text": "read me",
            "image": b"\x89PNG\xff",
            "nul": b"a\0b",
            "empty": b"",
            "cut": "é".encode()[:1],
            ".git/config": "secret",
            ".env": "secret",
        },
    )
    assert texts(Corpus.read([tmp_path])) == ["read me"]


def test_the_same_text_elsewhere_has_the_same_fingerprint(tmp_path):
    files = {f"{name}/{name}.py": f"text {name}" for name in "abcdefgh"}
    one, two = write(tmp_path / "here", files), write(tmp_path / "there", dict(reversed(files.items())))
    first, second = Corpus.read([one]), Corpus.read([two])
    assert first.fingerprint == second.fingerprint
    assert np.array_equal(first.held_out, second.held_out)
    assert len(bytes.fromhex(first.fingerprint)) == 16
    write(two, {"a/a.py": "text A"})
    assert Corpus.read([two]).fingerprint != first.fingerprint


def test_a_file_given_twice_is_read_once(tmp_path):
    write(tmp_path, {"a": "one", "b": "two"})
    assert sorted(texts(Corpus.read([tmp_path, tmp_path / "a", tmp_path]))) == ["one", "two"]


def test_holds_out_whole_files_at_the_end(tmp_path):
    write(tmp_path, {f"{i}": f"{i:03d}" * 33 for i in range(400)})
    corpus = Corpus.read([tmp_path])
    assert len(corpus.held_out) == pytest.approx(0.05 * 400 * 100, abs=100)
    held_out = corpus.held_out.tobytes()
    assert len(held_out) % 100 == 0
    assert not any(text in corpus.train.tobytes() for text in held_out.split(b"\0") if text)


def test_a_single_file_is_held_out_in_part(tmp_path):
    text = "".join(f"line {i}\n" for i in range(1000))
    corpus = Corpus.read([write(tmp_path, {"book.txt": text}) / "book.txt"])
    assert texts(corpus) == [text]
    assert len(corpus.held_out) == pytest.approx(0.05 * len(text), abs=2)


@pytest.mark.parametrize("limit", [1234, 1235])  # one of them cuts a character in two
def test_takes_no_more_than_the_limit_and_always_the_same(tmp_path, limit):
    write(tmp_path, {f"{i}": "ä" * (100 + i) for i in range(50)})
    whole, part = Corpus.read([tmp_path]), Corpus.read([tmp_path], limit)
    assert len(part.train) + len(part.held_out) == limit
    both = [corpus.train.tobytes() + corpus.held_out.tobytes() for corpus in (whole, part)]
    assert both[0].startswith(both[1])
    assert Corpus.read([tmp_path], limit).fingerprint == part.fingerprint


@pytest.mark.parametrize("name", ["missing", "empty", "binary", "folder"])
def test_a_path_without_text_is_named(tmp_path, name):
    write(tmp_path, {"fine": "text", "empty": b"", "binary": b"\0", "folder/binary": b"\xff"})
    with pytest.raises(InvalidData, match=name) as raised:
        Corpus.read([tmp_path / "fine", tmp_path / name])
    assert "\n" not in str(raised.value)


def test_an_unreadable_file_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"locked": "text", "open": "text"})
    real = Path.open

    def deny(path, *arguments):
        if path.name == "locked":
            raise PermissionError(13, "Permission denied", str(path))
        return real(path, *arguments)

    monkeypatch.setattr(Path, "open", deny)
    with pytest.raises(InvalidData, match=r"locked.*Permission denied"):
        Corpus.read([tmp_path])


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes in folders here")
def test_a_pipe_in_a_folder_does_not_hang(tmp_path):
    os.mkfifo(write(tmp_path, {"a": "text"}) / "pipe")
    assert texts(Corpus.read([tmp_path])) == ["text"]


def test_the_default_is_the_standard_library():
    corpus = Corpus.read()
    sources = set(texts(corpus))
    library = Path(sysconfig.get_path("stdlib"))
    assert (library / "dataclasses.py").read_text(encoding="utf-8") in sources
    assert (library / "json" / "decoder.py").read_text(encoding="utf-8") in sources
    assert (library / "unittest" / "mock.py").read_text(encoding="utf-8") in sources
    assert not any("import pytest" in text for text in sources)
    assert 4 << 20 < len(corpus.train) < 1 << 24
    assert 0.025 < len(corpus.held_out) / len(corpus.train) < 0.08
