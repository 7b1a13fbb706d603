"""Interface: what a simulated run comes to, and who is told on the way."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

Say = Callable[[str], None]
"""How far the run is, for the one who waits."""


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, and how people read it."""

    value: float
    text: str


@dataclass(frozen=True, slots=True)
class Check:
    """A law that every run must keep, and whether this one has."""

    law: str
    kept: bool
    said: str


@dataclass(frozen=True, slots=True)
class Curve:
    """Something over something else; those of one `plot` of several runs stand in one picture."""

    plot: str
    xlabel: str
    ylabel: str
    xs: list[float]
    ys: list[float]


@dataclass(frozen=True, slots=True)
class Result:
    """Of one run. Nothing of it was measured."""

    seed: int
    calibration: str
    """By how much the costs are off, or that nobody knows."""
    seconds: float
    """Of virtual time."""
    figures: dict[str, Figure]
    hash: str
    """Of all that happened, in order and with its times."""
    events: int
    checks: tuple[Check, ...]
    curves: tuple[Curve, ...] = ()
    warnings: tuple[str, ...] = ()
    changes: dict[str, Any] = field(default_factory=dict)
    """What distinguishes it from the other runs of a sweep."""
    real_seconds: float = 0.0
    """That it took."""

    @property
    def sound(self) -> bool:
        """Has it kept every law?"""
        return all(check.kept for check in self.checks)

    def to_json(self) -> dict[str, Any]:
        """One object, marked as simulated."""
        return {
            "simulated": True,
            "calibration": self.calibration,
            "changes": self.changes,
            "seed": self.seed,
            "seconds": self.seconds,
            **{name: figure.value for name, figure in self.figures.items()},
            "hash": self.hash,
            "events": self.events,
            "checks": [asdict(check) for check in self.checks],
            "warnings": list(self.warnings),
            "real_seconds": round(self.real_seconds, 3),
        }


def duration(seconds: float) -> str:
    """As people say it, to about three digits."""
    if seconds < 0.9995:
        return f"{seconds * 1e3:.3g} ms"
    if seconds < 119.5:
        return f"{seconds:.3g} s"
    minutes, s = divmod(round(seconds), 60)
    if minutes < 120:
        return f"{minutes} min {s:02d} s"
    return f"{minutes // 60} h {minutes % 60:02d} min"


def volume(nbytes: float) -> str:
    """Bytes as people say them, to about three digits."""
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if nbytes < 999.5:
            return f"{nbytes:.3g} {unit}"
        nbytes /= 1000
    return f"{nbytes:.4g} PB"


def share(part: float) -> str:
    """In percent."""
    return f"{part:.1%}"
