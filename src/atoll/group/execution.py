"""Policy: the data phase of one operation: walks a schedule over buffers; who owns the links moves the bytes.

The input is never written: what comes of it lies in `result`, which the program gets only with the verdict. Every final
piece is made on one rank and travels as bytes, encoded at most once more; so all ranks end with the same bits, whatever
the order of sums.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from atoll.codec.api import Codec
from atoll.errors import ProtocolError
from atoll.runtime.schedule import Compute, Recv, Schedule, Send

Array = NDArray[Any]

REDUCE: dict[str, Callable[..., Any]] = {
    "sum": np.add,
    "avg": np.add,
    "prod": np.multiply,
    "max": np.maximum,
    "min": np.minimum,
}


def cut(start: int, stop: int, parts: int) -> list[slice]:
    """`parts` slices of nearly equal length, the longer ones first."""
    share, longer = divmod(stop - start, parts)
    edges = [start + i * share + min(i, longer) for i in range(parts + 1)]
    return [slice(a, b) for a, b in pairwise(edges)]


class Execution:
    """`advance` and `landed` return the (rank, bytes) that may leave now; `target` says where the next bytes go."""

    def __init__(
        self,
        steps: Schedule,
        source: Array,
        result: Array,
        pieces: list[slice],
        *,
        world: int,
        rank: int,
        op: str = "sum",
        codec: Codec | None = None,
        check: Callable[[Array], str] | None = None,
    ) -> None:
        self.source, self.result = source, result
        self.done = False
        self.sent = self.received = 0
        self._rank = rank
        self._steps, self._pieces, self._world, self._op, self._codec, self._check = (
            steps, pieces, world, op, codec, check,
        )  # fmt: skip
        self._written = bytearray(len(pieces))
        self._encoded: dict[int, NDArray[np.uint8]] = {}
        self._waiting: Recv | None = None
        self._incoming: Array = result[:0]
        self._scratch: Array | None = None

    def advance(self) -> list[tuple[int, memoryview]]:
        """Go on until something must be received. ValueError: the data can't be sent as asked (NaN and a codec)."""
        leaving: list[tuple[int, memoryview]] = []
        for step in self._steps:
            if isinstance(step, Send):
                data = self._outgoing(step.piece)
                leaving.append((step.to, data))
                self.sent += len(data)
            elif isinstance(step, Compute):
                self._finalise(step.piece)
            else:
                self._waiting = step
                return leaving
        self._waiting, self.done = None, True
        if self._check and (fault := self._check(self.result)):
            raise ValueError(fault)
        return leaving

    def target(self, source: int, nbytes: int) -> memoryview:
        """Where the next `nbytes` from rank `source` go. ProtocolError: they are not what the schedule waits for."""
        step = self._waiting
        if step is None or step.source != source:
            raise ProtocolError(f"rank {source} sent data nobody waits for")
        part = self.result[self._pieces[step.piece]]
        if self._codec:
            self._incoming = np.empty(self._codec.encoded_size(part.size), np.uint8)
        else:
            self._incoming = self._scratch_for(part) if step.reduce else part
        if self._incoming.nbytes != nbytes:
            raise ProtocolError(f"rank {source} sent {nbytes} bytes where {self._incoming.nbytes} belong")
        return _bytes(self._incoming)

    def landed(self) -> list[tuple[int, memoryview]]:
        """The bytes asked for by `target` are there."""
        step = self._waiting
        assert step is not None
        self.received += self._incoming.nbytes
        part = self._pieces[step.piece]
        if step.reduce:
            arrived = self._incoming
            if self._codec:
                arrived = self._scratch_for(self.result[part])
                self._codec.decode(self._incoming, arrived)
            ours = self.source[part]
            low, high = (arrived, ours) if step.source < self._rank else (ours, arrived)  # the same order on both sides
            with np.errstate(all="ignore"):  # what overflows is the program's own number
                REDUCE[self._op](low, high, out=self.result[part])
        elif self._codec:
            self._codec.decode(self._incoming, self.result[part])
            self._encoded[step.piece] = self._incoming
        self._written[step.piece] = True
        return self.advance()

    # -- inside -------------------------------------------------------------------------------------------------------

    def _newest(self, piece: int) -> Array:
        part: Array = (self.result if self._written[piece] else self.source)[self._pieces[piece]]
        return part

    def _outgoing(self, piece: int) -> memoryview:
        if self._codec is None:
            return _bytes(self._newest(piece))
        encoded = self._encoded.get(piece)
        return _bytes(self._encode(piece) if encoded is None else encoded)

    def _encode(self, piece: int) -> NDArray[np.uint8]:
        assert self._codec is not None
        value = self._newest(piece)
        out = np.empty(self._codec.encoded_size(value.size), np.uint8)
        self._codec.encode(value, out)
        return out

    def _finalise(self, piece: int) -> None:
        """The value is complete here: divide for an average; with a codec, keep what everybody else will decode."""
        part = self._pieces[piece]
        if self._op == "avg" and self._written[piece]:
            divide(self.result[part], self._world)
        if self._codec:
            encoded = self._encoded[piece] = self._encode(piece)
            self._codec.decode(encoded, self.result[part])
            self._written[piece] = True

    def _scratch_for(self, part: Array) -> Array:
        if self._scratch is None or self._scratch.size < part.size:
            longest = max(p.stop - p.start for p in self._pieces)
            self._scratch = np.empty(longest, self.result.dtype)
        return self._scratch[: part.size]


def divide(x: Array, by: int) -> None:
    """In place; integers towards zero."""
    if np.issubdtype(x.dtype, np.integer):
        wide = x.astype(np.int64) if x.itemsize < 8 else x  # a narrow type may not hold `by`
        quotient = wide // by
        if np.issubdtype(x.dtype, np.signedinteger):
            quotient += (x < 0) & (quotient * by != wide)
        x[...] = quotient
    else:
        np.divide(x, x.dtype.type(by), out=x)


def _bytes(x: Array) -> memoryview:
    return memoryview(x.view(np.uint8).data)
