"""Inputs a little different from others: byte by byte, or record by record with the messages in them understood, so
that most of what is tried gets past the decoder. Everything follows from `rng`."""

import random
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from tests.fuzzers.choices import recorded, records

Mutate = Callable[[bytes, random.Random], bytes]

_NUMBERS: Final = (
    0,
    1,
    2,
    3,
    4,
    5,
    7,
    255,
    256,
    1 << 30,
    1 << 31,
    1 << 32,
    1 << 46,
    1 << 62,
    1 << 63,
    (1 << 64) - 1,
    -1,
)
_FLOATS: Final = (0.0, -1.0, 1e-309, 1e-3, 1e9, 1e308, float("inf"), float("-inf"), float("nan"))
_TEXTS: Final = (
    "",
    "x",
    "\0",
    "[/]",
    "é" * 200,
    "x" * 5000,
    "all_reduce",
    "sync",
    "sync a",
    "gather_bytes",
    "127.0.0.1",
)
_BYTES: Final = (b"", b"\0", b"k" * 16, b"\xc1", b"\x91" * 300, bytes(5000))
_LONGEST: Final = 1 << 15


def mutated(data: bytes, rng: random.Random) -> bytes:
    """A few bytes changed, lost, or said twice."""
    out = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        at = rng.randrange(len(out) + 1)
        match rng.randrange(6):
            case 0:
                out[at : at + 1] = bytes([rng.randrange(256)])
            case 1:
                out[at : at + 1] = bytes([out[at] ^ 1 << rng.randrange(8)]) if at < len(out) else b""
            case 2:
                del out[at : at + rng.randrange(1, 20)]
            case 3:
                out[at:at] = out[at : at + rng.randrange(1, 40)]
            case 4:
                nbytes = rng.choice([1, 2, 4, 8])
                out[at : at + nbytes] = (rng.choice(_NUMBERS) % (1 << 8 * nbytes)).to_bytes(nbytes, "little")
            case _:
                out[at:at] = rng.randbytes(rng.randrange(1, 20))
    return bytes(out[:_LONGEST])


def mutated_message(data: bytes, rng: random.Random) -> bytes:
    """One value of a msgpack message changed for another, mostly of its kind."""
    try:
        value = msgspec.msgpack.decode(data)
        return msgspec.msgpack.encode(_changed(value, rng))
    except (ValueError, TypeError, OverflowError, RecursionError):  # none, or none any more
        return mutated(data, rng)


def record_mutator(words: Sequence[bytes]) -> Mutate:
    """For inputs of records. `words`: inputs whose records may be inserted anywhere."""
    known = [record for word in words for record in records(word)]

    def mutate(data: bytes, rng: random.Random) -> bytes:
        found = list(records(data))
        for _ in range(rng.choice([1, 1, 2, 4])):
            at = rng.randrange(len(found) + 1)
            what = rng.randrange(8)
            if what == 0 or not found or at == len(found):
                found[at:at] = [rng.choice(known)]
            elif what == 1:
                del found[at]
            elif what == 2:
                found.insert(at, found[at])
            elif what == 3:
                other = rng.randrange(len(found))
                found[at], found[other] = found[other], found[at]
            elif what == 4:
                found[at] = rng.randrange(256), found[at][1]
            elif what == 5:
                found[at] = found[at][0], mutated(found[at][1], rng)
            else:
                found[at] = found[at][0], mutated_message(found[at][1], rng)
        return recorded(*[(op, body[: (1 << 16) - 1]) for op, body in found])[:_LONGEST]

    return mutate


def _changed(value: Any, rng: random.Random) -> Any:
    if isinstance(value, list | tuple) and value and rng.random() < 0.9:
        items = list(value)
        at = rng.randrange(len(items))
        match rng.randrange(12):
            case 0:
                del items[at]
            case 1:
                items.insert(at, items[rng.randrange(len(items))])
            case 2:
                items.append(_any(rng))
            case _:
                items[at] = _changed(items[at], rng)
        return items
    if isinstance(value, dict) and value and rng.random() < 0.7:
        key = rng.choice(list(value))
        return {**value, key: _changed(value[key], rng)}
    if rng.random() < 0.1:
        return _any(rng)
    match value:
        case bool():
            return not value
        case int():
            return rng.choice([value + 1, value - 1, value ^ 1 << rng.randrange(63), rng.choice(_NUMBERS)])
        case float():
            return rng.choice([value * 2, -value, rng.choice(_FLOATS)])
        case str():
            return rng.choice([value + "x", value[:-1], rng.choice(_TEXTS)])
        case bytes():
            return rng.choice([mutated(value, rng), mutated_message(value, rng) if value else b"", rng.choice(_BYTES)])
        case list():
            return [_any(rng)]
        case _:
            return _any(rng)


def _any(rng: random.Random) -> Any:
    return rng.choice(
        [None, True, rng.choice(_NUMBERS), rng.choice(_FLOATS), rng.choice(_TEXTS), rng.choice(_BYTES), [], {}]
    )
