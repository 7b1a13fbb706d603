"""A stream into `Session`, in pieces of any size, with and without a token. A second reader, which sees the whole
stream at once, says what must come out."""

from atoll.errors import ConnectionLost, ProtocolError, Refused
from atoll.net import preamble
from atoll.net.handshake import PROOF_BYTES, Handshake, derive
from atoll.net.preamble import Greeting
from atoll.net.session import FRAME, LARGEST_HEAD, Session
from atoll.version import VERSION
from tests.fuzzers.choices import Choices

LARGEST = 1 << 16
KEY, CHALLENGE = derive(b"a token of the fuzzer"), bytes(range(32))
PLAIN = preamble.encode(Greeting("fuzz", ("test",)))
CHALLENGED = preamble.encode(Greeting("fuzz", ("test",), CHALLENGE))
OURS = preamble.encode(Greeting(VERSION, ("test",), CHALLENGE))


def proof() -> bytes:
    """What a dialler that knows the token says to our listener."""
    said = Handshake(KEY, True, CHALLENGED).greeted(OURS, True)
    assert said is not None
    return FRAME.pack(0, PROOF_BYTES, 0) + said


def expected(stream: bytes, guarded: bool) -> list[tuple[bytes, bytes]]:
    """The messages in a stream that begins with a good greeting, and a good proof where one is needed."""
    start = CHALLENGED + proof() if guarded else PLAIN
    if not stream.startswith(start):
        return []
    at, found = len(start), []
    while at + FRAME.size <= len(stream):
        nbytes, length, zero = FRAME.unpack_from(stream, at)
        at += FRAME.size
        if zero or length > LARGEST_HEAD or nbytes > LARGEST or at + length + nbytes > len(stream):
            break
        found.append((stream[at : at + length], stream[at + length : at + length + nbytes]))
        at += length + nbytes
    return found


def fuzz(data: bytes) -> None:
    choices = Choices(data)
    how = choices.number()
    sizes = choices.take(choices.number() % 16) or b"\xff"
    guarded = bool(how & 1)
    stream = choices.rest()
    if how & 2:
        stream = (CHALLENGED + proof() if guarded else PLAIN) + stream
    guard = (KEY, CHALLENGE) if guarded else (b"", b"")
    session = Session("test", dialled=False, largest=LARGEST, key=guard[0], challenge=guard[1])
    at = turn = 0
    try:
        while at < len(stream):
            room = session.room()
            assert 0 < len(room) <= max(LARGEST, LARGEST_HEAD)
            assert session.admitted or len(room) <= 1024, "memory for who has not said who it is"
            some = stream[at : at + min(len(room), sizes[turn % len(sizes)] or 1)]
            room[: len(some)] = some
            at, turn = at + len(some), turn + 1
            session.took(len(some))
        session.ended()
    except (ProtocolError, Refused, ConnectionLost):
        pass
    found = [(message.head, bytes(message.data)) for message in session.come]
    wanted = expected(stream, guarded)
    if wanted or (how & 2):
        assert found == wanted, f"{len(found)} messages instead of {len(wanted)}"
    if guarded and not stream.startswith(CHALLENGED + proof()):
        assert not found, "somebody spoke without a proof"


def seeds() -> list[bytes]:
    def frame(head: bytes, data: bytes = b"", zero: int = 0) -> bytes:
        return FRAME.pack(len(data), len(head), zero) + head + data

    return [
        b"\2\0" + frame(b"hello") + frame(b"", bytes(300)) + frame(b"", b""),
        b"\3\2\7\1" + frame(b"hello", b"data"),
        b"\1\0" + CHALLENGED + FRAME.pack(0, PROOF_BYTES, 0) + bytes(PROOF_BYTES) + frame(b"hello"),
        b"\1\0" + CHALLENGED + FRAME.pack(1 << 40, PROOF_BYTES, 0),
        b"\2\0" + FRAME.pack(LARGEST + 1, 0, 0),
        b"\2\0" + FRAME.pack(0, LARGEST_HEAD + 1, 0),
        b"\2\0" + frame(b"x", b"y", 1),
        b"\0\3\1\2\3GET / HTTP/1.1\r\n\r\n",
        b"\0\0" + preamble.encode(Greeting("fuzz", ("else",))) + frame(b"hello"),
        b"\0\0" + preamble.encode(Greeting("fuzz", ("test",)), wire_version=9),
        b"\0\0\x16\x03\x01\x02\x00\x01\x00\x01",
    ]
