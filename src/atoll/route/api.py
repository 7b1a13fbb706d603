"""Interface: what a policy is told of a request and of those who could answer it, and what it decides: who is asked."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Asked:
    """A request, as far as it says where it should go. `key`: the same where prompts begin alike, or are of one
    session."""

    key: str


@dataclass(frozen=True, slots=True)
class Choice:
    """One who can be asked now. `number`: its place among all there are. `open`: requests that are with it."""

    number: int
    name: str
    open: int


class Balance(Protocol):
    """Chooses, one request after the other."""

    def choose(self, asked: Asked, choices: Sequence[Choice]) -> int:
        """The number of one of `choices`, which are in order of their numbers, and never none."""
