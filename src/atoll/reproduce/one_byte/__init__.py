"""Driver: what Just One Byte promises, on this machine (Zelikman et al., 2023, arXiv 2306.10015)."""

from collections.abc import Iterator

from atoll.reproduce.api import Line, Say
from atoll.reproduce.one_byte.elastic import elastic, faults
from atoll.reproduce.one_byte.estimator import codes, floats, nothing_said, unbiased
from atoll.reproduce.one_byte.memory import memory
from atoll.reproduce.one_byte.rounds import rounds
from atoll.reproduce.one_byte.tuning import fewer_rounds, published, shifted


def demonstrate(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The lines of the sheet's "Done when", in order."""
    yield from rounds(200, seed, say)
    yield floats(seed, say)
    yield from codes(seed, say)
    yield unbiased(seed, say)
    yield shifted(seed, say)
    yield fewer_rounds(seed, say)
    yield published(full, say)
    yield from elastic(seed, say)
    yield from memory(full, say)
    yield from faults(seed, say)
    yield nothing_said()
