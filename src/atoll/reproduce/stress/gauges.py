"""Driver: do long-lived processes grow? Memory and open descriptors from `/proc`, sampled, and their trend."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import numpy as np
import psutil
from numpy.typing import NDArray

EVERY_S: Final = 1.0
LONGEST_WARM_UP_S: Final = 120.0
_WARM_UP: Final = 0.3
_WINDOWS: Final = 12
_FEWEST: Final = 120
MOST_BYTES: Final = 10e6
MOST_DESCRIPTORS: Final = 10.0


@dataclass(frozen=True)
class Growth:
    """How much more there would be after a whole run."""

    name: str
    lived_s: float
    bytes: float
    descriptors: float
    now_bytes: float
    now_descriptors: float

    @property
    def ok(self) -> bool:
        """Is it none, as far as one can tell?"""
        return self.bytes < MOST_BYTES and self.descriptors < MOST_DESCRIPTORS


def growth(at_s: Sequence[float], values: Sequence[float], seconds: float) -> float:
    """By how much memory would grow in so many seconds: a line through the lowest of each of twelve windows. What comes
    and goes with the number of peers leaves the lows alone; what is never given back doesn't."""
    windows = _windows(values)
    lowest = [int(window[np.argmin(np.asarray(values)[window])]) for window in windows]
    slope = np.polyfit([at_s[i] for i in lowest], [values[i] for i in lowest], 1)[0]
    return float(slope) * seconds


def widening(at_s: Sequence[float], values: Sequence[float], seconds: float) -> float:
    """The same of descriptors: a line through the medians. There are two for each peer, and how few peers there ever
    were in a window is luck."""
    middles = [
        (at_s[window[len(window) // 2]], float(np.median(np.asarray(values)[window]))) for window in _windows(values)
    ]
    times, medians = zip(*middles, strict=True)
    return float(np.polyfit(times, medians, 1)[0]) * seconds


def _windows(values: Sequence[float]) -> list[NDArray[np.int64]]:
    return [window for window in np.array_split(np.arange(len(values)), _WINDOWS) if len(window)]


@dataclass
class _Life:
    at_s: list[float] = field(default_factory=list)
    bytes: list[float] = field(default_factory=list)
    descriptors: list[float] = field(default_factory=list)


class Gauges:
    """Samples processes by name and id."""

    def __init__(self) -> None:
        self._lives: dict[tuple[str, int], _Life] = {}
        self._due = 0.0

    def sample(self, now: float, processes: dict[str, int]) -> None:
        """Once a second, however often called."""
        if now < self._due:
            return
        self._due = now + EVERY_S
        for name, pid in processes.items():
            try:
                process = psutil.Process(pid)
                rss, descriptors = process.memory_info().rss, process.num_fds()
            except psutil.Error:  # it has just ended
                continue
            life = self._lives.setdefault((name, pid), _Life())
            life.at_s.append(now)
            life.bytes.append(rss)
            life.descriptors.append(descriptors)

    def write(self, file: Path) -> None:
        """All samples: name, process, seconds, bytes, descriptors."""
        with file.open("w") as out:
            for (name, pid), life in self._lives.items():
                for sample in zip(life.at_s, life.bytes, life.descriptors, strict=True):
                    out.write(f"{name},{pid},{','.join(f'{value:.0f}' for value in sample)}\n")

    def growths(self, seconds: float) -> list[Growth]:
        """Of each name, in its longest life; without the beginning, in which all grow."""
        longest: dict[str, _Life] = {}
        for (name, _), life in self._lives.items():
            if name not in longest or len(life.at_s) > len(longest[name].at_s):
                longest[name] = life
        found = []
        for name, life in longest.items():
            lived = life.at_s[-1] - life.at_s[0]
            warm = life.at_s[0] + min(_WARM_UP * lived, LONGEST_WARM_UP_S)
            first = next(i for i, at in enumerate(life.at_s) if at >= warm)
            at_s = life.at_s[first:]
            if len(at_s) < _FEWEST:  # too short a life to tell
                continue
            more, wider = growth(at_s, life.bytes[first:], seconds), widening(at_s, life.descriptors[first:], seconds)
            found.append(Growth(name, lived, more, wider, life.bytes[-1], life.descriptors[-1]))
        return found
