"""Policy: which of several engines gets a request."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final, Literal

import xxhash

from atoll.route.api import Asked, Balance, Choice

BOUND: Final = 1.25
"""Of its share of all requests, an engine gets no more for the sake of a prefix."""


class Turns:
    """One after the other, in a circle; who can't be asked is passed over."""

    def __init__(self) -> None:
        self._last = -1

    def choose(self, asked: Asked, choices: Sequence[Choice]) -> int:
        """See `Balance`."""
        numbers = [choice.number for choice in choices]
        self._last = next((number for number in numbers if number > self._last), numbers[0])
        return self._last


class Fewest:
    """The one with the fewest requests; of several the first."""

    def choose(self, asked: Asked, choices: Sequence[Choice]) -> int:
        """See `Balance`."""
        return min(choices, key=lambda choice: choice.open).number


class Prefix:
    """Equal keys go to the same engine, the first in that key's own order that isn't full.

    The order is by a hash of key and engine (rendezvous hashing: Thaler and Ravishankar, 1998, "Using name-based
    mappings to increase hit rates"), so that one who goes or comes moves no key but its own. Full is who has, with this
    request, more than `bound` times an equal share of all, rounded up (consistent hashing with bounded loads:
    Mirrokni, Thorup and Zadimoghaddam, 2018, arXiv 1608.01350).
    """

    def __init__(self, bound: float = BOUND) -> None:
        self._bound = bound

    def choose(self, asked: Asked, choices: Sequence[Choice]) -> int:
        """See `Balance`."""
        full = math.ceil(self._bound * (1 + sum(choice.open for choice in choices)) / len(choices))
        free = (choice for choice in choices if choice.open < full)
        return max(free, key=lambda choice: xxhash.xxh3_64_intdigest(f"{asked.key}\0{choice.name}".encode())).number


Name = Literal["fewest", "turns", "prefix"]
BALANCES: Final[Mapping[Name, Callable[[], Balance]]] = {"fewest": Fewest, "turns": Turns, "prefix": Prefix}
