"""Interface: what a demonstration of a published system is: a generator of lines, each a claim and what was
measured."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

Verdict = Literal["pass", "fail", "not yet"]
Kind = Literal["real", "simulated", "-"]


@dataclass(frozen=True, slots=True)
class Line:
    """One claim of a system's sheet, as this machine sees it."""

    number: str
    claim: str
    expected: str
    measured: str
    verdict: Verdict
    kind: Kind = "real"


Say = Callable[[str], None]
"""What goes on, for the one who waits."""
Demonstration = Callable[[bool, int, Say], Iterator[Line]]
"""Called with `full`, a seed and `say`."""


def judged(ok: bool) -> Verdict:
    """pass or fail."""
    return "pass" if ok else "fail"
