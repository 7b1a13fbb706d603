"""Driver: what four bits keep of a number. (Streaming DiLoCo, "Done when" 4.)"""

from collections.abc import Iterator

import numpy as np

from atoll.codec import CODECS
from atoll.reproduce.api import Line, Say, judged
from atoll.rng import stream

_BLOCK = 256


def bits(seed: int, say: Say) -> Iterator[Line]:
    """E3M0: how far off, unbiased at random, how long."""
    say("four bits a number")
    codec = CODECS["e3m0"]
    x = (stream(seed, "bits").standard_normal(1 << 20) * 1e-3).astype(np.float32)
    coded, decoded = np.empty(codec.encoded_size(x.size), np.uint8), np.empty_like(x)
    codec.encode(x, coded)
    codec.decode(coded, decoded)
    peak = np.repeat(np.abs(x).reshape(-1, _BLOCK).max(axis=1), _BLOCK)
    large = np.abs(x) >= peak * 2.0**-6
    ratio = decoded[large] / x[large]
    worst = float(np.maximum(ratio, 1 / ratio).max())
    yield Line(
        "4a",
        "E3M0: decode(encode(x)) of 2**20 normal numbers, those of at least 2**-6 of the largest of their block",
        "within a factor of the root of 2",
        f"{large.sum():,} within a factor of {worst:.4f}",
        judged(worst <= 2**0.5 * (1 + 1e-6)),
    )
    draws = 2000
    dice = stream(seed, "bits", "random")
    few = np.ldexp(1 + dice.uniform(0.1, 0.9, _BLOCK), dice.integers(-6, 0, _BLOCK)).astype(np.float32)
    few[0] = 2.0  # the largest; between two levels, and not near one, lie all others
    small, out, total = np.empty(codec.encoded_size(_BLOCK), np.uint8), np.empty_like(few), np.zeros(_BLOCK)
    for draw in range(draws):
        codec.encode(few, small, seed=seed << 32 | draw)
        codec.decode(small, out)
        total += out
    lower = np.exp2(np.floor(np.log2(few)))
    error = np.sqrt((few - lower) * (2 * lower - few) / draws)
    off = float(np.max(np.abs(total / draws - few)[1:] / error[1:]))
    yield Line(
        "4b",
        f"rounded at random: the mean of {draws} draws of each of {_BLOCK - 1} numbers",
        "<= 4 standard errors off",
        f"at most {off:.2f} standard errors off",
        judged(off <= 4.0),
    )
    per_value = codec.encoded_size(1 << 20) * 8 / (1 << 20)
    yield Line("4c", "payload", "4.125 bits a number", f"{per_value:g} bits a number", judged(per_value == 4.125))
