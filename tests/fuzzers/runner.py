"""Runs a target: guided by coverage where atheris is installed, else by seeded mutation of the corpus. What is new, and
what breaks, is kept in the corpus."""

import hashlib
import importlib
import importlib.util
import os
import random
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Final

from tests.fuzzers.mutation import Mutate, mutated

CORPUS: Final = Path(__file__).with_name("corpus")
MOST_FILES: Final = 100
LARGEST_FILE: Final = 4096
GUIDED: Final = importlib.util.find_spec("atheris") is not None
_ROOT: Final = Path(__file__).parents[2]
_SLOW_S: Final = 20
"""An input that takes so long is a find."""


@dataclass
class Report:
    """What a run came to. `edges` is 0 where nobody counts them. `broken`: an input that is a bug."""

    runs: int = 0
    edges: int = 0
    seconds: float = 0.0
    broken: Path | None = None
    why: str = ""


def target(name: str) -> ModuleType:
    return importlib.import_module(f"tests.fuzzers.{name}")


def mutator(module: ModuleType) -> Mutate:
    found: Mutate = getattr(module, "mutate", mutated)
    return found


def kept(name: str) -> list[Path]:
    """The files of its corpus, the smallest first."""
    folder = CORPUS / name
    return sorted(folder.iterdir(), key=lambda p: (p.stat().st_size, p.name)) if folder.is_dir() else []


def replay(name: str) -> int:
    """Every input there is, once; how many."""
    module = target(name)
    inputs = [*module.seeds(), *(path.read_bytes() for path in kept(name))]
    for data in inputs:
        module.fuzz(data)
    return len(inputs)


def by_mutation(name: str, seconds: float, seed: int = 0, most_runs: int = 1 << 60) -> Report:
    """Without coverage: mutate what there is, as `seed` says."""
    module, rng = target(name), random.Random(seed)
    mutate = mutator(module)
    pool = [*module.seeds(), *(path.read_bytes() for path in kept(name))]
    report, began = Report(), time.monotonic()
    while (now := time.monotonic()) - began < seconds and report.runs < most_runs:
        data = mutate(rng.choice(pool), rng)
        try:
            module.fuzz(data)
        except Exception as error:
            report.broken, report.why = _keep(name, data, "broken"), f"{type(error).__name__}: {error}"
            break
        report.runs += 1
    report.seconds = now - began
    return report


def guided(name: str, seconds: float, keep: bool = True) -> Report:
    """With atheris, in a process of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        found, broken = Path(temporary, "found"), Path(temporary, "broken")
        for folder in (found, broken):
            folder.mkdir()
        for i, data in enumerate(target(name).seeds()):
            (found / f"seed-{i}").write_bytes(data)
        began = time.monotonic()
        said = _atheris(
            name, f"-max_total_time={seconds:.0f}", f"-timeout={_SLOW_S}", "-rss_limit_mb=4096",
            "-print_final_stats=1", f"-max_len={LARGEST_FILE}", f"-artifact_prefix={broken}/",
            str(found), str(CORPUS / name),
        )  # fmt: skip
        report = Report(seconds=time.monotonic() - began)
        if runs := re.findall(r"(?:number_of_executed_units: +|^#)(\d+)", said, re.MULTILINE):
            report.runs = max(map(int, runs))
        report.edges = max((int(n) for n in re.findall(r" cov: (\d+) ", said)), default=0)
        for path in sorted(broken.iterdir()):
            report.broken = _keep(name, path.read_bytes(), "broken")
            report.why = _last_error(said)
        if keep:
            _minimise(name, found)
    return report


def _minimise(name: str, found: Path) -> None:
    """Few inputs that reach together what the corpus and `found` do; broken ones stay."""
    mine = CORPUS / name
    with tempfile.TemporaryDirectory() as temporary:
        _atheris(name, "-set_cover_merge=1", f"-max_len={LARGEST_FILE}", temporary, str(mine), str(found))
        merged = sorted(Path(temporary).iterdir(), key=lambda p: p.stat().st_size)
        if not merged:
            return
        if len(merged) > MOST_FILES:  # small ones say what they are about, large ones go deep
            merged = merged[: MOST_FILES // 2] + merged[-(MOST_FILES // 2) :]
        for path in kept(name):
            if not path.name.startswith("broken-"):
                path.unlink()
        for path in merged:
            _keep(name, path.read_bytes())


def _atheris(name: str, *flags: str) -> str:
    """What it printed."""
    (CORPUS / name).mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzzers.guided", name, *flags]
    done = subprocess.run(command, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, check=False)
    said = done.stderr.decode(errors="replace")
    if os.environ.get("ATOLL_FUZZ_VERBOSE"):
        print(said, file=sys.stderr)
    return said


def _last_error(said: str) -> str:
    lines = re.findall(
        r"^(?:[\w.]+(?:Error|Exception|Warning|Refused)\b.*|.*ERROR: libFuzzer: .*)$", said, re.MULTILINE
    )
    return lines[0] if lines else said[-300:]


def _keep(name: str, data: bytes, sort: str = "") -> Path:
    folder = CORPUS / name
    folder.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256(data).hexdigest()[:16]
    path = folder / (f"{sort}-{digest}" if sort else digest)
    path.write_bytes(data)
    return path


def in_this_process(name: str, flags: list[str]) -> None:
    """Never returns: atheris ends the process."""
    import atheris

    with atheris.instrument_imports(include=["atoll"]):
        module = target(name)
    ours = mutator(module)

    def mutate(data: bytes, most: int, seed: int) -> bytes:
        rng = random.Random(seed)
        if ours is mutated or rng.random() < 0.3:
            changed: Any = atheris.Mutate(data, most)
            return bytes(changed)
        return ours(bytes(data), rng)[:most]

    again = f"{sys.executable} -m tests.fuzzers.guided {name}"  # what a merge starts in a shell
    atheris.Setup([again, *flags], module.fuzz, custom_mutator=mutate)
    atheris.Fuzz()
