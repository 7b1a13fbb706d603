"""Driver: what CO2 promises (Sun et al. 2024, arXiv 2401.16265), run here."""

from collections.abc import Iterator

from atoll.reproduce.api import Line, Say
from atoll.reproduce.co2.digits import digits
from atoll.reproduce.co2.faults import killed, refusals
from atoll.reproduce.co2.noise import ablation, rate
from atoll.reproduce.co2.parity import parity
from atoll.reproduce.co2.scaling import scaling
from atoll.reproduce.co2.shards import shards
from atoll.reproduce.co2.slow import slow_link


def demonstrate(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The lines of the sheet's "Done when", in order."""
    yield from parity(seed, say)
    yield from slow_link(full, seed, say)
    yield from ablation(seed, say)
    yield from shards(seed, say)
    yield from digits(seed, say)
    yield from rate(full, seed, say)
    yield from scaling(say)
    yield from killed(seed, say)
    yield from refusals(seed, say)
