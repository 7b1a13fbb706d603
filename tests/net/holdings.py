"""What a process holds that it must give back: descriptors, and memory that lies in files without a place."""

import os
import re
from collections import Counter
from pathlib import Path

MEMORY = re.compile(r"\S+ \S+ \S+ \S+ (\d+) +/memfd:atoll")


def descriptors(pid: int | str = "self") -> Counter[str]:
    """How many open descriptors there are of each kind: socket, memory, other."""
    found: Counter[str] = Counter()
    folder = Path(f"/proc/{pid}/fd")
    for fd in os.listdir(folder):
        try:
            target = os.readlink(folder / fd)
        except FileNotFoundError:  # the one that lists
            continue
        kinds = {"socket:": "socket", "/memfd:atoll": "memory"}
        found[next((kind for start, kind in kinds.items() if target.startswith(start)), "other")] += 1
    return found


def mapped_arenas(pid: int | str = "self") -> set[int]:
    """The inodes of all arenas that are mapped."""
    return {int(line[1]) for line in MEMORY.finditer(Path(f"/proc/{pid}/maps").read_text())}
