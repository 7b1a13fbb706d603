"""Foreign bytes of the right size into each codec, for each type of element: numbers come out, the same each time, and
nothing beside them is touched."""

import ml_dtypes
import numpy as np

from atoll import codec
from tests.fuzzers.choices import Choices

TYPES = (np.float32, np.float64, np.float16, ml_dtypes.bfloat16)
GUARD = 64


def fuzz(data: bytes) -> None:
    choices = Choices(data)
    coder = codec.CODECS[choices.pick(sorted(codec.CODECS))]
    dtype = np.dtype(choices.pick(TYPES))
    n = choices.number(2) % 3000
    size = coder.encoded_size(n)
    foreign = choices.rest()
    buffer = np.resize(np.frombuffer(foreign or b"\0", np.uint8), size)
    decoded = []
    for filling in (0x55, 0xAA):
        memory = np.full(2 * GUARD + n * dtype.itemsize, filling, np.uint8)
        out = memory[GUARD : GUARD + n * dtype.itemsize].view(dtype)
        before = buffer.copy()
        with np.errstate(
            divide="raise", over="raise", invalid="raise"
        ):  # what foreign numbers come to is no warning to the user either
            coder.decode(buffer, out)
        assert (buffer == before).all(), "the input was written"
        assert (memory[:GUARD] == filling).all(), "written before the output"
        assert (memory[GUARD + n * dtype.itemsize :] == filling).all(), "written behind the output"
        decoded.append(bytes(out.view(np.uint8)))
    assert decoded[0] == decoded[1], "the output depends on what was there"


def seeds() -> list[bytes]:
    made = []
    for which, name in enumerate(sorted(codec.CODECS)):
        for kind, dtype in enumerate(TYPES):
            x = np.linspace(-3, 5, 70).astype(dtype)
            out = np.empty(codec.CODECS[name].encoded_size(x.size), np.uint8)
            codec.CODECS[name].encode(x, out)
            made.append(bytes([which, kind]) + x.size.to_bytes(2, "little") + out.tobytes())
    return made
