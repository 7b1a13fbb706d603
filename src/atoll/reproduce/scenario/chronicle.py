"""Driver: the event log of a run: hashed as it grows, so that two runs are the same if their hashes are, and traced."""

from collections.abc import Callable
from typing import Any

import msgspec
import xxhash

from atoll.record import Record


class Chronicle:
    """Everything that happens, in order, with its time in ns."""

    def __init__(self, now_ns: Callable[[], int], record: Record) -> None:
        self.record = record
        self.entries = 0
        self._now_ns = now_ns
        self._digest = xxhash.xxh3_128()

    def tell(self, kind: str, who: str, **about: Any) -> None:
        """One more."""
        self.entries += 1
        self._digest.update(msgspec.msgpack.encode((self._now_ns(), kind, who, about), enc_hook=repr))

    def mark(self, kind: str, who: str, **about: Any) -> None:
        """As `tell`, and it stands in the trace."""
        self.tell(kind, who, **about)
        self.record.event(kind, lane=f"{who}/events", **about)

    def heard(self) -> "Heard":
        """A list that tells all that is appended and keeps nothing."""
        return Heard(self)

    def hash(self) -> str:
        """128 bits of all so far, in hex."""
        return self._digest.hexdigest()


class Heard(list[tuple[int, Any]]):
    """What the master said, to whom."""

    def __init__(self, chronicle: Chronicle) -> None:
        super().__init__()
        self._chronicle = chronicle

    def append(self, said: tuple[int, Any]) -> None:
        to, message = said
        self._chronicle.tell(type(message).__name__, "master", to=to, message=message)
