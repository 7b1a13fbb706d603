"""Policy: what settings may be: a range for each number, one of its words for each choice; errors name the flag."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin, get_type_hints

from atoll.errors import InvalidConfig


@dataclass(frozen=True, slots=True)
class Range:
    """Numbers from `low` to `high`; without those themselves where it is `above` and `below` them. `endless`: and
    infinity."""

    low: float
    high: float = math.inf
    above: bool = False
    below: bool = False
    endless: bool = False

    def __contains__(self, value: float) -> bool:
        fits = value > self.low if self.above else value >= self.low
        fits &= value < self.high if self.below else value <= self.high
        return fits and (self.endless or math.isfinite(value))

    def __str__(self) -> str:
        if self.high == math.inf:
            finite = "" if self.endless else " and finite"
            return f"above {self.low:g}{finite}" if self.above else f"at least {self.low:g}"
        if self.below:
            return f"at least {self.low:g} and less than {self.high:g}"
        return f"from {self.low:g} to {self.high:g}"


AT_LEAST_0 = Range(0)
AT_LEAST_1 = Range(1)
ABOVE_0 = Range(0, above=True)


def check(settings: Any, limits: Mapping[str, Range], prefix: str = "") -> None:
    """InvalidConfig: a number of this dataclass is out of its range (None: it has a default), or a word is none of
    those there are. `prefix`: of its flags."""
    for name, limit in limits.items():
        value = getattr(settings, name)
        if value is not None and value not in limit:
            raise InvalidConfig(f"{flag(prefix + name)} must be {limit}, not {value}")
    for name, words in _choices(settings.__class__).items():
        if (value := getattr(settings, name)) not in words:
            raise InvalidConfig(f"{flag(prefix + name)} must be one of {', '.join(words)}, not {value!r}")


def flag(name: str) -> str:
    """As it is typed."""
    return f"--{name.replace('_', '-')}"


@cache
def _choices(kind: type) -> dict[str, list[str]]:
    """Words that may stand there, for each field that is a choice."""
    found = {name: list(_words(hint)) for name, hint in get_type_hints(kind).items()}
    return {name: words for name, words in found.items() if words}


def _words(kind: Any) -> Iterator[str]:
    """Those of a choice."""
    if get_origin(kind) is Literal:
        yield from get_args(kind)
    else:
        for part in get_args(kind):
            yield from _words(part)
