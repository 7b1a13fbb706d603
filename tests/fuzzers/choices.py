"""Any bytes as decisions: what to do next, how much, with which words."""

from collections.abc import Iterator, Sequence
from typing import Final, TypeVar

T = TypeVar("T")

LARGEST_RECORD: Final = 1 << 16


class Choices:
    """Reads from the front; where nothing is left, zeros."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        return max(0, len(self._data) - self._at)

    def take(self, nbytes: int) -> bytes:
        """The next so many, or fewer at the end."""
        taken = self._data[self._at : self._at + nbytes]
        self._at += nbytes
        return taken

    def rest(self) -> bytes:
        return self.take(self.left)

    def number(self, nbytes: int = 1) -> int:
        return int.from_bytes(self.take(nbytes), "little")

    def pick(self, options: Sequence[T]) -> T:
        return options[self.number() % len(options)]


def records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """What to do and with which bytes: u8, u16 length, bytes; again and again."""
    choices = Choices(data)
    while choices.left:
        yield choices.number(), choices.take(choices.number(2))


def recorded(*what: tuple[int, bytes]) -> bytes:
    """The reverse."""
    return b"".join(bytes([op]) + len(body).to_bytes(2, "little") + body for op, body in what)
