"""Policy: one side of a connection between actors, without the connection: it greets, proves, then frames messages.

    greeting                             as on every connection (`net/preamble.py`); its features: what is spoken here
    proofs                               where a token is required (`net/handshake.py`), each in a frame
    {data u64, length u32, 0 u32}        a frame: a head of `length` bytes, then `data` raw ones

Bytes go where `room()` says, `took` counts them: so large data is read straight into its place.
"""

import struct
from collections import deque
from collections.abc import Generator
from typing import Final

import numpy as np

from atoll.errors import ConnectionLost, ProtocolError, Refused
from atoll.net import preamble
from atoll.net.handshake import DENIED, PROOF_BYTES, Handshake
from atoll.net.preamble import Greeting
from atoll.runtime.api import Message
from atoll.version import VERSION

FRAME: Final = struct.Struct("<QII")
LARGEST_HEAD: Final = 4 << 20
LARGEST_DATA: Final = 1 << 46


class Session:
    """`protocol`: what is spoken; both must say the same. `key`: of the token, `challenge`: new and random where there
    is one, else empty. `largest`: data of a message that may come. `binding`: what only this connection has (TLS).

    Errors are final: Refused, where the other side is atoll, but not of ours; ProtocolError, where it isn't.
    """

    def __init__(
        self, protocol: str, *, dialled: bool, largest: int = 0, key: bytes = b"", challenge: bytes = b"",
        binding: bytes = b"",
    ) -> None:  # fmt: skip
        self.protocol, self.largest, self._binding = protocol, largest, binding
        ours = preamble.encode(Greeting(VERSION, (protocol,), challenge))
        self._handshake = Handshake(key, dialled, ours)
        self._dialled = dialled
        self.leaving: list[bytes] = [ours]
        """Is to be sent, before all else: what the session itself has to say."""
        self.come: deque[Message] = deque()
        """Messages that are whole."""
        self.admitted = False
        """Has the other side greeted, and proven what it must?"""
        self._parts = self._read()
        self._room = next(self._parts)
        self._seen = memoryview(b"")

    def room(self) -> memoryview:
        """Where the next bytes go; never empty."""
        return self._room

    def took(self, nbytes: int) -> None:
        """So many have come there."""
        self._room = self._room[nbytes:]
        while not self._room:
            self._room = next(self._parts)

    def ended(self) -> None:
        """Nothing more comes. Refused, if what has come says why."""
        if not self.admitted:
            preamble.refuse_tls(self._seen)
            raise ConnectionLost("the other side closed before it had said who it is; maybe it speaks TLS, or plain")

    def framed(self, head: bytes, nbytes: int) -> bytes:
        """What goes before so many bytes of data. ValueError: too many of either."""
        if len(head) > LARGEST_HEAD or nbytes > LARGEST_DATA:
            raise ValueError(f"a message has a head of at most {LARGEST_HEAD} bytes and {LARGEST_DATA} of data")
        return FRAME.pack(nbytes, len(head), 0) + head

    # -- inside -------------------------------------------------------------------------------------------------------

    def _read(self) -> Generator[memoryview, None, None]:
        """What is read, part by part, each given as the place for it."""
        first = bytearray(preamble.HEAD.size)
        self._seen = memoryview(first)
        yield memoryview(first)
        body = bytearray(preamble.body_size(memoryview(first)))
        yield memoryview(body)
        self._greeted(preamble.decode(memoryview(body)), bytes(first + body))
        frame = bytearray(FRAME.size)
        while True:
            yield memoryview(frame)
            nbytes, length, zero = FRAME.unpack(frame)
            self._check(nbytes, length, zero)
            head = bytearray(length)
            yield memoryview(head)
            if not self.admitted:
                self._heard(bytes(head))
                continue
            data: memoryview = np.empty(nbytes, np.uint8).data  # takes memory as bytes come, not when promised
            yield data
            self.come.append(Message(bytes(head), data))

    def _greeted(self, greeting: Greeting, said: bytes) -> None:
        answer = self._handshake.greeted(said, bool(greeting.challenge), self._binding)
        if self.protocol not in greeting.features:
            other = ", ".join(greeting.features) or "what peers of a group and their master do"
            raise Refused(f"the other side doesn't speak {self.protocol!r}, but {other}: give another address")
        self._go_on(answer)

    def _heard(self, said: bytes) -> None:
        try:
            self._go_on(self._handshake.hear(said))
        except Refused:
            if not self._dialled:
                self._say(DENIED)
            raise

    def _go_on(self, answer: bytes | None) -> None:
        if answer is not None:
            self._say(answer)
        self.admitted = self._handshake.admitted

    def _say(self, proof: bytes) -> None:
        self.leaving.append(FRAME.pack(0, len(proof), 0) + proof)

    def _check(self, nbytes: int, length: int, zero: int) -> None:
        if zero:
            raise ProtocolError("a frame that is none of ours")
        if not self.admitted and (nbytes or length > PROOF_BYTES):
            raise ProtocolError(f"a frame of {length + nbytes} bytes before the proof that it knows the token")
        if length > LARGEST_HEAD:
            raise ProtocolError(f"a message with a head of {length} bytes; at most {LARGEST_HEAD} are allowed")
        if nbytes > self.largest:
            raise ProtocolError(f"a message with {nbytes} bytes of data; at most {self.largest} are expected here")
