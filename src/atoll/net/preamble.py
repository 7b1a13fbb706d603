"""Policy: the first bytes on every connection, the same in all versions, so that two that don't match can say so.

magic "ATOL" | wire version u16 | length u16 | msgpack {"atoll": version, "features": [...]}
"""

import struct
from typing import Final

import msgspec

from atoll.errors import ProtocolError, Refused

WIRE_VERSION: Final = 2
HEAD: Final = struct.Struct("<4sHH")
_MAGIC: Final = b"ATOL"
_LARGEST: Final = 1024


class Greeting(msgspec.Struct, frozen=True):
    """Who speaks: the version of the software and what it can do beyond the base protocol."""

    atoll: str
    features: tuple[str, ...] = ()


def encode(greeting: Greeting, wire_version: int = WIRE_VERSION) -> bytes:
    """The bytes to say first."""
    body = msgspec.msgpack.encode(greeting)
    return HEAD.pack(_MAGIC, wire_version, len(body)) + body


def body_size(head: bytes | memoryview) -> int:
    """How many bytes follow this head. ProtocolError: not atoll at all. Refused: atoll, but another wire version."""
    magic, version, length = HEAD.unpack(head)
    if magic != _MAGIC:
        raise ProtocolError(f"the other side is not atoll: it began with {bytes(head)!r}")
    if version != WIRE_VERSION:
        raise Refused(
            f"the other side speaks wire version {version}, this one {WIRE_VERSION}: install the same atoll on both"
        )
    if length > _LARGEST:
        raise ProtocolError(f"a greeting of {length} bytes")
    return int(length)


def decode(body: bytes | memoryview) -> Greeting:
    """What the other side said of itself."""
    try:
        return msgspec.msgpack.decode(body, type=Greeting)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"unreadable greeting: {error}") from None
