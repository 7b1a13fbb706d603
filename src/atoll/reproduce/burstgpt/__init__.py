"""Driver: what BurstGPT promises (Wang et al., 2025, arXiv 2401.17644)."""

from collections.abc import Iterator

from atoll.reproduce.api import Line, Say
from atoll.reproduce.burstgpt.azure import fits, lengths
from atoll.reproduce.burstgpt.bursts import bursts
from atoll.reproduce.burstgpt.driving import driving
from atoll.reproduce.burstgpt.reading import reading, same_bytes
from atoll.reproduce.burstgpt.sharing import sharing
from atoll.reproduce.burstgpt.synthetic import conversations, recovery


def demonstrate(full: bool, seed: int, say: Say) -> Iterator[Line]:
    """The lines of the sheet's "Done when", in order."""
    yield from recovery(seed, say)
    yield from fits(seed, say)
    yield from lengths(seed, say)
    yield from conversations(seed, say)
    yield sharing(full, seed, say)
    yield from bursts(full, seed, say)
    yield from driving(full, seed, say)
    yield from reading(say)
    yield same_bytes(seed, say)
