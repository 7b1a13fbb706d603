"""Policy: the first bytes on every connection, the same in all versions, so that two that don't match can say so.

magic "ATOL" | wire version u16 | length u16 | msgpack {"atoll": version, "features": [...], "challenge": 0 or 32 bytes}
"""

import struct
from typing import Final

import msgspec

from atoll.errors import ProtocolError, Refused
from atoll.net.handshake import CHALLENGE_BYTES

WIRE_VERSION: Final = 5
HEAD: Final = struct.Struct("<4sHH")
_MAGIC: Final = b"ATOL"
_LARGEST: Final = 1024
_TLS: Final = (b"\x15\x03", b"\x16\x03")
"""How TLS begins: with an alert, or with a handshake."""


class Greeting(msgspec.Struct, frozen=True):
    """Who speaks: the version of the software and what it can do beyond the base protocol.

    `challenge`: new for each connection; not empty: prove that you know the token. It is the last of all bytes.
    """

    atoll: str
    features: tuple[str, ...] = ()
    challenge: bytes = b""


def encode(greeting: Greeting, wire_version: int = WIRE_VERSION) -> bytes:
    """The bytes to say first."""
    body = msgspec.msgpack.encode(greeting)
    return HEAD.pack(_MAGIC, wire_version, len(body)) + body


def body_size(head: bytes | memoryview) -> int:
    """How many bytes follow this head. ProtocolError: not atoll at all. Refused: atoll, but not as we speak it."""
    magic, version, length = HEAD.unpack(head)
    refuse_tls(head)
    if magic != _MAGIC:
        raise ProtocolError(f"the other side is not atoll: it began with {bytes(head)!r}")
    if version != WIRE_VERSION:
        raise Refused(
            f"the other side speaks wire version {version}, this one {WIRE_VERSION}: install the same atoll on both"
        )
    if length > _LARGEST:
        raise ProtocolError(f"a greeting of {length} bytes")
    return int(length)


def refuse_tls(start: bytes | memoryview) -> None:
    """Refused: the other side began with TLS, where it could not."""
    if bytes(start[:2]) in _TLS:
        raise Refused(
            "the other side speaks TLS, this one plain: "
            "give all of the group certificates of the same CA (--tls-cert, --tls-key, --tls-ca), or none"
        )


def decode(body: bytes | memoryview) -> Greeting:
    """What the other side said of itself."""
    try:
        greeting = msgspec.msgpack.decode(body, type=Greeting)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise ProtocolError(f"unreadable greeting: {error}") from None
    if len(greeting.challenge) not in (0, CHALLENGE_BYTES):
        raise ProtocolError(f"a challenge of {len(greeting.challenge)} bytes")
    return greeting
