"""Driver: what a run has left behind: processes and shared memory."""

import time
from pathlib import Path
from typing import Final

MARK: Final = "ATOLL_STRESS"
"""In the environment of all that a run starts, and of what that starts."""
_SHARED: Final = Path("/dev/shm")
PATIENCE_S: Final = 5.0


def shared() -> set[str]:
    """Names in /dev/shm."""
    return {path.name for path in _SHARED.iterdir()} if _SHARED.is_dir() else set()


def left_behind(mark: str, before: set[str], patience_s: float = PATIENCE_S) -> list[str]:
    """What there still is some seconds after the end, in words."""
    end = time.monotonic() + patience_s
    while (found := [*_processes(mark), *_memory(before)]) and time.monotonic() < end:
        time.sleep(0.2)
    return found


def _processes(mark: str) -> list[str]:
    needle = f"{MARK}={mark}\0".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if needle in (folder / "environ").read_bytes() + b"\0":
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"process {folder.name} outlived the run: {command.strip()}")
        except OSError:  # ended just now, or another's
            continue
    return found


def _memory(before: set[str]) -> list[str]:
    """Entries that are new and held by nobody: others on this machine may have theirs."""
    new = shared() - before
    if not new:
        return []
    held = set()
    for maps in Path("/proc").glob("[0-9]*/maps"):
        try:
            held |= {line.rpartition("/dev/shm/")[2] for line in maps.read_text().splitlines() if "/dev/shm/" in line}
        except OSError:
            continue
    return [f"/dev/shm/{name} was left behind" for name in sorted(new - held)]
