"""Policy: random numbers addressed by name, for all that must come out the same on every machine.

Counter-based generator: Philox-4x64-10 (Salmon et al., 2011, doi 10.1145/2063384.2063405), keyed by a hash of the name.
Normals: Box and Muller, 1958, in sums, products, quotients and roots of float32, which IEEE 754 fixes to the bit.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import xxhash
from numpy.typing import DTypeLike, NDArray

SIGNS_PER_COUNTER = 256  # four words of 64 bits
NORMALS_PER_COUNTER = 8  # four words of 64 bits, two normals from each
COUNTERS_PER_BLOCK = 2048  # intermediate arrays stay in the cache
SQRT_HALF_BITS = np.int32(0x3F3504F3)  # of float32


def stream(seed: int, *names: str | int) -> np.random.Generator:
    """The random stream of that name; adding another never shifts it."""
    return np.random.Generator(np.random.Philox(key=_key("stream", seed, *names)))


def normal(
    key: tuple[int | str, ...], shape: int | Sequence[int], dtype: DTypeLike = np.float32, *, offset: int = 0
) -> NDArray[Any]:
    """Standard normals that are a pure function of `key` and their flat index, which starts at `offset`.

    So any slice can be made alone: `normal(k, 5, offset=10)` is `normal(k, 15)[10:]`. Each is a float32 (at most 6.7 in
    size), given as `dtype`.
    """
    out = np.empty(shape, dtype)
    flat = out.reshape(-1)
    counter, skip = divmod(offset, NORMALS_PER_COUNTER)
    philox = np.random.Philox(key=_key("normal", *key), counter=counter)
    step = COUNTERS_PER_BLOCK * NORMALS_PER_COUNTER
    done = 0
    while done < flat.size:
        n = min(step - skip, flat.size - done)
        n_counters = -(-(skip + n) // NORMALS_PER_COUNTER)
        flat[done : done + n] = _box_muller(philox.random_raw(n_counters * 4))[skip : skip + n]
        done, skip = done + n, 0
    return out


def signs(key: tuple[int | str, ...], n: int, *, offset: int = 0) -> NDArray[np.float32]:
    """`n` times 1 or -1, a pure function of `key` and the index, as with `normal`; for what needs no more than a
    direction: a bit each, and several times as fast."""
    counter, skip = divmod(offset, SIGNS_PER_COUNTER)
    n_counters = -(-(skip + n) // SIGNS_PER_COUNTER)
    words = np.random.Philox(key=_key("signs", *key), counter=counter).random_raw(n_counters * 4)
    bits = np.unpackbits(words.astype("<u8", copy=False).view(np.uint8), bitorder="little")[skip : skip + n]
    found = bits.astype(np.float32)
    found *= np.float32(2)
    found -= np.float32(1)
    return found


def _key(*names: str | int) -> int:
    """128 bits; each name goes in with its type and length, so that no two tuples are encoded alike."""
    hasher = xxhash.xxh3_128()
    for name in names:
        kind, text = (b"s", name.encode()) if isinstance(name, str) else (b"i", str(int(name)).encode())
        hasher.update(b"%s%d:%s" % (kind, len(text), text))
    return hasher.intdigest()


def _taylor(first: float, start: int, terms: int) -> list[np.float32]:
    """Coefficients in x**2 of the sine (start 1) or cosine (start 0) of pi*x, highest first."""
    coefficients = [first]
    for k in range(start, start + 2 * (terms - 1), 2):
        coefficients.append(-coefficients[-1] * math.pi * math.pi / ((k + 1) * (k + 2)))
    return [np.float32(c) for c in reversed(coefficients)]


SINE = _taylor(math.pi, start=1, terms=7)
COSINE = _taylor(1.0, start=0, terms=8)
ATANH = [np.float32(1 / k) for k in (9, 7, 5, 3, 1)]


def _horner(coefficients: list[np.float32], x: NDArray[np.float32]) -> NDArray[np.float32]:
    value = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        value *= x
        value += c
    return value


def _box_muller(words: NDArray[np.uint64]) -> NDArray[np.float32]:
    """Two normals from each 64-bit word: 31 bits for the radius, 32 for half a turn, 1 for which half."""
    low = words.astype(np.uint32)
    radius = np.sqrt(_minus_two_log((low >> np.uint32(1)).astype(np.int32)))
    radius *= (low & np.uint32(1)).astype(np.float32) * np.float32(2) - np.float32(1)
    half_turns = (words >> np.uint64(32)).astype(np.uint32).view(np.int32).astype(np.float32) * np.float32(2**-32)
    square = half_turns * half_turns
    pairs = np.empty((words.size, 2), np.float32)
    np.multiply(radius, _horner(COSINE, square), out=pairs[:, 0])
    np.multiply(radius * half_turns, _horner(SINE, square), out=pairs[:, 1])
    return pairs.reshape(-1)


def _minus_two_log(n: NDArray[np.int32]) -> NDArray[np.float32]:
    """-2 log u for u = (n + 1/2) / 2**31: u = 2**e * m with m near 1, and log m = 2 atanh((m - 1) / (m + 1))."""
    u = (n.astype(np.float32) + np.float32(0.5)) * np.float32(2**-31)
    bits = u.view(np.int32)
    exponent = (bits - SQRT_HALF_BITS) >> np.int32(23)
    m = (bits - (exponent << np.int32(23))).view(np.float32)
    s = (m - np.float32(1)) / (m + np.float32(1))
    log_m = np.float32(2) * s * _horner(ATANH, s * s)
    return np.float32(-2) * (exponent.astype(np.float32) * np.float32(math.log(2)) + log_m)
