"""Policy: the data phase of one operation: walks a schedule over buffers; who owns the links moves the bytes.

The input is never written: what comes of it lies in `result`. Every final piece is made on one rank and travels as
bytes, encoded at most once more; so all ranks end with the same bits, whatever the order of sums.
"""

from collections.abc import Callable
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from atoll.codec.api import Codec
from atoll.errors import ProtocolError
from atoll.group.collectives.memory import Memory
from atoll.group.collectives.schedules import OWN
from atoll.runtime.schedule import Compute, Lane, Schedule, Send

Array = NDArray[Any]
SHARD_BYTES: Final = 512 << 10
"""What is fetched and combined together, so that it is still in the processor's cache."""
Key = tuple[int, int, bool]
"""(source, piece, reduce): by it a frame finds the step that waits for it."""


class Remote(Protocol):
    """Bytes that lie elsewhere."""

    def __len__(self) -> int: ...
    def read(self, at: int, into: memoryview) -> None:
        """Fill `into` from byte `at` on."""


Data = memoryview | Remote

REDUCE: Final[dict[str, Callable[..., Any]]] = {
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
    """`begin` and `landed` return the steps whose data may leave now; `outgoing` is that data, made when it is taken.

    ValueError from any of them: the data can't be sent as asked (NaN and a codec). `fault`: what `check` found wrong
    with the result; all the same it has gone to those who get it from us. `lost`: gets what the codec takes from the
    source, where each piece is encoded just once.
    """

    def __init__(
        self,
        schedule: Schedule,
        source: Array,
        result: Array,
        pieces: list[slice],
        *,
        world: int,
        op: str = "sum",
        codec: Codec | None = None,
        down: Codec | None = None,
        seed: int | None = None,
        lost: Array | None = None,
        check: Callable[[Array], str] | None = None,
        memory: Memory | None = None,
        shard_bytes: int = SHARD_BYTES,
    ) -> None:
        self.source, self.result = source, result
        self.done = False
        self.fault = ""
        self.sent = self.received = 0
        self._lanes, self._pieces, self._world, self._op, self._check = schedule, pieces, world, op, check
        self._codec, self._down, self._seed, self._lost = codec, down, seed, lost
        self._from_nothing = codec is not None and not codec.hops
        """Is our own input one of those that are added up, and not what they are added to?"""
        self.memory = memory or Memory()
        self._shard_bytes = shard_bytes
        self._unfinished = len(schedule)
        self._waiting: dict[Key, Lane] = {}
        self._places: dict[Key, memoryview] = {}
        self._written = bytearray(len(pieces))
        self._encoded: dict[int, NDArray[np.uint8]] = {}
        self._scratch: NDArray[np.uint8] | None = None

    def begin(self) -> list[Send]:
        """Go on in every lane until something must be received."""
        leaving: list[Send] = []
        for lane in self._lanes:
            self._advance(lane, leaving)
        self._finish_if_over()
        return leaving

    def outgoing(self, piece: int, reduce: bool = False) -> memoryview:
        """The newest value of a piece, as it travels."""
        codec = self._codec_for(reduce)
        if codec is None:
            return _bytes(self._newest(piece))
        encoded = None if reduce else self._encoded.get(piece)
        return _bytes(self._encode(piece, codec, reduce) if encoded is None else encoded)

    def sources(self) -> set[int]:
        """Ranks whose data is waited for."""
        return {source for source, _, _ in self._waiting}

    def awaits(self, key: Key) -> bool:
        """Does a lane wait for just this?"""
        return key in self._waiting

    def fits(self, key: Key, nbytes: int) -> bool:
        """Is it awaited, and of the right size?"""
        return key in self._waiting and nbytes == self._nbytes(key[1], key[2])

    def place(self, key: Key, nbytes: int) -> memoryview:
        """Where the bytes of an awaited frame go; `landed` must follow. ProtocolError: not so many belong there."""
        source, piece, reduce = key
        if nbytes != self._nbytes(piece, reduce):
            raise ProtocolError(f"rank {source} sent {nbytes} bytes where {self._nbytes(piece, reduce)} belong")
        apart = self._codec_for(reduce) or reduce
        incoming = self.memory.empty(nbytes, np.uint8) if apart else self.result[self._pieces[piece]]
        place = self._places[key] = _bytes(incoming)
        return place

    def placed(self, key: Key, data: memoryview) -> bool:
        """Is this the memory that `place` named, and not some other the bytes came in?"""
        return self._places.get(key) is data

    def landed(self, key: Key, data: Data) -> list[Send]:
        """The bytes of an awaited frame: where `place` said, or in memory that is not ours once this returns."""
        _, piece, reduce = key
        lane = self._waiting.pop(key)
        borrowed = self._places.pop(key, None) is not data
        self.received += len(data)
        part = self.result[self._pieces[piece]]
        if codec := self._codec_for(reduce):
            arrived = np.asarray(data) if not borrowed else self._copied(data)
            if reduce:
                self._add(piece, codec, arrived)
            else:
                codec.decode(arrived, part)
                self._encoded[piece] = arrived
        elif reduce:
            newest = self._newest(piece)
            shard = self._shard_bytes // part.itemsize
            for at in range(0, part.size, shard):
                few = slice(at, at + shard)
                self._reduce(newest[few], self._values(data, part[few], few.start), part[few])
        elif borrowed:
            copy(data, _bytes(part))
        self._written[piece] = True
        leaving: list[Send] = []
        self._advance(lane, leaving)
        self._finish_if_over()
        return leaving

    def _nbytes(self, piece: int, reduce: bool) -> int:
        """How many bytes a piece has as it travels."""
        part, codec = self._pieces[piece], self._codec_for(reduce)
        size = part.stop - part.start
        return codec.encoded_size(size) if codec else size * self.result.itemsize

    def _codec_for(self, reduce: bool) -> Codec | None:
        """Of what is to be combined, or of what has been."""
        return self._codec if reduce else self._down

    # -- inside -------------------------------------------------------------------------------------------------------

    def _values(self, data: Data, like: Array, start: int) -> Array:
        """The elements of a frame that belong to `like`, from element `start` on."""
        at = start * like.itemsize
        if isinstance(data, memoryview):
            here: Array = np.asarray(data[at : at + like.nbytes]).view(like.dtype)
            return here
        if self._scratch is None:
            self._scratch = self.memory.empty(self._shard_bytes, np.uint8)
        scratch = self._scratch[: like.nbytes]
        data.read(at, _bytes(scratch))
        values: Array = scratch.view(like.dtype)
        return values

    def _copied(self, data: Data) -> NDArray[np.uint8]:
        ours = self.memory.empty(len(data), np.uint8)
        copy(data, _bytes(ours))
        return ours

    def _add(self, piece: int, codec: Codec, encoded: NDArray[np.uint8]) -> None:
        """Combine an encoded input, of another rank or ours, with what there is of the piece."""
        part = self.result[self._pieces[piece]]
        if self._from_nothing and not self._written[piece]:
            codec.decode(encoded, part)
        else:
            values = self.memory.empty(part.size, part.dtype)
            codec.decode(encoded, values)
            self._reduce(self._newest(piece), values, part)

    def _reduce(self, ours: Array, theirs: Array, out: Array) -> None:
        with np.errstate(all="ignore"):  # what overflows is the program's own number
            REDUCE[self._op](ours, theirs, out=out)

    def _advance(self, lane: Lane, leaving: list[Send]) -> None:
        for step in lane:
            if isinstance(step, Send):
                leaving.append(step)
                self.sent += self._nbytes(step.piece, step.reduce)
            elif isinstance(step, Compute):
                self._add_own(step.piece) if step.op == OWN else self._finalise(step.piece)
            else:
                self._waiting[step.source, step.piece, step.reduce] = lane
                return
        self._unfinished -= 1

    def _finish_if_over(self) -> None:
        if not self._unfinished:
            self.done = True
            if self._check:
                self.fault = self._check(self.result)

    def _newest(self, piece: int) -> Array:
        part: Array = (self.result if self._written[piece] else self.source)[self._pieces[piece]]
        return part

    def _encode(self, piece: int, codec: Codec, reduce: bool = False, value: Array | None = None) -> NDArray[np.uint8]:
        value = self._newest(piece) if value is None else value
        out = self.memory.empty(codec.encoded_size(value.size), np.uint8)
        seed = None if self._seed is None else self._seed << 32 | piece << 1 | reduce  # its own for each chunk
        codec.encode(value, out, seed)
        if reduce and self._lost is not None:
            lost = self._lost[self._pieces[piece]]
            codec.decode(out, lost)
            np.subtract(value, lost, out=lost)
        return out

    def _add_own(self, piece: int) -> None:
        """As all others decode it who hear of it."""
        assert self._codec is not None
        encoded = self._encode(piece, self._codec, reduce=True, value=self.source[self._pieces[piece]])
        self._add(piece, self._codec, encoded)
        self._written[piece] = True

    def _finalise(self, piece: int) -> None:
        """The value is complete here: divide for an average; with a codec, keep what everybody else will decode."""
        part = self._pieces[piece]
        if self._op == "avg" and self._written[piece]:
            divide(self.result[part], self._world)
        if self._down:
            encoded = self._encoded[piece] = self._encode(piece, self._down)
            self._down.decode(encoded, self.result[part])
            self._written[piece] = True


def combined(rows: list[Array], op: str, out: Array | None = None) -> Array:
    """All rows in rank order, combined: the same bits wherever it is computed. `out` is none of the rows."""
    first, rest = rows[0], rows[1:]
    result = np.empty_like(first) if out is None else out
    with np.errstate(all="ignore"):
        for row in rest:
            if op in ("max", "min"):  # vector units differ in the sign of max(-0, 0); this spells it out
                better = row > first if op == "max" else row < first
                np.copyto(result, np.where(better | (row != row), row, first))
            else:
                REDUCE[op](first, row, out=result)
            first = result
    if not rest:
        result[...] = first
    elif op == "avg":
        divide(result, len(rows))
    return result


def divide(x: Array, by: int) -> None:
    """In place; integers towards zero."""
    if x.dtype.kind in "iu":
        wide = x.astype(np.int64) if x.itemsize < 8 else x  # a narrow type may not hold `by`
        quotient = wide // by
        if x.dtype.kind == "i":
            quotient += (x < 0) & (quotient * by != wide)
        x[...] = quotient
    else:
        np.divide(x, x.dtype.type(by), out=x)


def copy(data: Data, into: memoryview) -> None:
    """Put a frame's bytes there."""
    if isinstance(data, memoryview):
        into[:] = data
    else:
        data.read(0, into)


def _bytes(x: Array) -> memoryview:
    return memoryview(x.view(np.uint8).data)
