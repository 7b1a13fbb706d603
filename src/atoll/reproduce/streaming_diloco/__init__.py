"""Driver: what Streaming DiLoCo promises (Douillard et al. 2025, arXiv 2501.18512), run here: two islands of a lab, and
processes that are killed."""

from collections.abc import Iterator

from atoll.reproduce.api import Line, Say
from atoll.reproduce.streaming_diloco.asynchronous import asynchronous
from atoll.reproduce.streaming_diloco.bits import bits
from atoll.reproduce.streaming_diloco.faults import killed
from atoll.reproduce.streaming_diloco.learning import learning
from atoll.reproduce.streaming_diloco.parity import parity
from atoll.reproduce.streaming_diloco.refusals import refusals
from atoll.reproduce.streaming_diloco.slow import slow_link
from atoll.reproduce.streaming_diloco.utilisation import utilisation


def demonstrate(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The lines of the sheet's "Done when", in order; then those of training without rounds."""
    yield from parity(seed, say)
    yield from learning(full, seed, say)
    yield from slow_link(full, seed, say)
    yield from bits(seed, say)
    yield from killed(seed, say)
    yield from utilisation(say)
    yield from refusals(say)
    yield from asynchronous(full, seed, say)
