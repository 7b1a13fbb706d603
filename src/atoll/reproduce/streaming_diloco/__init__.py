"""Driver: what Streaming DiLoCo promises (Douillard et al. 2025, arXiv 2501.18512), run here: two islands of a lab, and
processes that are killed."""

from atoll.reproduce.api import Part, Say
from atoll.reproduce.streaming_diloco.asynchronous import identity, killed_without_rounds, raced, simulated
from atoll.reproduce.streaming_diloco.bits import bits
from atoll.reproduce.streaming_diloco.faults import killed
from atoll.reproduce.streaming_diloco.learning import learning
from atoll.reproduce.streaming_diloco.parity import parity
from atoll.reproduce.streaming_diloco.refusals import refusals
from atoll.reproduce.streaming_diloco.slow import slow_link
from atoll.reproduce.streaming_diloco.utilisation import utilisation


def demonstrate(full: bool, seed: int, say: Say) -> dict[str, Part]:
    """As the sheet has them; then training without rounds."""
    return {
        "1": Part("parity", lambda: parity(seed, say)),
        "2": Part("loss and bytes of two islands", lambda: learning(full, seed, say)),
        "3": Part("wall-clock on 5 Mbit/s", lambda: slow_link(full, seed, say)),
        "4": Part("four bits a number", lambda: bits(seed, say)),
        "5": Part("a kill in mid-flight", lambda: killed(seed, say)),
        "6": Part("utilisation by bandwidth", lambda: utilisation(say)),
        "7": Part("refusals", lambda: refusals(say)),
        "8a": Part("delayed Nesterov", lambda: identity(seed)),
        "8b": Part("a slower worker, in virtual time", lambda: simulated(full, seed, say)),
        "8c": Part("a slower worker", lambda: raced(full, seed, say)),
        "8d": Part("kills without rounds", lambda: killed_without_rounds(seed, say)),
    }
