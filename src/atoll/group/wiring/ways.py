"""Driver: the ways by which the bytes of a frame reach the next peer: through the connection, through slots of shared
memory, or not at all: the other side reads them where they are."""

from typing import Final, Protocol

from atoll.errors import ProtocolError
from atoll.group.api import unvoted_parts
from atoll.group.station import Take
from atoll.net.arena import Arena
from atoll.net.channel import Channel
from atoll.net.neighbour import address_of

INLINE: Final = 8 << 10
"""Bytes below which a socket is as quick as anything."""
_SLOTS_A_LINK: Final = 4
"""Few, so that they stay in the processor's cache."""


class Way(Protocol):
    """How the frames of one link travel."""

    name: str
    long: bool
    """Can it be so long that several connections are worth their while?"""

    def open(self) -> bool:
        """Can another frame go?"""

    def put(self, channel: Channel, to: int, seq: int, word: int, take: Take) -> None:
        """Queue a frame, unless nobody wants it any more."""

    def take_back(self, slots: tuple[int, ...]) -> None:
        """The other side has read these. ProtocolError: it had none of them."""

    def close(self) -> None:
        """The link is gone."""


class Stream:
    """Through the connection."""

    name = "TCP"
    long = True

    def open(self) -> bool:
        return True

    def put(self, channel: Channel, to: int, seq: int, word: int, take: Take) -> None:
        data = take()
        if data is not None:
            channel.put(seq, data, word)

    def take_back(self, slots: tuple[int, ...]) -> None:
        raise ProtocolError("memory was given back that we never lent")

    def close(self) -> None:
        """Nothing is lent."""


class InPlace(Stream):
    """The other side reads our memory; what it reads doesn't change before the group has decided."""

    name = "direct reads"
    long = False

    def put(self, channel: Channel, to: int, seq: int, word: int, take: Take) -> None:
        data = take()
        if data is None:
            return
        if len(data) <= INLINE:
            channel.put(seq, data, word)
        else:
            channel.lend(seq, address_of(data), len(data), word)


class Copies:
    """What lies in our arena: one copy serves all who get the same."""

    def __init__(self, arena: Arena) -> None:
        self.arena = arena
        self._slots: dict[tuple[int, int, int], tuple[int, int]] = {}
        """(slot, bytes) by data phase and word."""

    def find(self, to: int, seq: int, word: int) -> tuple[int, int] | None:
        """A copy that is still there."""
        return self._slots.get(_content(to, seq, word))

    def add(self, to: int, seq: int, word: int, data: memoryview) -> int:
        """Make one."""
        slot = self.arena.lend(data)
        self._slots[_content(to, seq, word)] = slot, len(data)
        return slot

    def give_back(self, slot: int) -> None:
        """A reader less."""
        if self.arena.give_back(slot):
            self._slots = {content: copy for content, copy in self._slots.items() if copy[0] != slot}


class Shared:
    """Through slots of our arena."""

    name = "shared memory"
    long = False

    def __init__(self, copies: Copies) -> None:
        self._copies = copies
        self._lent: set[int] = set()

    def open(self) -> bool:
        return len(self._lent) < _SLOTS_A_LINK and self._copies.arena.free > 0

    def put(self, channel: Channel, to: int, seq: int, word: int, take: Take) -> None:
        copy = self._copies.find(to, seq, word)
        if copy is not None and copy[0] not in self._lent:
            slot, nbytes = copy
            self._copies.arena.lend_again(slot)
        else:
            data = take()
            if data is None:
                return
            nbytes = len(data)
            if nbytes <= INLINE:
                channel.put(seq, data, word)
                return
            slot = self._copies.add(to, seq, word, data)
        self._lent.add(slot)
        channel.lend(seq, slot, nbytes, word)

    def take_back(self, slots: tuple[int, ...]) -> None:
        for slot in slots:
            if slot not in self._lent:
                raise ProtocolError(f"slot {slot} was given back, but not lent")
            self._lent.remove(slot)
            self._copies.give_back(slot)

    def close(self) -> None:
        self.take_back(tuple(self._lent))


def _content(to: int, seq: int, word: int) -> tuple[int, int, int]:
    """What goes to several is equal for all of them, but between two."""
    unvoted = unvoted_parts(seq, to)
    return seq, unvoted[0].other if unvoted else 0, word
