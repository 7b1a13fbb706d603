"""Interface: what a demonstration of a published system is: parts, which give lines, each a claim and what was
measured."""

from collections.abc import Callable, Iterable
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


@dataclass(frozen=True, slots=True)
class Part:
    """Some lines that are found together. LabUnavailable: there is no lab, which they need; another error: it has
    failed as a whole."""

    about: str
    lines: Callable[[], Iterable[Line]]


Demonstration = Callable[[bool, int, Say], dict[str, Part]]
"""Called with `full`, a seed and `say`. Parts by the number of the sheet's "Done when", with or without a letter, as it
does them in order."""


def judged(ok: bool) -> Verdict:
    """pass or fail."""
    return "pass" if ok else "fail"


def missing(number: str, claim: str, expected: str, needs: str) -> Line:
    """A line that can't be found now, and what it needs."""
    return Line(number, claim, expected, f"needs {needs}", "not yet", "-")
