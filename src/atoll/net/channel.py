"""Driver: frames over one non-blocking socket: header {sequence u64, length u32, word u32}, then the bytes.

Sequence 0 is a control message, bounded in size and delivered whole. Any other belongs to a data phase, whose own
business the word is: its bytes go straight to the memory that `place` names; while `place` has none yet, the channel
holds still and TCP slows the sender. Between processes of one machine the bytes may stay where they are, to be read
there: the length then has its highest bit set, and all that follows is where.

Where a token is required, what is queued waits until the other side has proven that it knows it, and nothing but that
proof is read before (`net/handshake.py`). Where TLS is, all of it goes through a `TlsStream`.
"""

import os
import socket
import struct
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

import msgspec
import numpy as np

from atoll.errors import ProtocolError, Refused
from atoll.net import preamble, tcp
from atoll.net.bucket import TokenBucket
from atoll.net.guard import OPEN, Guard
from atoll.net.handshake import CHALLENGE_BYTES, DENIED, PROOF_BYTES, Handshake
from atoll.net.neighbour import Remote

HEADER: Final = struct.Struct("<QII")
CONTROL: Final = 0
LENT: Final = 1 << 31
WHERE: Final = struct.Struct("<Q")
LARGEST_CONTROL: Final = 4 << 20
_BUFFER: Final = 4096
_FRAMES_A_TURN: Final = 64
_PARTS_A_CALL: Final = 16

Place = Callable[[int, int, int], "memoryview | None"]


class Lender(Protocol):
    """Memory of the other side: slots of an arena, or all it has."""

    def view(self, where: int, nbytes: int) -> "memoryview | Remote":
        """What lies there. ProtocolError: nothing can."""


class Frame(NamedTuple):
    """What a channel has read. `lent`: the data is the other side's, and where; -1: it is ours."""

    sequence: int
    word: int
    data: "memoryview | Remote"
    lent: int = -1

    @property
    def here(self) -> memoryview:
        """The data, where it can only be ours."""
        assert isinstance(self.data, memoryview)
        return self.data


def _no_data(sequence: int, word: int, nbytes: int) -> memoryview:
    raise ProtocolError(f"a data frame (sequence {sequence}, {nbytes} bytes) where only messages are allowed")


