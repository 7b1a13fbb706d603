"""Driver: what BurstGPT promises (Wang et al., 2025, arXiv 2401.17644)."""

from atoll.reproduce.api import Part, Say
from atoll.reproduce.burstgpt.azure import fits, lengths
from atoll.reproduce.burstgpt.bursts import bursts
from atoll.reproduce.burstgpt.driving import driving
from atoll.reproduce.burstgpt.reading import reading, same_bytes
from atoll.reproduce.burstgpt.sharing import sharing
from atoll.reproduce.burstgpt.synthetic import conversations, recovery


def demonstrate(full: bool, seed: int, say: Say) -> dict[str, Part]:
    """As the sheet has them."""
    return {
        "1": Part("parameters found again", lambda: recovery(seed, say)),
        "2": Part("Azure's traces", lambda: fits(seed, say)),
        "3": Part("lengths", lambda: lengths(seed, say)),
        "4a": Part("conversations", lambda: conversations(seed, say)),
        "4b": Part("a prefix cache", lambda: sharing(full, seed, say)),
        "5": Part("bursts", lambda: bursts(full, seed, say)),
        "6": Part("the driver's clock", lambda: driving(full, seed, say)),
        "7": Part("odd and broken traces", lambda: reading(say)),
        "7c": Part("the same seed", lambda: same_bytes(seed, say)),
    }
