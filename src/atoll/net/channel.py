"""Driver: frames over one non-blocking socket: header {sequence u64, length u32}, then the bytes.

Sequence 0 is a control message, bounded in size and delivered whole. Any other belongs to a data phase: its bytes go
straight to the memory that `place` names; while `place` has none yet, the channel holds still and TCP slows the sender.
"""

import socket
import struct
from collections import deque
from collections.abc import Callable, Iterator
from typing import Final

from atoll.errors import ProtocolError, Refused
from atoll.net import preamble

HEADER: Final = struct.Struct("<QI")
CONTROL: Final = 0
LARGEST_CONTROL: Final = 4 << 20
_BUFFER: Final = 4096
_FRAMES_A_TURN: Final = 64
_PARTS_A_CALL: Final = 16

Place = Callable[[int, int], "memoryview | None"]


def _no_data(sequence: int, nbytes: int) -> memoryview:
    raise ProtocolError(f"a data frame (sequence {sequence}, {nbytes} bytes) where only messages are allowed")


class Channel:
    """One connection. `place(sequence, nbytes)` says where a data frame goes; None: not known yet."""

    def __init__(self, sock: socket.socket, greeting: preamble.Greeting, place: Place = _no_data) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.sock, self.place = sock, place
        self.greeting: preamble.Greeting | None = None
        """What the other side said first; None until then."""
        self.outgoing: deque[memoryview] = deque([memoryview(preamble.encode(greeting))])
        self.backlog = len(self.outgoing[0])
        """Bytes that wait to leave."""
        self.refused = False
        """True when the other side is atoll, but of another wire version."""
        self.held = False
        """True while a data frame has no place."""
        self._buffer = bytearray(_BUFFER)
        self._view = memoryview(self._buffer)
        self._start = self._end = 0
        self._drained = False
        self._sequence = CONTROL
        self._body: memoryview | None = None
        self._missing = self._view[:0]

    # -- out ------------------------------------------------------------------------------------------------------

    def put(self, sequence: int, data: bytes | memoryview) -> None:
        """Queue one frame. The memory must not change until it has left."""
        head = memoryview(HEADER.pack(sequence, len(data)))
        self.outgoing.append(head)
        if len(data):
            self.outgoing.append(memoryview(data))
        self.backlog += len(head) + len(data)

    def flush(self) -> None:
        """Write what the socket takes; the rest stays queued."""
        while self.outgoing:
            try:
                sent = self._write()
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

    def _write(self) -> int:
        if len(self.outgoing) == 1 or not hasattr(self.sock, "sendmsg"):
            return self.sock.send(self.outgoing[0])
        return self.sock.sendmsg([self.outgoing[i] for i in range(min(len(self.outgoing), _PARTS_A_CALL))])

    # -- in -------------------------------------------------------------------------------------------------------

    def read(self) -> Iterator[tuple[int, memoryview]]:
        """Yield (sequence, bytes) for each whole frame at hand.

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
            if self.greeting is None:
                self.greeting = preamble.decode(body)
            else:
                frames += 1
                if frames >= _FRAMES_A_TURN:
                    self._drained = True  # leave the rest to the next turn, but what is buffered: it wakes no selector
                yield self._sequence, body

    def _begin(self) -> bool:
        """Read the head of the next frame; True when its body has a place."""
        head = HEADER if self.greeting else preamble.HEAD
        while self._end - self._start < head.size:
            if not self._receive():
                return False
        at = self._start
        if self.greeting is None:
            body = memoryview(bytearray(self._greeting_size(self._view[at : at + head.size])))
        else:
            self._sequence, length = HEADER.unpack_from(self._buffer, at)
            place = self._control if self._sequence == CONTROL else self.place
            found = place(self._sequence, length)
            if found is None:
                self.held = True
                return False
            if len(found) != length:
                raise ProtocolError(f"a frame of {length} bytes where {len(found)} belong")
            body = found
        self._start += head.size
        self._body = self._missing = body
        return True

    def _greeting_size(self, head: memoryview) -> int:
        try:
            return preamble.body_size(head)
        except Refused:
            self.refused = True
            raise

    @staticmethod
    def _control(sequence: int, length: int) -> memoryview:
        if length > LARGEST_CONTROL:
            raise ProtocolError(f"a message of {length} bytes; at most {LARGEST_CONTROL} are allowed")
        return memoryview(bytearray(length))

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
            n = self.sock.recv_into(view)
        except (BlockingIOError, InterruptedError):
            return 0
        if n == 0:
            raise ConnectionError("closed by the other side")
        return n

    def finish(self) -> None:
        """Tell the other side that nothing more comes. It can still read what has left."""
        try:
            self.sock.shutdown(socket.SHUT_WR)
        except OSError:  # it has gone itself
            pass

    def close(self) -> None:
        """Close the socket; what is still queued is gone."""
        self.outgoing.clear()
        self.sock.close()
