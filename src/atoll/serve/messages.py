"""Interface: what an instance and its engine's process say to each other, over a pipe: a length, then msgpack."""

from typing import Final

import msgspec

from atoll.endpoint.api import Delta, Load, Request

LARGEST: Final = 64 << 20
"""Bytes of a message; the engine's own limits are narrower."""
_LENGTH: Final = 4


class Setup(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """The first thing an engine is told: what to run, and how. `kernel`: "exact", "fast" or "torch". `record`: a file
    for its steps, or "" for none."""

    path: str
    pages: int
    kernel: str
    threads: int
    batch: int
    step_tokens: int | None
    waiting: int
    preemption: str
    guesses: int
    seed: int = 0
    record: str = ""


class Add(msgspec.Struct, frozen=True, tag=True):
    """Answer this."""

    request: Request


class Drop(msgspec.Struct, frozen=True, tag=True):
    """Nobody wants this answer any more."""

    id: str


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The model is there. `kernel`: what computes, in words."""

    kernel: str


class Refused(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """A request isn't taken. `error`: the class of `atoll.errors`."""

    id: str
    error: str
    message: str
    field: str = ""
    retry_s: float = 1.0


class Said(msgspec.Struct, frozen=True, kw_only=True, tag=True):
    """What came of a step, by request; and how busy the engine is."""

    deltas: tuple[tuple[str, Delta], ...]
    load: Load


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The engine can't begin, or go on. The last thing it says."""

    message: str


ToEngine = Setup | Add | Drop
FromEngine = Ready | Refused | Said | Failed

_encoder = msgspec.msgpack.Encoder()
_to_engine = msgspec.msgpack.Decoder(ToEngine)
_from_engine = msgspec.msgpack.Decoder(FromEngine)


def packed(message: ToEngine | FromEngine) -> bytes:
    """A message with its length before it."""
    body = _encoder.encode(message)
    return len(body).to_bytes(_LENGTH, "little") + body


class Unpacker:
    """Messages from bytes as they come. ValueError for what is no message."""

    def __init__(self, decoder: "msgspec.msgpack.Decoder[ToEngine] | msgspec.msgpack.Decoder[FromEngine]") -> None:
        self._decoder = decoder
        self._buffer = bytearray()

    @classmethod
    def of_engine(cls) -> "Unpacker":
        """Of what engines say."""
        return cls(_from_engine)

    @classmethod
    def to_engine(cls) -> "Unpacker":
        """Of what engines are told."""
        return cls(_to_engine)

    def push(self, data: bytes) -> list[ToEngine | FromEngine]:
        """The messages that are whole now."""
        self._buffer += data
        found: list[ToEngine | FromEngine] = []
        at = 0
        while len(self._buffer) - at >= _LENGTH:
            size = int.from_bytes(self._buffer[at : at + _LENGTH], "little")
            if size > LARGEST:
                raise ValueError(f"a message of {size} bytes")
            if len(self._buffer) - at - _LENGTH < size:
                break
            body = memoryview(self._buffer)[at + _LENGTH : at + _LENGTH + size]
            try:
                found.append(self._decoder.decode(body))
            finally:
                body.release()
            at += _LENGTH + size
        del self._buffer[:at]
        return found