class Channel:
    """One connection. `place(sequence, word, nbytes)` says where a data frame goes; None: not known yet. `dialled`: by
    us. `SocketLoop.channel` makes them, so that none has another guard."""

    def __init__(
        self,
        sock: socket.socket,
        greeting: preamble.Greeting,
        place: Place = _no_data,
        guard: Guard = OPEN,
        dialled: bool = False,
    ) -> None:
        sock.setblocking(False)
        tcp.tune(sock)
        self.sock, self.place, self.dialled = sock, place, dialled
        self.name = _name(sock)
        """Of the other side, for people."""
        if guard.key:
            greeting = msgspec.structs.replace(greeting, challenge=os.urandom(CHALLENGE_BYTES))
        first = preamble.encode(greeting)
        self._handshake = Handshake(guard.key, dialled, first)
        self._tls = guard.encrypt(sock, dialled)
        self._io = self._tls or sock
        self.admitted = False
        """Has the other side greeted, and proven what it must?"""
        self.lender: Lender | None = None
        """The other side's memory, where it lets us read it."""
        self.pid = 0
        """Of the other side, if it is a process of this machine."""
        self.greeting: preamble.Greeting | None = None
        """What the other side said first; None until then."""
        self.outgoing: deque[memoryview] = deque([memoryview(first)])
        self._later: deque[memoryview] = deque() if guard.key else self.outgoing
        """Where to queue: before the other side is admitted, apart."""
        self.backlog = len(first)
        """Bytes that wait to leave."""
        self.received = 0
        """Bytes that have come."""
        self.refused = False
        """True when the other side is atoll, but not as this one: another wire version, another token or CA."""
        self.unruly = False
        """True when the other side has said what nobody of ours says."""
        self.bucket: TokenBucket | None = None
        """Lets no more through than a rate; None: whatever the socket takes."""
        self.paused_s = 0.0
        """Not 0: the bucket is empty for so long. Whoever flushes waits and sets it back."""
        self.held = False
        """True while a data frame has no place."""
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._drained = False
        self._head = b""
        self._sequence = CONTROL
        self._word = self._length = 0
        self._body: memoryview | None = None
        self._missing = self._view[:0]

    # -- out ------------------------------------------------------------------------------------------------------

    def put(self, sequence: int, data: bytes | memoryview, word: int = 0) -> None:
        """Queue one frame. The memory must not change until it has left."""
        head = memoryview(HEADER.pack(sequence, len(data), word))
        self._later.append(head)
        if len(data):
            self._later.append(memoryview(data))
        self.backlog += len(head) + len(data)

    def lend(self, sequence: int, where: int, nbytes: int, word: int) -> None:
        """Queue a frame whose bytes stay where they are."""
        head = HEADER.pack(sequence, LENT | nbytes, word) + WHERE.pack(where)
        self._later.append(memoryview(head))
        self.backlog += len(head)

    def flush(self) -> None:
        """Write what the socket, and the bucket, takes; the rest stays queued."""
        while self.outgoing and not self.paused_s:
            try:
                sent = self._write() if self.bucket is None else self._write_some(self.bucket)
            except (BlockingIOError, InterruptedError):
                return
            self.backlog -= sent
            while sent:
                first = self.outgoing[0]
                if sent < len(first):
                    self.outgoing[0] = first[sent:]
                    return
                sent -= len(first)
                self.outgoing.popleft()

    def _write_some(self, bucket: TokenBucket) -> int:
        room = bucket.room(time.monotonic())
        sent = self._io.send(self.outgoing[0][:room]) if room else 0
        bucket.take(sent)
        if sent == room:
            self.paused_s = bucket.wait_s()
        return sent

    def _write(self) -> int:
        if len(self.outgoing) == 1 or not hasattr(self._io, "sendmsg"):
            return self._io.send(self.outgoing[0])
        return self._io.sendmsg([self.outgoing[i] for i in range(min(len(self.outgoing), _PARTS_A_CALL))])

    # -- in -------------------------------------------------------------------------------------------------------

    def read(self) -> Iterator[Frame]:
        """Yield each whole frame at hand.

        ConnectionError at the end of the stream, ProtocolError and Refused for what must not be there.
        """
        self._drained = self.held = False
        frames = 0
        while True:
            if self._body is None and not self._begin():
                return
            if self._missing and not self._fill():
                return
            body, self._body = self._body, None
            assert body is not None
            if not self.admitted:
                self._admit(body)
            else:
                frames += 1
                if frames >= _FRAMES_A_TURN:
                    self._drained = True  # leave the rest to the next turn, but what is buffered: it wakes no selector
                yield self._frame(body)

    @property
    def stuck(self) -> bool:
        """Can what waits leave only after something has come?"""
        return self._tls is not None and self._tls.stuck

    @property
    def more(self) -> bool:
        """Is something left to read of which no selector knows?"""
        return self._tls is not None and self._tls.more

    def _admit(self, body: memoryview) -> None:
        """It has greeted, or proven what it must."""
        if self.greeting is None:
            self.greeting = preamble.decode(body)
            binding = self._tls.binding if self._tls else b""
            answer = self._handshake.greeted(self._head + body, bool(self.greeting.challenge), binding)
        else:
            try:
                answer = self._handshake.hear(bytes(body))
            except Refused:
                if not self.dialled:
                    self._say(DENIED)
                    with suppress(OSError):
                        self.flush()
                raise
        if answer is not None:
            self._say(answer)
        if self._handshake.admitted:
            self.admitted = True
            if self._later is not self.outgoing:
                self.outgoing += self._later
                self._later = self.outgoing

    def _say(self, proof: bytes) -> None:
        """Before all else that is queued."""
        frame = HEADER.pack(CONTROL, len(proof), 0) + proof
        self.outgoing.append(memoryview(frame))
        self.backlog += len(frame)

    def _frame(self, body: memoryview) -> Frame:
        if not self._length & LENT:
            return Frame(self._sequence, self._word, body)
        assert self.lender is not None
        (where,) = WHERE.unpack(body)
        return Frame(self._sequence, self._word, self.lender.view(where, self._length & ~LENT), where)

    def _begin(self) -> bool:
        """Read the head of the next frame; True when its body has a place."""
        head = HEADER if self.greeting is not None else preamble.HEAD
        while self._end - self._start < head.size:
            if not self._receive():
                return False
        at = self._start
        if self.greeting is None:
            self._head = bytes(self._view[at : at + head.size])
            body = memoryview(bytearray(preamble.body_size(self._head)))
        else:
            self._sequence, self._length, self._word = HEADER.unpack_from(self._buffer, at)
            found = self._place()
            if found is None:
                self.held = True
                return False
            body = found
        self._start += head.size
        self._body = self._missing = body
        return True

    def _place(self) -> memoryview | None:
        length = self._length
        if not self.admitted and (self._sequence != CONTROL or length > PROOF_BYTES):
            raise ProtocolError(f"a frame of {length} bytes before the proof that it knows the token")
        if self._sequence == CONTROL:
            if length > LARGEST_CONTROL:
                raise ProtocolError(f"a message of {length} bytes; at most {LARGEST_CONTROL} are allowed")
            return np.empty(length, np.uint8).data  # takes memory as the bytes come, not when they are promised
        if length & LENT:
            if self.lender is None or self.place is _no_data:
                raise ProtocolError("a frame in memory that we may not read")
            return memoryview(bytearray(WHERE.size))
        found = self.place(self._sequence, self._word, length)
        if found is not None and len(found) != length:
            raise ProtocolError(f"a frame of {length} bytes where {len(found)} belong")
        return found

    def _fill(self) -> bool:
        """Go on with the body under way; True when it is whole."""
        buffered = min(self._end - self._start, len(self._missing))
        if buffered:
            self._missing[:buffered] = self._view[self._start : self._start + buffered]
            self._start += buffered
            self._missing = self._missing[buffered:]
        while self._missing:
            if self._drained:
                return False
            n = self._into(self._missing)
            self._drained = n < len(self._missing)
            self._missing = self._missing[n:]
        return True

    def _receive(self) -> bool:
        if self._drained:
            return False
        if self._start:
            rest = self._end - self._start
            self._view[:rest] = self._view[self._start : self._end]
            self._start, self._end = 0, rest
        space = self._view[self._end :]
        n = self._into(space)
        self._end += n
        self._drained = n < len(space)
        return n > 0

    def _into(self, view: memoryview) -> int:
        try:
            n = self._io.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return 0
        if n == 0:
            if self.greeting is None:
                preamble.refuse_tls(self._view[self._start : self._end])  # its last word, shorter than any greeting
            raise ConnectionError("closed by the other side")
        self.received += n
        return n

    def finish(self) -> None:
        """Tell the other side that nothing more comes. It can still read what has left."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone itself
            pass

    def close(self) -> None:
        """Close the socket, let go of the other side's memory; what is still queued is gone."""
        self.outgoing.clear()
        self._later.clear()
        self.place, self.lender = _no_data, None
        self.sock.close()


def _name(sock: socket.socket) -> str:
    if sock.family not in (socket.AF_INET, socket.AF_INET6):
        return "a process of this machine"
    try:
        host, port, *_ = sock.getpeername()
    except OSError:
        return "one who has gone"
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
