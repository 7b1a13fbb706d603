"""Driver: what Just One Byte promises, on this machine (Zelikman et al., 2023, arXiv 2306.10015)."""

from atoll.reproduce.api import Part, Say
from atoll.reproduce.one_byte.elastic import elastic, faults
from atoll.reproduce.one_byte.estimator import codes, floats, nothing_said, unbiased
from atoll.reproduce.one_byte.memory import memory
from atoll.reproduce.one_byte.rounds import rounds
from atoll.reproduce.one_byte.tuning import fewer_rounds, published, shifted


def demonstrate(full: bool, seed: int, say: Say) -> dict[str, Part]:
    """As the sheet has them; `rounds` has the third too."""
    return {
        "1": Part("same bits, counted bytes, and 3: the log is enough", lambda: rounds(200, seed, say)),
        "2a": Part("bytes against floats", lambda: floats(seed, say)),
        "2b": Part("the code", lambda: codes(seed, say)),
        "4": Part("the estimator", lambda: unbiased(seed, say)),
        "5a": Part("fine-tuning", lambda: shifted(seed, say)),
        "5b": Part("four machines against one", lambda: fewer_rounds(seed, say)),
        "5c": Part("SmolLM2", lambda: published(full, say)),
        "6": Part("a kill and newcomers", lambda: elastic(seed, say)),
        "7": Part("memory", lambda: memory(full, say)),
        "8": Part("spoilt parameters, another base", lambda: faults(seed, say)),
        "8c": Part("a loss that is no number", nothing_said),
    }
