"""A stream into `Channel.read`, greeting first, in pieces of any size. A second reader, which sees the whole stream at
once, says what must come out."""

import socket
import struct
from typing import Any, cast

from atoll.errors import ProtocolError, Refused
from atoll.group.api import LARGEST_FRAME
from atoll.net import preamble
from atoll.net.channel import CONTROL, HEADER, LARGEST_CONTROL, LENT, WHERE, Channel
from atoll.net.preamble import Greeting
from tests.fuzzers.choices import Choices

GREETING = Greeting("fuzz")
FIRST = preamble.encode(GREETING)
SLOT, SLOTS = 4096, 3
HONEST = (ProtocolError, Refused, ConnectionError)


class Pipe:
    """A socket that has these bytes, and gives at most so many at a time."""

    family = socket.AF_UNIX

    def __init__(self, data: bytes, sizes: bytes) -> None:
        self._data, self._sizes = data, sizes or b"\xff"
        self._at = self._turn = 0

    def setblocking(self, blocking: bool) -> None:
        assert not blocking

    def recv_into(self, view: memoryview) -> int:
        self._turn += 1
        if self._turn % 3 == 0 and self._at < len(self._data):
            raise BlockingIOError
        size = self._sizes[self._turn % len(self._sizes)]
        some = self._data[self._at : self._at + min(len(view), size or 1)]
        view[: len(some)] = some
        self._at += len(some)
        return len(some)

    def close(self) -> None:
        pass


class Slots:
    """Memory the other side lends."""

    def view(self, where: int, nbytes: int) -> memoryview:
        if where >= SLOTS or nbytes > SLOT:
            raise ProtocolError("no such slot")
        return memoryview(bytes([where]) * nbytes)


def place(sequence: int, word: int, nbytes: int) -> memoryview | None:
    """As a station does; odd words are held back."""
    if nbytes > LARGEST_FRAME:
        raise ProtocolError("too large")
    return None if word & 1 else memoryview(bytearray(nbytes))


def expected(data: bytes, lends: bool, takes: bool) -> tuple[list[tuple[int, int, bytes]], bool]:
    """The frames in a stream, and whether it ends where it may."""
    frames: list[tuple[int, int, bytes]] = []
    if len(data) < 8 or data[:4] != b"ATOL" or struct.unpack_from("<H", data, 4)[0] != preamble.WIRE_VERSION:
        return frames, False
    (size,) = struct.unpack_from("<H", data, 6)
    if size > 1024 or len(data) < 8 + size:
        return frames, False
    try:
        preamble.decode(data[8 : 8 + size])
    except ProtocolError:
        return frames, False
    at = 8 + size
    while at + HEADER.size <= len(data):
        sequence, length, word = HEADER.unpack_from(data, at)
        at += HEADER.size
        if sequence == CONTROL:
            if length > LARGEST_CONTROL:
                return frames, False
        elif length & LENT:
            if not lends or not takes or at + WHERE.size > len(data):
                return frames, False
            (where,) = WHERE.unpack_from(data, at)
            at += WHERE.size
            if where >= SLOTS or length & ~LENT > SLOT:
                return frames, False
            frames.append((sequence, word, bytes([where]) * (length & ~LENT)))
            continue
        elif not takes or length > LARGEST_FRAME or word & 1:
            return frames, bool(word & 1) and takes and length <= LARGEST_FRAME
        if at + length > len(data):
            return frames, False
        frames.append((sequence, word, data[at : at + length]))
        at += length
    return frames, False


def fuzz(data: bytes) -> None:
    choices = Choices(data)
    how = choices.number()
    sizes = choices.take(choices.number() % 16)
    stream = (FIRST if how & 1 else b"") + choices.rest()
    takes, lends = bool(how & 2), bool(how & 4)
    pipe = Pipe(stream, sizes)
    sock = cast("Any", pipe)
    channel = Channel(sock, GREETING, place) if takes else Channel(sock, GREETING)
    if lends:
        channel.lender = Slots()
    frames: list[tuple[int, int, bytes]] = []
    error = False
    for _ in range(40 + 40 * len(stream)):
        try:
            for frame in channel.read():
                frames.append((frame.sequence, frame.word, bytes(frame.here)))
                assert frame.lent < 0 or (lends and frame.sequence != CONTROL)
        except HONEST:
            error = True
            break
        if channel.held:
            break
    wanted, held = expected(stream, lends, takes)
    assert frames == wanted, f"{len(frames)} frames instead of {len(wanted)}"
    assert channel.held == held
    assert error != held, "a stream ends with an error of the protocol, or its own end"


def seeds() -> list[bytes]:
    def frame(sequence: int, body: bytes, word: int = 0) -> bytes:
        return HEADER.pack(sequence, len(body), word) + body

    lent = HEADER.pack(5, LENT | 100, 2) + WHERE.pack(1)
    return [
        b"\0\0" + FIRST + frame(CONTROL, b"hello"),
        b"\1\1\1" + frame(CONTROL, b"hello") + frame(CONTROL, b""),
        b"\3\2\7\0" + frame(1, bytes(300), 2) + frame(CONTROL, b"x") + frame(2, b"held", 1),
        b"\7\0" + lent + frame(7, b"data", 4) + lent,
        b"\1\0" + HEADER.pack(CONTROL, LARGEST_CONTROL + 1, 0),
        b"\0\0" + preamble.encode(GREETING, wire_version=9),
        b"\0\3\1\2\3GET / HTTP/1.1\r\n\r\n",
    ]
